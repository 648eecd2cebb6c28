"""TRL's fused head, which gives each label's log-probability without the full logits, for an encoder-decoder.

TRL patches causal models: hidden states of one text, labels one token ahead. An encoder-decoder's labels are the tokens
that its decoder writes at the same place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from lora_cot.backbones import Backbone

FIELDS = ("log_probs", "entropy", "is_top1")
"""What it gives for each label; TRL's trainer asks for these."""


@dataclass
class FusedOutput(FusedCausalLMOutput):
    """TRL's, with a model's further losses: a field of it, since torch makes a model's output anew on several ranks."""

    extra_losses: dict[str, torch.Tensor] | None = None
    """See `backbones.base.ExtraLoss`."""


def fuse_head(backbone: Backbone) -> None:
    """Let `model(..., labels=labels, fused_lm_head=True)` give `log_probs` and `is_top1`, in TRL's own form.

    (B, T − 1) of a causal model, as TRL's trainer patches it; (B, T) of an encoder-decoder, whatever TRL did to it, and
    then also `extra_losses` where the model has any.
    """
    model: Any = backbone.base_model
    if not backbone.family.is_encoder_decoder:
        add_fused_lm_head(model, outputs=FIELDS)
        return
    model.__dict__.pop("forward", None)
    head: Any = _Decoder(model)
    add_fused_lm_head(head, outputs=FIELDS)
    plain = model.forward

    def forward(*args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return plain(*args, **kwargs)
        given = {name: value for name, value in kwargs.items() if value is not None}  # PEFT names all that T5 could take
        labels = given.pop("labels")
        output = head.forward(fused_lm_head=True, shift_labels=labels, written=labels, **given)
        return FusedOutput(**output, extra_losses=head.extra_losses)

    model.forward = forward


class _Decoder:
    """What TRL's patch asks of a causal model."""

    def __init__(self, model: Any):
        self._model, self.config = model, model.config
        self.extra_losses: dict[str, torch.Tensor] | None = None

    def base_model(self, written: torch.Tensor, use_cache: bool, **inputs: Any) -> BaseModelOutput:
        """The states that its head is given."""
        states, self.extra_losses = self._model.decoded(written, **inputs)
        return BaseModelOutput(states)

    def get_output_embeddings(self) -> Any:
        """The head itself."""
        return self._model.get_output_embeddings()

    def forward(self) -> None:
        """Replaced by the patch."""
