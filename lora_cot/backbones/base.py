"""What a family of base models must tell of itself, and a loaded model with its processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_cot.data.chat import ChatEncoder
from lora_cot.data.collate import ImageInputs
from lora_cot.data.labels import Encoder
from lora_cot.formats import CotFormat
from lora_cot.recipe.model import ModelSection
from lora_cot.types import Image, Sample

Size = tuple[int, int]
"""Width and height of an image in pixels."""


def auto_config(base: str, section: ModelSection) -> Any:
    """The configuration that transformers itself reads."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(base, revision=section.revision)


def auto_processor(base: str, section: ModelSection) -> Any:
    """The processor that transformers itself chooses."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(base, revision=section.revision)


def text_positions(model: Any, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions that count the tokens, image slots among them."""
    mask = inputs["attention_mask"]
    return (mask.cumsum(-1) - 1).clamp(min=0), mask.new_zeros(len(mask))


@dataclass(frozen=True)
class PatchView:
    """How patches of an image that was seen can be shown again in the middle of a text."""

    grids: Callable[[Any, Any], list[tuple[int, int]]]
    """(processor, encoded prompt) to the rows and columns of patches of each image; a token of the text stands for each."""
    marks: Callable[[Any], tuple[list[int], int]]
    """(processor) to the tokens that stand before patches, and the one after them."""
    positions: Callable[[int, Sequence[tuple[int, int]]], tuple[torch.Tensor, int]]
    """(first position, row and column of each patch) to their (A, P) positions on the A axes of the text, and the next one."""
    shown: int = 64
    """Patches of a look if nothing else is asked for; ICoT's number on Chameleon."""
    released_cap: int | None = None
    """Looks of a text in ICoT's released code; None: any number."""
    released_from_start: bool = True
    """Whether it looks at the end of the prompt too."""


def patches_in_line(begin: int, places: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, int]:
    """Positions of patches in a text that counts its tokens."""
    return torch.arange(begin, begin + len(places))[None], begin + len(places)


def no_patch_view(model: Any) -> None:
    """Images that are not in the text: no patch of them can be shown in it again."""


@dataclass(frozen=True)
class ExtraLoss:
    """A loss beside the one of the text: the mean over all items of a step of what the model's output has under its name in
    `extra_losses`, a sum over a batch's items, while it is trained.
    """

    weight: Callable[[Any], float]
    """(transformers model) to its weight beside the loss of the text."""
    items: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
    """(batch) to the number of its items."""


@dataclass(frozen=True)
class Family:
    """One family of base models; each is declared in one file of this folder."""

    name: str
    model_types: tuple[str, ...]
    """Values of `model_type` in a checkpoint's config.json."""
    parts: Mapping[str, str]
    """Part name → path of the module inside the model; the empty path is all that is in no other part. The names are the
    same for all families: vision_encoder, projector, language_model, lm_head."""
    image_inputs: ImageInputs
    """What its batches need besides text."""
    image_tokens: Callable[[Any, Sequence[Size]], list[int]]
    """(processor, sizes of a sample's images) to the number of tokens that stand for each, from the sizes alone."""
    mixes_image_counts: bool = True
    """Rows with and without images, or with different numbers of them, may share a batch."""
    most_images: int | None = None
    """Images of a sample, where there is a limit."""
    inference_only: bool = False
    """It answers, but cannot be trained here."""
    no_fp16: str = ""
    """Why this family cannot be trained in float16; empty if it can."""
    tag_style: str = "xml"
    """How this family's tokenizers can spell stage tags."""
    encoder: Callable[[Any, CotFormat], Encoder] = ChatEncoder
    """(processor, format) to what turns samples into tokens."""
    is_encoder_decoder: bool = False
    """The prompt is read by an encoder, and the answer written by a decoder that looks at it."""
    never_quantized: tuple[str, ...] = ()
    """Parts that keep full precision on any base."""
    trained_in_full: Callable[[Any], tuple[str, ...]] = lambda model: ()
    """Parts that are new to a model: they get no adapter, but are trained whole, and saved with the adapters."""
    load_config: Callable[[str, ModelSection], Any] = auto_config
    """(folder or hub id, section) to the model's configuration."""
    load_processor: Callable[[str, ModelSection], Any] = auto_processor
    """(folder or hub id, section) to its processor."""
    prepare: Callable[[Any, Sequence[Image], int], None] = lambda processor, images, max_pixels: None
    """(processor, images, their limit) does beforehand, at once, what each image needs once."""
    save_whole: Callable[[Any, Path], None] = lambda processor, folder: None
    """(processor, folder) adds what a model's folder needs besides weights and processor."""
    positions: Callable[[Any, Mapping[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]] = text_positions
    """(transformers model, inputs) to position_ids of a prompt, and (B,) what a later token's position is ahead of its
    number in the text."""
    patch_view: Callable[[Any], PatchView | None] = no_patch_view
    """(transformers model) to how its patches can be shown again, if they can."""
    still_layers: Callable[[Any], frozenset[int]] = lambda model: frozenset()
    """Layers whose keys and values come from the image and do not grow with the text."""
    unused_layers: Callable[[Any], str] = lambda model: r"(?!)"
    """A pattern of module paths whose output the model leaves unused, so that an adapter there would learn nothing."""
    held_inputs: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]] = lambda inputs: {}
    """Of a prompt's inputs, what every later token is fed with too, (B, 1, …)."""
    looks_at_text: Callable[[Any], bool] = lambda model: False
    """(transformers model) to whether an image's latents are refined by cross-attention to the prompt."""
    sees: Callable[[Mapping[str, torch.Tensor]], bool] = lambda inputs: "pixel_values" in inputs
    """Whether a batch holds an image."""

    extra_losses: Mapping[str, ExtraLoss] = field(default_factory=dict)
    """By name, losses beside the one of the text; logged as loss/NAME."""
    stand_in: Callable[[Any], dict[str, torch.Tensor]] = lambda processor: {}
    """(processor) to what an encoder-decoder is given of an image where there is none to look at, as a plan takes it: only
    of one whose model computes less for a row without an image."""

    def new_modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """By path, the parts of a model that are trained in full; they are in float32 whatever the rest is in."""
        paths = [self.parts[part] for part in self.trained_in_full(model)]
        return {path: module for path, module in model.named_modules() if path in paths}

    def batch_key(self, images: int) -> int:
        """Samples may share a batch where this is equal: at least, images and none are never mixed."""
        return min(images, 1) if self.mixes_image_counts else images


