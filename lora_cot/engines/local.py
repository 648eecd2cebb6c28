"""The model in this process: prompts are prefilled once, candidates of many questions decode as one batch.

The core is `_Rows.step`: one token for whatever rows are alive. Nothing that was generated is tokenised again: a
candidate goes on from its own tokens and its own cache.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from lora_cot.backbones import Backbone
from lora_cot.data.collate import batch, encode
from lora_cot.data.images import MAX_PIXELS
from lora_cot.data.labels import IGNORE_INDEX, NO_STAGE, Encoder
from lora_cot.engines.base import Candidate, Sampling
from lora_cot.engines.cache import pack, unpack
from lora_cot.errors import Problem, SearchError
from lora_cot.formats import FORMATS, CotFormat
from lora_cot.types import Sample

PREFILL_TOKENS = 16_384
"""Padded tokens of one prefill batch; bounds the memory of many long prompts."""


@dataclass(frozen=True)
class State:
    """A text that can be continued."""

    kv: torch.Tensor
    """(L, 2, H, T, D) keys and values of all tokens but the last."""
    last: int
    """The last token; it is fed when the text is continued."""


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
        self._ends = self._end_tokens()
        self._pieces: dict[str, torch.Tensor] = {}

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
        states: list[State | None] = [None] * len(samples)
        for chunk, inputs, lengths in self._prefills(samples, self.encoder):
            inputs = {
                name: value[:, :-1] if name in ("input_ids", "attention_mask") else value for name, value in inputs.items()
            }
            last = inputs.pop("last")
            cache = self._forward(inputs, cache=DynamicCache()).past_key_values
            longest = inputs["input_ids"].shape[1]
            for row, index in enumerate(chunk):
                kv = unpack(cache, row, longest - (lengths[row] - 1))
                states[index] = State(kv, int(last[row]))
        return [state for state in states if state is not None]

    def _prefills(
        self, samples: Sequence[Sample], encoder: Encoder, more: Sequence[int] = ()
    ) -> Iterator[tuple[list[int], dict[str, torch.Tensor], list[int]]]:
        """Batches of prompts of like length, those with images apart from those without; `more` tokens at their end."""
        encoded = [encode(encoder, sample, False, self.max_pixels) for sample in samples]
        for prompt in encoded:
            prompt.input_ids.extend(more)
            prompt.labels.extend([IGNORE_INDEX] * len(more))
            prompt.stage_ids.extend([NO_STAGE] * len(more))
        order = sorted(range(len(samples)), key=lambda i: (bool(encoded[i].image_inputs), len(encoded[i].input_ids)))
        while order:
            with_images = bool(encoded[order[0]].image_inputs)
            chunk = [order[0]]
            for index in order[1:]:
                width = len(encoded[index].input_ids)
                if bool(encoded[index].image_inputs) != with_images or width * (len(chunk) + 1) > PREFILL_TOKENS:
                    break
                chunk.append(index)
            order = order[len(chunk) :]
            rows = [encoded[index] for index in chunk]
            inputs = batch(rows, self.backbone.processor, self.backbone.family.image_inputs, left=True)
            for name in ("labels", "stage_ids"):
                inputs.pop(name)
            inputs["last"] = inputs["input_ids"][:, -1]
            yield chunk, self.backbone.place(inputs), [len(row.input_ids) for row in rows]

    def _forward(self, inputs: dict[str, torch.Tensor], cache: Any = None) -> Any:
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)[:, -inputs["input_ids"].shape[1] :]
        return self.model(
            **inputs, position_ids=positions, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1
        )

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
        rows = [_Row(q, random.Random(seed)) for q, mine in enumerate(seeds) for seed in mine]
        cache, padding = pack([state.kv for state in states], [len(mine) for mine in seeds])
        decoding = _Rows(self, cache, padding.to(self.backbone.device), [states[row.question].last for row in rows])
        found: list[Candidate | None] = [None] * len(rows)
        alive = list(range(len(rows)))
        for _ in range(max_new_tokens):
            tokens, logprobs = _draw(decoding.step(), sampling, [rows[i].draws for i in alive])
            gone = []
            for place, index in enumerate(alive):
                row, token = rows[index], tokens[place]
                row.ids.append(token)
                row.logprob += logprobs[place]
                closed = self._closed(row.ids, stop)
                if closed is not None or len(row.ids) == max_new_tokens:
                    state = State(decoding.state(place), token) if keep_states else None
                    found[index] = self._candidate(row, bool(closed), state)
                    gone.append(place)
            kept = [place for place in range(len(alive)) if place not in set(gone)]
            alive = [alive[place] for place in kept]
            if not alive:
                break
            decoding.feed([tokens[place] for place in kept], kept if gone else None)
        by_question: list[list[Candidate]] = [[] for _ in states]
        for row, candidate in zip(rows, found, strict=True):
            assert candidate is not None
            by_question[row.question].append(candidate)
        return by_question

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
        common, firsts = self._told_apart(options)
        scores: list[list[float]] = [[] for _ in samples]
        with nullcontext() if adapter else self.model.disable_adapter():
            for chunk, inputs, _ in self._prefills(samples, self._judge_encoder, common):
                inputs.pop("last")
                logits = self._forward(inputs).logits[:, -1].float().log_softmax(-1)[:, firsts]
                for row, index in enumerate(chunk):
                    scores[index] = logits[row].tolist()
        return scores

    def _told_apart(self, options: Sequence[str]) -> tuple[list[int], list[int]]:
        """The tokens all options begin with, and the first one after them of each."""
        ids = [self._judge_encoder.answer_ids(option) for option in options]
        common = next((i for i, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1), 0)
        firsts = [tokens[common] for tokens in ids]
        if len(set(firsts)) < len(firsts):
            raise SearchError(f"the options {list(options)} cannot be told apart by a token")
        return ids[0][:common], firsts


class _Rows:
    """Rows that decode together over one cache."""

    def __init__(self, engine: LocalEngine, cache: Any, padding: torch.Tensor, last: list[int]):
        self._engine, self._cache, self._padding = engine, cache, padding
        self._input = torch.tensor(last, device=padding.device)

    def step(self) -> torch.Tensor:
        """Feed each row's last token; returns logits (rows, V) of the next."""
        length = self._cache.get_seq_length() + 1
        mask = torch.arange(length, device=self._padding.device) >= self._padding[:, None]
        inputs = {"input_ids": self._input[:, None], "attention_mask": mask.long()}
        return self._engine._forward(inputs, self._cache).logits[:, -1].float()

    def feed(self, tokens: list[int], kept: list[int] | None) -> None:
        """The tokens to feed next; with `kept`, all other rows leave."""
        if kept is not None:
            rows = torch.tensor(kept, device=self._padding.device)
            self._padding = self._padding[rows]
            for layer in self._cache.layers:
                layer.keep(rows)
        self._input = torch.tensor(tokens, device=self._padding.device)

    def state(self, row: int) -> torch.Tensor:
        """Keys and values of one row, out of the batch."""
        return unpack(self._cache, row, int(self._padding[row]))


def _draw(logits: torch.Tensor, sampling: Sampling, draws: list[random.Random]) -> tuple[list[int], list[float]]:
    """One token for each row and its log-probability at temperature 1."""
    logprobs = logits.log_softmax(-1)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        probabilities, order = (logits / sampling.temperature).softmax(-1).sort(-1, descending=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
        reach = probabilities.cumsum(-1)
        uniform = torch.tensor([draw.random() for draw in draws], device=logits.device)
        place = (reach <= (uniform * reach[:, -1])[:, None]).sum(-1)
        place = place.minimum((probabilities > 0).sum(-1) - 1)  # a draw may round up to 1
        tokens = order.gather(-1, place[:, None])[:, 0]
    return tokens.tolist(), logprobs.gather(-1, tokens[:, None])[:, 0].tolist()
