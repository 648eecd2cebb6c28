"""Running a model that goes on from its prompt: one text, one cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache

from lora_cot.backbones import Backbone
from lora_cot.data.collate import batch
from lora_cot.data.labels import IGNORE_INDEX, NO_STAGE, Encoded
from lora_cot.engines.cache import keep_rows, pack, unpack
from lora_cot.engines.decoder import Decoder, Rows, State


class CausalDecoder(Decoder):
    """See `Decoder`."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self.still = backbone.family.still_layers(backbone.base_model)

    def prefill(self, prompts: Sequence[Encoded]) -> list[State]:
        """See `Decoder.prefill`."""
        inputs = self._inputs([_shortened(row) for row in prompts])
        output, ahead = self._read(inputs, DynamicCache())
        longest = inputs["input_ids"].shape[1]
        held = self.backbone.family.held_inputs(inputs)
        states = []
        for place, row in enumerate(prompts):
            kv = unpack(output.past_key_values, place, longest - (len(row.input_ids) - 1), self.still)
            mine = {name: value[place : place + 1].clone() for name, value in held.items()}
            states.append(State(kv, row.input_ids[-1], int(ahead[place]), mine))
        return states

    def next_logits(self, prompts: Sequence[Encoded], begun: Sequence[int]) -> torch.Tensor:
        """See `Decoder.next_logits`."""
        output, _ = self._read(self._inputs([_lengthened(row, begun) for row in prompts]), None)
        return output.logits[:, -1]

    def rows(self, states: Sequence[State], forks: Sequence[int]) -> Rows:
        """See `Decoder.rows`."""
        return _CausalRows(self, states, forks)

    def _inputs(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        inputs = batch(rows, self.backbone.processor, self.backbone.family.image_inputs, left=True)
        return self.backbone.place({name: value for name, value in inputs.items() if name not in ("labels", "stage_ids")})

    def _read(self, inputs: dict[str, torch.Tensor], cache: Any) -> tuple[Any, torch.Tensor]:
        """The model's output for whole prompts, and what further positions are ahead of the count."""
        positions, ahead = self.backbone.family.positions(self.backbone.base_model, inputs)
        keep = {"past_key_values": cache, "use_cache": cache is not None, "logits_to_keep": 1}
        return self.backbone.model(**inputs, position_ids=positions, **keep), ahead


def _lengthened(prompt: Encoded, tokens: Sequence[int]) -> Encoded:
    ids, blank = [*prompt.input_ids, *tokens], len(prompt.input_ids) + len(tokens)
    return replace(prompt, input_ids=ids, labels=[IGNORE_INDEX] * blank, stage_ids=[NO_STAGE] * blank)


def _shortened(prompt: Encoded) -> Encoded:
    """Without the last token."""
    return replace(prompt, input_ids=prompt.input_ids[:-1], labels=prompt.labels[:-1], stage_ids=prompt.stage_ids[:-1])


class _CausalRows(Rows):
    """See `Rows`."""

    def __init__(self, decoder: CausalDecoder, states: Sequence[State], forks: Sequence[int]):
        self._decoder, device = decoder, decoder.backbone.device
        self._cache, padding = pack([state.kv for state in states], forks, decoder.still)
        rows = [state for state, count in zip(states, forks, strict=True) for _ in range(count)]
        self._origins = rows
        self._padding = padding.to(device)
        self._input = torch.tensor([state.last for state in rows], device=device)
        self._ahead = torch.tensor([state.ahead for state in rows], device=device)
        self._held = {name: torch.cat([state.held[name] for state in rows]) for name in rows[0].held}

    def step(self) -> torch.Tensor:
        """See `Rows.step`."""
        length = self._cache.get_seq_length() + 1
        mask = torch.arange(length, device=self._padding.device) >= self._padding[:, None]
        positions = (length - 1 - self._padding + self._ahead)[:, None]
        output = self._decoder.backbone.model(
            input_ids=self._input[:, None],
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            # for every position up to now, though only the last is computed: older transformers looks it up there
            **{name: value.expand(-1, length, *value.shape[2:]) for name, value in self._held.items()},
        )
        return output.logits[:, -1].float()

    def feed(self, tokens: list[int], kept: list[int] | None) -> None:
        """See `Rows.feed`."""
        if kept is not None:
            rows = torch.tensor(kept, device=self._padding.device)
            self._padding, self._ahead = self._padding[rows], self._ahead[rows]
            self._held = {name: value[rows] for name, value in self._held.items()}
            self._origins = [self._origins[place] for place in kept]
            keep_rows(self._cache, rows)
        self._input = torch.tensor(tokens, device=self._padding.device)

    def state(self, place: int, last: int) -> State:
        """See `Rows.state`."""
        origin = self._origins[place]
        kv = unpack(self._cache, place, int(self._padding[place]), self._decoder.still, origin.kv.still)
        return State(kv, last, origin.ahead, origin.held, begun=True)
