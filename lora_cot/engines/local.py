"""The model in this process: prompts are prefilled once, candidates of many questions decode as one batch.

The core is `_Rows.step`: one token for whatever rows are alive. Nothing that was generated is tokenised again: a
candidate goes on from its own tokens and its own cache.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import DynamicCache

from lora_cot.backbones import Backbone
from lora_cot.data.collate import batch, encode
from lora_cot.data.images import MAX_PIXELS
from lora_cot.data.labels import IGNORE_INDEX, NO_STAGE, Encoded, Encoder
from lora_cot.engines.base import Candidate, Sampling
from lora_cot.engines.cache import KeyValues, keep_rows, pack, unpack
from lora_cot.engines.sampling import draw
from lora_cot.errors import Problem, SearchError
from lora_cot.formats import FORMATS, CotFormat
from lora_cot.types import Sample

PREFILL_TOKENS = 16_384
"""Padded tokens of one prefill batch; bounds the memory of many long prompts."""


@dataclass(frozen=True)
class State:
    """A text that can be continued."""

    kv: KeyValues
    """Keys and values of all tokens but the last."""
    last: int
    """The last token; it is fed when the text is continued."""
    ahead: int = 0
    """What a token's position is ahead of its number in the text."""
    held: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """(1, 1, …) inputs that every further token is fed with too."""


@dataclass
class _Row:
    """One candidate while it decodes."""

    question: int
    draws: random.Random
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0


