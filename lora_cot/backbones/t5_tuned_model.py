"""The model: a T5 whose encoded text is fused with the features of a vision encoder that is trained with it."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText

from lora_cot.backbones.t5_vision_model import SeeingEncoder, T5VisionConfig, T5VisionForConditionalGeneration
from lora_cot.backbones.vision_encoder import KINDS


class T5TunedConfig(T5VisionConfig):
    """T5's configuration, with that of the vision encoder inside it."""

    model_type = "t5_vision_tuned"

    encoder_layout: dict[str, Any] | None = None
    """The vision encoder's configuration, as transformers writes it."""
    vision_training: str | None = None
    """full, lora or frozen; None of a checkpoint that was never trained."""

    @property
    def kind(self) -> str:
        """Of the encoder, a name in `KINDS`."""
        model_type = (self.encoder_layout or {}).get("model_type", "")
        return next(name for name, kind in KINDS.items() if model_type in kind.model_types)


class TunedEncoder(SeeingEncoder):
    """T5's encoder, its output fused with the features of an image's pixels."""

    def __init__(self, config: T5TunedConfig):
        super().__init__(config)
        found = getattr(transformers, KINDS[config.kind].model)
        layout = found.config_class.from_dict(dict(config.encoder_layout or {}))
        self.vision_encoder = found(layout, **KINDS[config.kind].options)

    def forward(self, *args: Any, vision_features: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """T5's own output, its last state (B, T, D) fused.

        Args:
            args: T5's.
            vision_features: (B, 3, height, width) pixels, as the vision encoder's processor makes them; zeros for a text
                without an image, which is what None is for all of them.
            kwargs: T5's.
        """
        return super().forward(*args, vision_features=self._features(vision_features), **kwargs)

    def _features(self, pixels: torch.Tensor | None) -> torch.Tensor | None:
        """(B, P, D_image), zeros where there is no image. Those rows are computed too: what is computed must not depend on
        the batch where several processes share the weights.
        """
        if pixels is None:
            return None
        has_image = pixels.flatten(1).any(1)[:, None, None]
        return self.vision_encoder(pixel_values=pixels).last_hidden_state * has_image


class T5TunedForConditionalGeneration(T5VisionForConditionalGeneration):
    """A T5 that sees by a vision encoder which is learned with it."""

    config_class = T5TunedConfig
    encoder_class = TunedEncoder


AutoConfig.register("t5_vision_tuned", T5TunedConfig)
AutoModelForImageTextToText.register(T5TunedConfig, T5TunedForConditionalGeneration)
