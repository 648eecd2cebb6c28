"""The model: any T5 checkpoint whose encoded text is fused with frozen vision features (Multimodal-CoT).

The encoder's output is made once and the decoder looks at it: whatever generates must hand the vision features to the
encoder, and to nothing after it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, T5Config, T5ForConditionalGeneration
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.t5.modeling_t5 import T5Stack

from lora_cot.backbones.fusion import GatedFusion


class T5VisionConfig(T5Config):
    """T5's configuration, and the shape of the vision features."""

    model_type = "t5_vision"

    vision_features: str | None = None
    """What they are made by: see `VisionFeatures`; "none" gives every text zeros."""
    vision_encoder: str | None = None
    """Hub id or folder of the frozen vision encoder; a folder `vision_encoder` beside this file takes its place."""
    vision_revision: str | None = None
    image_width: int = 1024
    """D_image, of each patch; 0 for a model without a fusion."""
    image_patches: int = 145
    """P, of each image: ViT-L/32 at 384 pixels has 144 patches and its class token."""


class SeeingEncoder(T5Stack):
    """T5's encoder, its output fused with an image."""

    def __init__(self, config: T5VisionConfig):
        super().__init__(config)
        self.fusion: Any = self.make_fusion(config) if config.image_width else None

    def make_fusion(self, config: Any) -> GatedFusion:
        """What the output goes through."""
        return GatedFusion(config.d_model, config.image_width)

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
        if self.fusion is None:
            return output
        if vision_features is None:
            shape = (len(text), self.config.image_patches, self.config.image_width)
            vision_features = text.new_zeros(shape)
        return BaseModelOutput(self.fusion(text, vision_features))


class T5VisionForConditionalGeneration(T5ForConditionalGeneration):
    """A T5 whose encoder sees; `from_pretrained` of a plain T5 leaves the fusion at its random beginning."""

    config_class = T5VisionConfig
    encoder_class: type[SeeingEncoder] = SeeingEncoder
    _keep_in_fp32_modules_strict = ["fusion"]  # noqa: RUF012 (as transformers declares it)

    def __init__(self, config: T5VisionConfig):
        if not config.scale_decoder_outputs:  # T5 1.1: its head is its own, which transformers finds out by its values alone
            tied = type(self)._tied_weights_keys
            self._tied_weights_keys = {key: to for key, to in tied.items() if key != "lm_head.weight"}
        super().__init__(config)
        encoder = self.config_class(**{**config.to_dict(), "is_decoder": False, "use_cache": False})
        self.encoder = self.encoder_class(encoder)
        self.post_init()

    def post_init(self) -> None:
        """T5 keeps `wo` in float32 for float16's sake, and so out of 4-bit layers; float16 is refused here."""
        super().post_init()
        self._keep_in_fp32_modules = []

    def decoded(
        self, labels: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor, **image: Any
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
        """(B, T, D) that the head makes the labels' logits of, and the further losses that the encoder gives.

        Args:
            labels: (B, T) that the decoder is to write, -100 where nothing is trained.
            input_ids: (B, T') of the encoder.
            attention_mask: (B, T').
            image: what the encoder sees.
        """
        encoded = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **image)
        output = self.decoder(
            input_ids=self._shift_right(labels),
            encoder_hidden_states=encoded[0],
            encoder_attention_mask=attention_mask,
            use_cache=False,
        )
        scale = self.model_dim**-0.5 if self.config.scale_decoder_outputs else 1.0
        return output[0] * scale, getattr(encoded, "extra_losses", None)

    def forward(self, *args: Any, vision_features: Any = None, image_seed: Any = None, **kwargs: Any) -> Seq2SeqLMOutput:
        """T5's own output.

        Args:
            args: T5's.
            vision_features: see the encoder; not needed beside `encoder_outputs`.
            image_seed: likewise, of an encoder that takes it.
            kwargs: T5's.
        """
        image = {"vision_features": vision_features} | ({} if image_seed is None else {"image_seed": image_seed})
        if kwargs.get("encoder_outputs") is None and len(args) < 5:
            names = ("input_ids", "attention_mask")
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            taken = {name: given.get(name) for name in (*names, "inputs_embeds")}
            kwargs["encoder_outputs"] = self.encoder(**taken, **image)
        return super().forward(*args, **kwargs)


AutoConfig.register("t5_vision", T5VisionConfig)
AutoModelForImageTextToText.register(T5VisionConfig, T5VisionForConditionalGeneration)