@dataclass
class Backbone:
    """A base model, loaded, with everything that must travel with it."""

    family: Family
    model: Any
    """The transformers model, or a PEFT model around it."""
    processor: Any
    base: str
    """Path or hub id it was loaded from."""
    revision: str | None = None
    adapter: str | None = None
    """Which of the model's adapters answers, where it has several."""
    merged: Mapping[str, Backbone] = field(default_factory=dict)
    """Models by pass, where each pass was merged into one of its own."""

    @property
    def base_model(self) -> nn.Module:
        """The transformers model, without adapters around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def place(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Inputs on the model's device; pixels in its precision, vision features as they are: what reads them has its own."""
        dtype, device = self.model.dtype, self.device
        cast = {name for name, t in inputs.items() if t.is_floating_point() and name != "vision_features"}
        return {name: t.to(device, dtype) if name in cast else t.to(device) for name, t in inputs.items()}

    def part(self, name: str) -> nn.Module:
        """The module of a part."""
        return self.base_model.get_submodule(self.family.parts[name])

    @property
    def looks_at_text(self) -> bool:
        """Whether what it sees of an image is made by looking at the text: see `text_attention`."""
        return self.family.looks_at_text(self.base_model)

    def for_pass(self, name: str) -> Backbone:
        """The model that generates one pass of a format: its own, or this one with its adapter."""
        if name in self.merged:
            return self.merged[name]
        return replace(self, adapter=name) if name in getattr(self.model, "peft_config", ()) else self

    def encoder(self, cot_format: CotFormat) -> Encoder:
        """What turns samples into this model's tokens, in a format."""
        return self.family.encoder(self.processor, cot_format.spelled(self.family.tag_style))

    def label_logits(self, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, V) logits and the (B, T) labels they are for, IGNORE_INDEX where there is none.

        Args:
            inputs: a training batch, as `batch` makes it.
        """
        given = {name: value for name, value in inputs.items() if name != "stage_ids"}
        if self.family.is_encoder_decoder:
            return self.model(**self.place(given)).logits, given["labels"]
        labels = given.pop("labels")
        return self.model(**self.place(given)).logits[:, :-1], labels[:, 1:]

    def prepare(self, samples: Sequence[Sample], max_pixels: int) -> None:
        """Do at once, with a progress bar, what each image of the samples needs once; without it, it is done one by one.

        Raises:
            DataError: an image cannot be opened.
        """
        self.family.prepare(self.processor, [image for sample in samples for image in sample.images], max_pixels)

    def use_adapter(self) -> None:
        """Switch to the adapter that answers; nothing is loaded."""
        if self.adapter is not None and self.model.active_adapters != [self.adapter]:
            self.model.set_adapter(self.adapter)


def part_of(family: Family, module_name: str) -> str | None:
    """The part a module belongs to, by its dotted path in the model; the longest matching path wins."""
    owners = [(path, part) for part, path in family.parts.items() if not path or f"{module_name}.".startswith(f"{path}.")]
    return max(owners, default=("", None), key=lambda owner: len(owner[0]))[1]
