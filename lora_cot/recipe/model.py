"""Keys of a recipe that say which base there is, how it is loaded, and how it sees."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lora_cot.recipe.sections import Section

Trained = Literal["full", "lora", "frozen"]


class DiffusionSection(Section):
    """Of `vision_features: diffusion`. What is not given is as the base was trained with, or the default of a plain T5."""

    checkpoint: str | None = None
    """Of a plain T5: hub id or folder with vae, unet and scheduler as diffusers saves them; Stable Diffusion 1.4."""
    revision: str | None = None
    """Commit of its hub repository."""
    vae: Trained | None = None
    """How it is trained: full. Frozen, its latents are computed once and kept; lora needs vae among lora.parts."""
    unet: Trained | None = None
    """How it is trained: full. lora needs unet among lora.parts."""
    image_size: int | None = Field(None, gt=0)
    """Height and width in pixels that images are brought to: 256."""
    patch: int | None = Field(None, gt=0)
    """Height and width in latents of the patches that the text is fused with: 2."""
    scale_factor: float | None = Field(None, gt=0, allow_inf_nan=False)
    """What latents are multiplied by: 0.18215."""
    noise_weight: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Of the noise loss beside the loss of the text: 1."""
    steps: int | None = Field(None, ge=0)
    """Of denoising at inference: 5; with 0 the latents are taken as the VAE makes them."""
    first_step: int | None = Field(None, ge=0)
    """Of the schedule, to which latents are noised at inference and from which they are cleaned: 500."""
    cross_attention: bool | None = None
    """Whether the UNet looks at the text, or at learned constants: true."""
    blank: Literal["zeros", "white"] | None = None
    """What a row without an image is given: zeros in the latents' place, or a white image."""


class ModelSection(Section):
    """Which base, and how it is loaded."""

    base: str
    """Folder, hub id, or mini/NAME for a miniature."""
    revision: str | None = None
    """Commit of the hub repository."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of what is not quantised; auto takes the checkpoint's."""
    vision_features: Literal["vit", "clip", "diffusion", "none"] | None = None
    """Of a T5: what makes the features of an image; none for text alone. A checkpoint that has learned to see has its own."""
    diffusion: DiffusionSection | None = None
    """Settings of diffusion features."""
    vision_encoder: str | None = None
    """Hub id or folder of what makes them; vit and clip each have a default."""
    vision_revision: str | None = None
    """Commit of its hub repository."""
    vision_training: Trained | None = None
    """How the vision encoder of vit and clip is trained: frozen, its features computed once and kept; full and lora (with
    vision_encoder in lora.parts) make it part of the model. A checkpoint whose encoder was trained has its own."""
    attn_implementation: str | None = None
    """As in transformers: sdpa, flash_attention_2, eager."""
    adapter: str | None = None
    """To go on training from: an adapter's folder, a run or a hub id."""

    @model_validator(mode="after")
    def _features_agree(self) -> ModelSection:
        if self.diffusion is not None and self.vision_features not in (None, "diffusion"):
            raise ValueError("diffusion holds settings of vision_features: diffusion alone: take one of them out")
        if self.vision_features == "diffusion" and (self.vision_encoder or self.vision_revision):
            raise ValueError("vision_encoder and vision_revision are for vit and clip: name diffusion.checkpoint")
        if self.vision_features in ("diffusion", "none") and self.vision_training is not None:
            raise ValueError("vision_training is of the encoder of vit and clip: take it out")
        return self
