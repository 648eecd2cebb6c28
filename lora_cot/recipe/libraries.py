"""Checking keys that belong to a library's configuration class against the installed class itself."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

OWNED = {
    "training": {
        "output_dir": "runs/NAME, from the recipe's name",
        "remove_unused_columns": "always off: images are opened in the collator",
        "dataset_kwargs": "data is prepared by data.train and data.eval",
        "assistant_only_loss": "always: only answers are trained",
        "completion_only_loss": "always: only answers are trained",
        "packing": "not possible with images",
        "padding_free": "not possible with images",
        "model_init_kwargs": "use the section model",
        "label_names": "set by the collator",
        "loss_type": "the loss is by stage: see training.stage_weights",
        "label_smoothing_factor": "the loss is by stage: see training.stage_weights",
        "pad_to_multiple_of": "batches are padded to their longest sample",
        "dataset_text_field": "data is prepared by data.train and data.eval",
        "shuffle_dataset": "the trainer shuffles at every epoch",
        "eval_packing": "not possible with images",
        "length_column_name": "lengths are measured, image slots expanded",
        "resume_from_checkpoint": "the same command goes on with a run by itself; model.adapter begins one from an adapter",
        "ignore_data_skip": "a run goes on at the very sample where it was stopped",
        "save_only_model": "a checkpoint holds all that a run needs to go on",
        "restore_callback_states_from_checkpoint": "always: early stopping goes on counting",
        "enable_jit_checkpoint": "SIGTERM always saves a checkpoint",
        "save_on_each_node": "all nodes write into one folder that they share",
        "auto_find_batch_size": "a run whose batches shrink could not be gone on with: lora-cot plan says what fits",
        "logging_nan_inf_filter": "a loss that is not finite stops the run",
        "chat_template_path": "the processor's own template is used",
        "eos_token": "the tokenizer's own is used",
        "dataloader_drop_last": "every sample is used: what is left over makes a smaller batch",
        "push_to_hub": "train with --push NAMESPACE/NAME, or push what is finished: lora-cot push",
    },
    "lora": {
        "base_model_name_or_path": "use model.base",
        "revision": "use model.revision",
        "task_type": "follows from the base",
        "peft_type": "always LORA",
        "layers_to_transform": "every layer of lora.parts is adapted: leave some out by exclude_modules",
        "layers_pattern": "every layer of lora.parts is adapted: leave some out by exclude_modules",
        "inference_mode": "always off while training",
        "loftq_config": "it rewrites the base's weights: leave it out, or take lora.init_lora_weights=pissa on a whole base",
        "corda_config": "it needs a pass over the data that is not made: leave it out",
        "eva_config": "it needs a pass over the data that is not made: leave it out",
    },
    "quantization": {"llm_int8_skip_modules": "use quantization.skip_parts"},
}
"""Keys of the libraries that a recipe may not set, and what to do instead, or what is done anyway."""


def config_class(section: str) -> type:
    """The library's class behind a section."""
    if section == "training":
        from trl import SFTConfig

        return SFTConfig
    if section == "lora":
        from peft import LoraConfig

        return LoraConfig
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig


def key_model(section: str) -> type[BaseModel]:
    """A model of every key of the section's library class, each optional, with the class's own types."""
    source: Any = config_class(section)
    if section == "quantization":
        parameters = inspect.signature(source.__init__).parameters.values()
        kinds: dict[str, Any] = {
            p.name: type(p.default) if p.default is not None else Any
            for p in parameters
            if p.name != "self" and p.kind is not p.VAR_KEYWORD
        }
    else:
        kinds = get_type_hints(source)
    fields: dict[str, Any] = {
        name: (kind | None if isinstance(kind, type) else kind, None)
        for name, kind in kinds.items()
        if name not in OWNED[section] and not name.startswith("_")
    }
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(f"{source.__name__}Keys", __config__=config, **fields)
