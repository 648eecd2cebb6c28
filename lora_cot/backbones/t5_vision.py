"""T5 that sees: any T5 checkpoint whose encoded text is fused with frozen vision features (Multimodal-CoT).

Traps:
- T5 overflows in float16: bfloat16 or float32 only.
- Its vocabulary has no `<`, `{`, `}` or newline: stage tags are written in brackets.
- The encoder's output is made once and the decoder looks at it: whatever generates must hand the vision features to the
  encoder, and to nothing after it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.t5.modeling_t5 import T5Stack

from lora_cot.backbones.fusion import GatedFusion


class T5VisionConfig(T5Config):
    """T5's configuration, and the shape of the vision features."""

    model_type = "t5_vision"

    image_width: int = 1024
    """D_image, of each patch."""
    image_patches: int = 145
    """P, of each image: ViT-L/32 at 384 pixels has 144 patches and its class token."""
    fusion_projections: bool = False
    """See `GatedFusion`."""


class SeeingEncoder(T5Stack):
    """T5's encoder, its output fused with an image."""

    def __init__(self, config: T5VisionConfig):
        super().__init__(config)
        self.fusion = GatedFusion(config.d_model, config.image_width, config.fusion_projections)

    def _init_weights(self, module: Any) -> None:
        fusion = getattr(self, "fusion", None)
        if fusion is not None and any(module is layer for layer in fusion.modules()):
            if isinstance(module, torch.nn.Linear):  # T5's own rule has a deviation of 1, which saturates the gate
                init.xavier_uniform_(module.weight)
                init.zeros_(module.bias)
            return
        super()._init_weights(module)

    def forward(self, *args: Any, vision_features: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """T5's own output, its last state (B, T, D) fused.

        Args:
            args: T5's.
            vision_features: (B, P, D_image); zeros for a text without an image, which is what None is for all of them.
            kwargs: T5's.
        """
        output = super().forward(*args, **kwargs)
        text = output[0]
        if vision_features is None:
            shape = (len(text), self.config.image_patches, self.config.image_width)
            vision_features = text.new_zeros(shape)
        return BaseModelOutput(self.fusion(text, vision_features))


class T5VisionForConditionalGeneration(T5ForConditionalGeneration):
    """A T5 whose encoder sees; `from_pretrained` of a plain T5 leaves the fusion at its random beginning."""

    config_class = T5VisionConfig

    def __init__(self, config: T5VisionConfig):
        super().__init__(config)
        encoder = T5VisionConfig(**{**config.to_dict(), "is_decoder": False, "use_cache": False})
        self.encoder = SeeingEncoder(encoder)
        self.post_init()

    def forward(self, *args: Any, vision_features: torch.Tensor | None = None, **kwargs: Any) -> Seq2SeqLMOutput:
        """T5's own output.

        Args:
            args: T5's.
            vision_features: see `SeeingEncoder`; not needed beside `encoder_outputs`.
            kwargs: T5's.
        """
        if kwargs.get("encoder_outputs") is None and len(args) < 5:
            names = ("input_ids", "attention_mask")
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            taken = {name: given.get(name) for name in (*names, "inputs_embeds")}
            kwargs["encoder_outputs"] = self.encoder(**taken, vision_features=vision_features)
        return super().forward(*args, **kwargs)
