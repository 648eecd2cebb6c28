"""What the steps of a run keep in memory: a training step and an answer, run without data and counted."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lora_cot.backbones import Backbone
from lora_cot.data.collate import batch
from lora_cot.planning.counting import counting
from lora_cot.planning.workload import Workload, rows
from lora_cot.recipe import Recipe
from lora_cot.training.callbacks import drop_input_gradients
from lora_cot.training.heads import fuse_head

GRADIENTS = "gradients"
"""Owner of the trained parameters' gradients."""


def training_step(backbone: Backbone, recipe: Recipe, work: Workload, gpu: bool) -> dict[str, int]:
    """Bytes by owner at the fullest moment of forward and backward of the largest batch.

    Gradients are counted in float32, whatever their adapter is computed in here.

    Args:
        backbone: on the meta device, with its adapters.
        recipe: its training section.
        work: gives the batch.
        gpu: whether it runs on one.
    """
    keys, model = recipe.training.library, backbone.model
    fuse_head(backbone)
    model.train()
    options = keys.get("gradient_checkpointing_kwargs") or {"use_reentrant": False}
    if keys.get("gradient_checkpointing", True):
        model.gradient_checkpointing_enable(options)
        if not options.get("use_reentrant"):
            drop_input_gradients(model)
    inputs = _inputs(backbone, work, int(keys.get("per_device_train_batch_size", 8)), answered=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    accumulates = int(keys.get("gradient_accumulation_steps", 1)) > 1

    def keep(parameter: torch.Tensor) -> None:
        parameter.grad = None
        if not accumulates:
            counted.add(GRADIENTS, 4 * parameter.numel())

    with counting(model, _parts(backbone), inputs, gpu) as counted:
        if accumulates:  # those of the batches before are there from the beginning
            counted.add(GRADIENTS, 4 * sum(parameter.numel() for parameter in trained))
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(keep)
        (-model(**inputs, fused_lm_head=True).log_probs.sum()).backward()
    model.eval()
    model.gradient_checkpointing_disable()
    return {owner: size for owner, size in counted.at_peak.items() if size}


class Reader:
    """What answering takes: a prompt is read once, and each candidate goes on from a copy of its keys and values."""

    def __init__(self, backbone: Backbone, work: Workload, gpu: bool):
        self.prompt = work.length if backbone.family.is_encoder_decoder else work.length - work.answer
        still = backbone.family.still_layers(backbone.base_model)
        inputs = _inputs(backbone, work, 1, answered=False)
        inputs.pop("labels")
        with counting(backbone.model, _parts(backbone), inputs, gpu) as counted, torch.no_grad():
            layers = read_prompt(backbone, inputs)
            sizes = [sum(t.numel() * t.element_size() for t in (layer.keys, layer.values)) for layer in layers]
        self.reading = counted.peak
        """Bytes while one prompt is read."""
        self.per_image = sum(size for number, size in enumerate(sizes) if number in still)
        """Bytes of keys and values that come from the image and do not grow with the text."""
        self.per_token = (sum(sizes) - self.per_image) / inputs["input_ids"].shape[1]
        """Bytes of keys and values of each token."""

    def cache(self, questions: int, candidates: int, tokens: int) -> float:
        """Bytes of keys and values: of the prompts, and of all candidates with so many new tokens each."""
        prompt = self.prompt * self.per_token + self.per_image
        return questions * (prompt + candidates * (prompt + tokens * self.per_token))


def read_prompt(backbone: Backbone, inputs: dict[str, Any]) -> list[Any]:
    """The layers of the cache that reading a prompt leaves."""
    from transformers import DynamicCache

    if backbone.family.is_encoder_decoder:
        begin = torch.zeros((len(inputs["input_ids"]), 1), dtype=torch.long)
        return backbone.model(**inputs, decoder_input_ids=begin, use_cache=True).past_key_values.cross_attention_cache.layers
    output = backbone.model(**inputs, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1)
    return output.past_key_values.layers


def _parts(backbone: Backbone) -> dict[str, nn.Module]:
    modules = dict(backbone.base_model.named_modules())
    parts = {part: modules.get(path) for part, path in backbone.family.parts.items() if part != "lm_head"}
    return {part: module for part, module in parts.items() if module is not None}


def _inputs(backbone: Backbone, work: Workload, count: int, answered: bool) -> dict[str, Any]:
    """A batch: pixels on the meta device, tokens as they are."""
    made = batch(rows(backbone, work, count, answered), backbone.processor, backbone.family.image_inputs, left=not answered)
    made.pop("stage_ids")
    dtype = backbone.model.dtype
    return {name: t.to("meta", dtype) if t.is_floating_point() else t for name, t in made.items()}
