"""The model in this process: prompts are prefilled once, candidates of many questions decode as one batch.

The core is `Rows.step`: one token for whatever rows are alive. Nothing that was generated is tokenised again: a
candidate goes on from its own tokens and its own cache.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from lora_cot.backbones import Backbone
from lora_cot.data.collate import encode
from lora_cot.data.images import MAX_PIXELS
from lora_cot.data.labels import Encoded
from lora_cot.engines.base import Candidate, Sampling
from lora_cot.engines.causal import CausalDecoder
from lora_cot.engines.decoder import Decoder, Rows, State
from lora_cot.engines.sampling import draw
from lora_cot.engines.seq2seq import Seq2SeqDecoder
from lora_cot.errors import Problem, SearchError
from lora_cot.formats import FORMATS, CotFormat
from lora_cot.types import Sample

PREFILL_TOKENS = 16_384
"""Padded tokens of one prefill batch; bounds the memory of many long prompts."""


@dataclass
class _Row:
    """One candidate while it decodes."""

    question: int
    draws: random.Random
    after: int | None
    """The generated token that the candidate goes on from, if there is one."""
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0


class LocalEngine:
    """A backbone as an `Engine`."""

    def __init__(self, backbone: Backbone, cot_format: CotFormat, max_pixels: int = MAX_PIXELS):
        self.backbone, self.max_pixels = backbone, max_pixels
        self.encoder, self._judge_encoder = backbone.encoder(cot_format), backbone.encoder(FORMATS["direct"])
        self.tokenizer = backbone.processor.tokenizer
        self._decoder: Decoder = (Seq2SeqDecoder if backbone.family.is_encoder_decoder else CausalDecoder)(backbone)
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
            for index, state in zip(chunk, self._decoder.prefill([prompts[index] for index in chunk]), strict=True):
                states[index] = state
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
            after = [state.last if state.begun else None for state in states]
            rows = [_Row(q, random.Random(seed), after[q]) for q in questions for seed in seeds[q]]
            decoding = self._decoder.rows([states[q] for q in questions], [len(seeds[q]) for q in questions])
            for row, candidate in zip(
                rows, self._decode(decoding, rows, stop, max_new_tokens, sampling, keep_states), strict=True
            ):
                found[row.question].append(candidate)
        return found

    def _decode(
        self, decoding: Rows, rows: list[_Row], stop: str | None, max_new_tokens: int, sampling: Sampling, keep_states: bool
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
        return Candidate(self._text(visible, row.after), len(row.ids), row.logprob, closed, state)

    def _text(self, ids: Sequence[int], after: int | None = None) -> str:
        """The text of tokens; SentencePiece drops the space before the first of them, unless it is told what was before."""
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if after is None:
            return text
        before, whole = self._text([after]), self._text([after, *ids])
        return whole.removeprefix(before) if whole.startswith(before) else text

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
        return token < len(self._pieces[stop]) and bool(self._pieces[stop][token])  # a head can have more rows

    @torch.inference_mode()
    def choose(self, samples: Sequence[Sample], options: Sequence[str], adapter: bool = True) -> list[list[float]]:
        """See `Engine.choose`; an option counts by the first token in which it differs from the others.

        Raises:
            SearchError: the adapter cannot be switched off, or two options are the same.
        """
        if not adapter and not hasattr(self.model, "disable_adapter"):
            what = "this model has no adapter that could be switched off"
            raise SearchError(Problem("judge_adapter: off", what, "use a run or an adapter, not a merged model"))
        if not adapter and self.backbone.family.new_modules(self.backbone.base_model):
            what = "without its adapter this model sees by a fusion that was never trained"
            raise SearchError(Problem("judge_adapter: off", what, "leave it on"))
        self.backbone.use_adapter()
        common, firsts = self._told_apart(options)
        prompts = [encode(self._judge_encoder, sample, False, self.max_pixels) for sample in samples]
        scores: list[list[float]] = [[] for _ in samples]
        with nullcontext() if adapter else self.model.disable_adapter():
            for chunk in self._batches(prompts):
                logits = self._decoder.next_logits([prompts[index] for index in chunk], common)
                logits = logits.float().log_softmax(-1)[:, firsts]
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
