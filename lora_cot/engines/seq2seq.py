"""Running an encoder-decoder: the prompt is encoded once; its keys and values are what every decoded token looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import EncoderDecoderCache
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput

from lora_cot.backbones import Backbone
from lora_cot.data.collate import batch, model_inputs
from lora_cot.data.labels import Encoded
from lora_cot.engines.cache import KeyValues, joined, prompt_layers, taken
from lora_cot.engines.decoder import Decoder, Prompt, Root, Rows


class Seq2SeqDecoder(Decoder):
    """See `Decoder`. A prompt's encoding depends on all of it: none goes on from another's beginning."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    def opening(self, prompt: Encoded) -> tuple[Encoded, int]:
        """See `Decoder.opening`."""
        return prompt, self._start

    def read(self, prompts: Sequence[Prompt]) -> list[Root]:
        """See `Decoder.read`; nothing is decoded yet."""
        cross = self._begin(prompts, []).past_key_values.cross_attention_cache
        roots = []
        for place, prompt in enumerate(prompts):
            (whole,) = taken(cross, place, 0, frozenset()).pieces
            still = whole[..., : len(prompt.ids), :].clone()
            roots.append(Root(KeyValues((still[..., :0, :].clone(),), still, padded=True)))
        return roots

    def next_logits(self, prompts: Sequence[Prompt], begun: Sequence[int]) -> torch.Tensor:
        """See `Decoder.next_logits`."""
        return self._begin(prompts, begun).logits[:, -1]

    def rows(self) -> Rows:
        """See `Decoder.rows`."""
        return _Seq2SeqRows(self.backbone)

    @property
    def _start(self) -> int:
        return self.backbone.base_model.config.decoder_start_token_id  # type: ignore[union-attr,return-value]

    def _begin(self, prompts: Sequence[Prompt], begun: Sequence[int]) -> Any:
        """The model's output at the beginning of the prompts' answers."""
        made = batch([prompt.encoded for prompt in prompts], self.backbone.processor, self.backbone.family.image_inputs)
        inputs = self.backbone.place(model_inputs(made))
        written = torch.tensor([[self._start, *begun]] * len(prompts), device=self.backbone.device)
        return self.backbone.model(**inputs, decoder_input_ids=written, use_cache=True)


class _Seq2SeqRows(Rows):
    """See `Rows`."""

    def __init__(self, backbone: Backbone):
        super().__init__(backbone.device)
        self._model = backbone.model
        self._prompt_bytes = 0

    @property
    def bytes(self) -> int:
        """See `Rows.bytes`."""
        return self.buffer.bytes + self._prompt_bytes

    def _arrange(self) -> None:
        super()._arrange()
        prompts, lengths = prompt_layers([root.kv.still for root in self.origins if root.kv.still is not None])
        self._prompt_bytes = sum(part.nbytes for layer in prompts for part in (layer.keys, layer.values) if part is not None)
        self._cache = EncoderDecoderCache(joined(self.buffer.layers, [], frozenset()), Cache(layers=[*prompts]))
        self._prompt_mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long().to(self.device)
        self._nothing = self._prompt_mask[..., None].to(self._model.dtype)

    def step(self) -> torch.Tensor:
        """See `Rows.step`."""
        self.buffer.reserve(1)
        output = self._model(
            encoder_outputs=BaseModelOutput(self._nothing),  # the keys and values of the prompt are known already
            attention_mask=self._prompt_mask,
            decoder_input_ids=torch.tensor(self.tokens, device=self.device)[:, None],
            decoder_attention_mask=self.known(1),
            past_key_values=self._cache,
            use_cache=True,
        )
        self.buffer.grown(1)
        return output.logits[:, -1]