class LocalEngine:
    """A backbone as an `Engine`."""

    def __init__(self, backbone: Backbone, cot_format: CotFormat, max_pixels: int = MAX_PIXELS):
        self.backbone, self.max_pixels = backbone, max_pixels
        self.encoder = Encoder(backbone.processor, cot_format)
        self._judge_encoder = Encoder(backbone.processor, FORMATS["direct"])
        self.tokenizer = backbone.processor.tokenizer
        self._still = backbone.family.still_layers(backbone.base_model)
        self._ends = self._end_tokens()
        self._pieces: dict[str, torch.Tensor] = {}
        self._passes: dict[str, LocalEngine] = {}

    def for_pass(self, cot_format: CotFormat) -> LocalEngine:
        """See `Engine.for_pass`."""
        if cot_format.name not in self._passes:
            engine = LocalEngine(self.backbone.for_pass(cot_format.name), cot_format, self.max_pixels)
            self._passes[cot_format.name] = engine
        return self._passes[cot_format.name]

    @property
    def model(self) -> Any:
        """The model that decodes, adapters included."""
        return self.backbone.model

    def _end_tokens(self) -> set[int]:
        configured = self.model.generation_config.eos_token_id
        ends = set(configured) if isinstance(configured, list) else {configured}
        return (ends | {self.tokenizer.eos_token_id}) - {None}

    @torch.inference_mode()
    def start(self, samples: Sequence[Sample]) -> list[State]:
        """See `Engine.start`.

        Raises:
            DataError: an image cannot be opened.
        """
        self.backbone.use_adapter()
        prompts = [encode(self.encoder, sample, False, self.max_pixels) for sample in samples]
        states: list[State | None] = [None] * len(samples)
        for chunk in self._batches(prompts):
            rows = [prompts[index] for index in chunk]
            inputs = self._inputs([_shortened(row) for row in rows])
            cache, ahead = self._prefill(inputs, DynamicCache())
            longest = inputs["input_ids"].shape[1]
            held = self.backbone.family.held_inputs(inputs)
            for place, (index, row) in enumerate(zip(chunk, rows, strict=True)):
                kv = unpack(cache.past_key_values, place, longest - (len(row.input_ids) - 1), self._still)
                mine = {name: value[place : place + 1].clone() for name, value in held.items()}
                states[index] = State(kv, row.input_ids[-1], int(ahead[place]), mine)
        return [state for state in states if state is not None]

    def _batches(self, prompts: Sequence[Encoded]) -> Iterator[list[int]]:
        """Numbers of prompts of like length that may share a batch."""
        key = self.backbone.family.batch_key
        order = sorted(range(len(prompts)), key=lambda i: (key(prompts[i].images), len(prompts[i].input_ids)))
        while order:
            chunk = [order[0]]
            for index in order[1:]:
                width = len(prompts[index].input_ids)
                alike = key(prompts[index].images) == key(prompts[order[0]].images)
                if not alike or width * (len(chunk) + 1) > PREFILL_TOKENS:
                    break
                chunk.append(index)
            order = order[len(chunk) :]
            yield chunk

    def _inputs(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        inputs = batch(rows, self.backbone.processor, self.backbone.family.image_inputs, left=True)
        return self.backbone.place({name: value for name, value in inputs.items() if name not in ("labels", "stage_ids")})

    def _prefill(self, inputs: dict[str, torch.Tensor], cache: Any) -> tuple[Any, torch.Tensor]:
        """The model's output for whole prompts, and what further positions are ahead of the count."""
        positions, ahead = self.backbone.family.positions(self.backbone.base_model, inputs)
        output = self.model(
            **inputs, position_ids=positions, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1
        )
        return output, ahead

    @torch.inference_mode()
    def extend(
        self,
        states: Sequence[State],
        seeds: Sequence[Sequence[str]],
        stop: str | None,
        max_new_tokens: int,
        sampling: Sampling,
        keep_states: bool = True,
    ) -> list[list[Candidate]]:
        """See `Engine.extend`. Equal draws are promised in float32 on a CPU; elsewhere batches may round differently."""
        self.backbone.use_adapter()
        groups: dict[tuple[int, ...], list[int]] = {}
        for question, state in enumerate(states):
            groups.setdefault(state.kv.shape_key, []).append(question)
        found: list[list[Candidate]] = [[] for _ in states]
        for questions in groups.values():
            rows = [_Row(q, random.Random(seed)) for q in questions for seed in seeds[q]]
            decoding = _Rows(self, [states[q] for q in questions], [len(seeds[q]) for q in questions])
            for row, candidate in zip(
                rows, self._decode(decoding, rows, stop, max_new_tokens, sampling, keep_states), strict=True
            ):
                found[row.question].append(candidate)
        return found

    def _decode(
        self, decoding: _Rows, rows: list[_Row], stop: str | None, max_new_tokens: int, sampling: Sampling, keep_states: bool
    ) -> list[Candidate]:
        found: dict[int, Candidate] = {}
        alive = list(range(len(rows)))
        for _ in range(max_new_tokens):
            tokens, logprobs = draw(decoding.step(), sampling, [rows[i].draws for i in alive])
            gone = set()
            for place, index in enumerate(alive):
                row, token = rows[index], tokens[place]
                row.ids.append(token)
                row.logprob += logprobs[place]
                closed = self._closed(row.ids, stop)
                if closed is not None or len(row.ids) == max_new_tokens:
                    state = decoding.state(place, token) if keep_states else None
                    found[index] = self._candidate(row, bool(closed), state)
                    gone.add(place)
            kept = [place for place in range(len(alive)) if place not in gone]
            alive = [alive[place] for place in kept]
            if not alive:
                break
            decoding.feed([tokens[place] for place in kept], kept if gone else None)
        return [found[index] for index in range(len(rows))]

    def _candidate(self, row: _Row, closed: bool, state: State | None) -> Candidate:
        visible = row.ids[:-1] if row.ids[-1] in self._ends else row.ids
        return Candidate(self._text(visible), len(row.ids), row.logprob, closed, state)

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _closed(self, ids: list[int], stop: str | None) -> bool | None:
        """Whether the row ends here: True as it should, False otherwise, None if it goes on."""
        if ids[-1] in self._ends:
            return stop is None
        if stop is None or not self._may_end(stop, ids[-1]):
            return None
        return True if stop in self._text(ids[-2 * len(stop) :]) else None

    def _may_end(self, stop: str, token: int) -> bool:
        """Whether the token's text has the stop string's last character: all others need not be decoded."""
        if stop not in self._pieces:
            texts = (self._text([i]) for i in range(len(self.tokenizer)))
            self._pieces[stop] = torch.tensor([stop[-1] in text or "\ufffd" in text for text in texts])
        return bool(self._pieces[stop][token])

    @torch.inference_mode()
    def choose(self, samples: Sequence[Sample], options: Sequence[str], adapter: bool = True) -> list[list[float]]:
        """See `Engine.choose`; an option counts by the first token in which it differs from the others.

        Raises:
            SearchError: the adapter cannot be switched off, or two options are the same.
        """
        if not adapter and not hasattr(self.model, "disable_adapter"):
            what = "this model has no adapter that could be switched off"
            raise SearchError(Problem("judge_adapter: off", what, "use a run or an adapter, not a merged model"))
        self.backbone.use_adapter()
        common, firsts = self._told_apart(options)
        prompts = [_lengthened(encode(self._judge_encoder, sample, False, self.max_pixels), common) for sample in samples]
        scores: list[list[float]] = [[] for _ in samples]
        with nullcontext() if adapter else self.model.disable_adapter():
            for chunk in self._batches(prompts):
                output, _ = self._prefill(self._inputs([prompts[index] for index in chunk]), None)
                logits = output.logits[:, -1].float().log_softmax(-1)[:, firsts]
                for place, index in enumerate(chunk):
                    scores[index] = logits[place].tolist()
        return scores

    def _told_apart(self, options: Sequence[str]) -> tuple[list[int], list[int]]:
        """The tokens all options begin with, and the first one after them of each."""
        ids = [self._judge_encoder.answer_ids(option) for option in options]
        common = next((i for i, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1), 0)
        firsts = [tokens[common] for tokens in ids]
        if len(set(firsts)) < len(firsts):
            raise SearchError(f"the options {list(options)} cannot be told apart by a token")
        return ids[0][:common], firsts


def _lengthened(prompt: Encoded, tokens: Sequence[int]) -> Encoded:
    ids, blank = [*prompt.input_ids, *tokens], len(prompt.input_ids) + len(tokens)
    return replace(prompt, input_ids=ids, labels=[IGNORE_INDEX] * blank, stage_ids=[NO_STAGE] * blank)


def _shortened(prompt: Encoded) -> Encoded:
    """Without the last token."""
    return replace(prompt, input_ids=prompt.input_ids[:-1], labels=prompt.labels[:-1], stage_ids=prompt.stage_ids[:-1])


class _Rows:
    """Rows that decode together over one cache."""

    def __init__(self, engine: LocalEngine, states: Sequence[State], forks: Sequence[int]):
        self._engine, device = engine, engine.backbone.device
        self._cache, padding = pack([state.kv for state in states], forks, engine._still)
        rows = [state for state, count in zip(states, forks, strict=True) for _ in range(count)]
        self._origins = rows
        self._padding = padding.to(device)
        self._input = torch.tensor([state.last for state in rows], device=device)
        self._ahead = torch.tensor([state.ahead for state in rows], device=device)
        self._held = {name: torch.cat([state.held[name] for state in rows]) for name in rows[0].held}

    def step(self) -> torch.Tensor:
        """Feed each row's last token; returns logits (rows, V) of the next."""
        length = self._cache.get_seq_length() + 1
        mask = torch.arange(length, device=self._padding.device) >= self._padding[:, None]
        positions = (length - 1 - self._padding + self._ahead)[:, None]
        output = self._engine.model(
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
        """The tokens to feed next; with `kept`, all other rows leave."""
        if kept is not None:
            rows = torch.tensor(kept, device=self._padding.device)
            self._padding, self._ahead = self._padding[rows], self._ahead[rows]
            self._held = {name: value[rows] for name, value in self._held.items()}
            self._origins = [self._origins[place] for place in kept]
            keep_rows(self._cache, rows)
        self._input = torch.tensor(tokens, device=self._padding.device)

    def state(self, place: int, last: int) -> State:
        """One row as it is after its last step, out of the batch."""
        origin = self._origins[place]
        kv = unpack(self._cache, place, int(self._padding[place]), self._engine._still, origin.kv.still)
        return State(kv, last, origin.ahead, origin.held)
