"""Running an encoder-decoder: the prompt is encoded once; its keys and values are what every decoded token looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from lora_cot.backbones import Backbone
from lora_cot.data.collate import batch
from lora_cot.data.labels import Encoded
from lora_cot.engines.cache import KeyValues, keep_rows, pack, pack_prompts, unpack
from lora_cot.engines.decoder import Decoder, Rows, State


class Seq2SeqDecoder(Decoder):
    """See `Decoder`."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    def prefill(self, prompts: Sequence[Encoded]) -> list[State]:
        """See `Decoder.prefill`; nothing is decoded yet."""
        output = self._begin(prompts, [])
        start = self._start()
        cross = output.past_key_values.cross_attention_cache
        states = []
        for place, row in enumerate(prompts):
            prompt = unpack(cross, place, 0, frozenset()).grown[..., : len(row.input_ids), :].clone()
            states.append(State(KeyValues(prompt[..., :0, :].clone(), prompt, padded=True), start))
        return states

    def next_logits(self, prompts: Sequence[Encoded], begun: Sequence[int]) -> torch.Tensor:
        """See `Decoder.next_logits`."""
        return self._begin(prompts, begun).logits[:, -1]

    def rows(self, states: Sequence[State], forks: Sequence[int]) -> Rows:
        """See `Decoder.rows`."""
        return _Seq2SeqRows(self.backbone, states, forks)

    def _start(self) -> int:
        return self.backbone.base_model.config.decoder_start_token_id  # type: ignore[union-attr,return-value]

    def _begin(self, prompts: Sequence[Encoded], begun: Sequence[int]) -> Any:
        """The model's output at the beginning of the prompts' answers."""
        inputs = batch(prompts, self.backbone.processor, self.backbone.family.image_inputs)
        inputs = self.backbone.place({name: value for name, value in inputs.items() if name not in ("labels", "stage_ids")})
        written = torch.tensor([[self._start(), *begun]] * len(prompts), device=self.backbone.device)
        return self.backbone.model(**inputs, decoder_input_ids=written, use_cache=True)


class _Seq2SeqRows(Rows):
    """See `Rows`."""

    def __init__(self, backbone: Backbone, states: Sequence[State], forks: Sequence[int]):
        self._model, device = backbone.model, backbone.device
        kvs = [state.kv for state in states]
        text, padding = pack(kvs, forks, frozenset())
        prompts, lengths = pack_prompts(kvs, forks)
        self._cache = EncoderDecoderCache(text, prompts)
        self._padding = padding.to(device)
        self._prompt_mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long().to(device)
        self._nothing = self._prompt_mask[..., None].to(self._model.dtype)
        self._origins = [state for state, count in zip(states, forks, strict=True) for _ in range(count)]
        self._input = torch.tensor([state.last for state in self._origins], device=device)

    def step(self) -> torch.Tensor:
        """See `Rows.step`."""
        length = self._cache.get_seq_length() + 1
        mask = torch.arange(length, device=self._padding.device) >= self._padding[:, None]
        output = self._model(
            encoder_outputs=BaseModelOutput(self._nothing),  # the keys and values of the prompt are known already
            attention_mask=self._prompt_mask,
            decoder_input_ids=self._input[:, None],
            decoder_attention_mask=mask.long(),
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.logits[:, -1].float()

    def feed(self, tokens: list[int], kept: list[int] | None) -> None:
        """See `Rows.feed`."""
        if kept is not None:
            rows = torch.tensor(kept, device=self._padding.device)
            self._padding, self._prompt_mask = self._padding[rows], self._prompt_mask[rows]
            self._nothing = self._nothing[rows]
            self._origins = [self._origins[place] for place in kept]
            keep_rows(self._cache.self_attention_cache, rows)
            keep_rows(self._cache.cross_attention_cache, rows)
        self._input = torch.tensor(tokens, device=self._padding.device)

    def state(self, place: int, last: int) -> State:
        """See `Rows.state`."""
        origin = self._origins[place]
        kv = unpack(self._cache.self_attention_cache, place, int(self._padding[place]), frozenset())
        return replace(origin, kv=replace(origin.kv, grown=kv.grown), last=last, begun=True)
