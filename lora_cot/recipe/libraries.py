"""Checking keys that belong to a library's configuration class against the installed class itself."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

OUT = "take it out"
OWNED = {
    "training": {
        "output_dir": ("a run's folder is runs/NAME", "set name"),
        "remove_unused_columns": ("always off: images are opened in the collator", OUT),
        "dataset_kwargs": ("samples are prepared already", "set the keys of the sources in data.train and data.eval"),
        "assistant_only_loss": ("only answers are trained", f"{OUT}; training.stage_weights says what each stage counts"),
        "completion_only_loss": ("only answers are trained", f"{OUT}; training.stage_weights says what each stage counts"),
        "packing": ("not possible with images", "set training.train_sampling_strategy=group_by_length for less padding"),
        "padding_free": ("not possible with images", "set training.train_sampling_strategy=group_by_length for less padding"),
        "model_init_kwargs": (
            "the section model says how the base is loaded",
            "set model.dtype, model.attn_implementation, model.revision",
        ),
        "label_names": ("set by the collator", OUT),
        "loss_type": ("the loss is by stage", "set training.stage_weights"),
        "label_smoothing_factor": ("the loss is by stage, of the gold tokens alone", f"{OUT}, or set training.stage_weights"),
        "pad_to_multiple_of": ("batches are padded to their longest sample", OUT),
        "dataset_text_field": ("samples have no text field", "set the keys of the sources in data.train and data.eval"),
        "shuffle_dataset": ("the trainer shuffles at every epoch", "set training.data_seed for another order"),
        "eval_packing": ("not possible with images", OUT),
        "length_column_name": (
            "lengths are measured, image slots expanded",
            "set training.train_sampling_strategy=group_by_length to go by them",
        ),
        "resume_from_checkpoint": (
            "the same command goes on with a run by itself",
            f"{OUT}, or set model.adapter to begin a run from an adapter",
        ),
        "ignore_data_skip": (
            "a run goes on at the very sample where it was stopped",
            f"{OUT}, or set another name to begin anew",
        ),
        "save_only_model": (
            "a checkpoint holds all that a run needs to go on",
            "set training.save_total_limit to keep fewer",
        ),
        "restore_callback_states_from_checkpoint": ("always on: early stopping goes on counting", OUT),
        "enable_jit_checkpoint": ("SIGTERM always saves a checkpoint", OUT),
        "save_on_each_node": ("all nodes write into one folder that they share", OUT),
        "auto_find_batch_size": (
            "a run whose batches shrink could not be gone on with",
            "set training.per_device_train_batch_size: lora-cot plan says what fits",
        ),
        "logging_nan_inf_filter": ("a loss that is not finite stops the run", OUT),
        "chat_template_path": ("the processor's own template is used", OUT),
        "eos_token": ("the tokenizer's own is used", OUT),
        "dataloader_drop_last": ("every sample is used: what is left over makes a smaller batch", OUT),
        "push_to_hub": ("what is pushed is finished", "train with --push NAMESPACE/NAME, or use lora-cot push"),
    },
    "lora": {
        "base_model_name_or_path": ("the base is named once", "set model.base"),
        "revision": ("the base is named once", "set model.revision"),
        "task_type": ("it follows from the base", OUT),
        "peft_type": ("always LORA", OUT),
        "layers_to_transform": ("every layer of lora.parts is adapted", "leave some out by lora.exclude_modules"),
        "layers_pattern": ("every layer of lora.parts is adapted", "leave some out by lora.exclude_modules"),
        "inference_mode": ("always off while training", OUT),
        "loftq_config": (
            "it rewrites the base's weights",
            f"{OUT}, or set lora.init_lora_weights=pissa on a base that is not quantised",
        ),
        "corda_config": ("it needs a pass over the data that is not made", OUT),
        "eva_config": ("it needs a pass over the data that is not made", OUT),
    },
    "quantization": {
        "llm_int8_skip_modules": ("modules have other names in each base", "set quantization.skip_parts"),
    },
}
"""Keys of the libraries that a recipe may not set: why not, and what to do instead."""


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
