"""The model in this process: prompts are read once, candidates of many questions decode as one batch.

Its core is `Batch.step`: one token for whatever rows are alive. What prompts of one search have in common, images above
all, is read once (`Memory`), and a candidate goes on from its own tokens and its own cache.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from lora_cot.backbones import Backbone
from lora_cot.data.collate import encode
from lora_cot.data.images import MAX_PIXELS
from lora_cot.data.labels import Encoded
from lora_cot.engines.base import Ask, Candidate
from lora_cot.engines.batch import Batch
from lora_cot.engines.causal import CausalDecoder, first_tokens
from lora_cot.engines.decoder import Decoder, Prompt, Root, State
from lora_cot.engines.interleave import Interleave
from lora_cot.engines.looking import see
from lora_cot.engines.memory import Memory, common
from lora_cot.engines.seq2seq import Seq2SeqDecoder
from lora_cot.engines.texts import Texts
from lora_cot.errors import Problem, SearchError
from lora_cot.formats import FORMATS, CotFormat
from lora_cot.types import Sample

PREFILL_TOKENS = 16_384
"""Padded tokens of one batch of prompts; bounds the memory of many long ones."""


@dataclass(frozen=True)
class Encodings:
    """Prompts of one search that are not read yet."""

    memory: Memory
    keys: Sequence[Hashable]
    """Of each prompt's images."""
    prompts: Sequence[Encoded]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt, those of images included."""
        return [len(prompt.input_ids) for prompt in self.prompts]

    def part(self, begin: int, end: int) -> Encodings:
        """Some of the prompts."""
        return replace(self, keys=self.keys[begin:end], prompts=self.prompts[begin:end])


@dataclass(frozen=True)
class Options:
    """Answers that are weighed by their first difference."""

    begun: tuple[int, ...]
    """Tokens that all begin with."""
    firsts: tuple[int, ...]
    """The first token after them, of each."""


class LocalEngine:
    """A backbone as an `Engine`."""

    def __init__(self, backbone: Backbone, cot_format: CotFormat, max_pixels: int = MAX_PIXELS, adapter: bool = True):
        """
        Args:
            backbone: the model.
            cot_format: how prompts are written.
            max_pixels: images of more are refused.
            adapter: False: the base answers, whatever adapters it has.
        """
        self.backbone, self.max_pixels = backbone, max_pixels
        self.encoder, self._plain_encoder = backbone.encoder(cot_format), backbone.encoder(FORMATS["direct"])
        self._decoder: Decoder = (Seq2SeqDecoder if backbone.family.is_encoder_decoder else CausalDecoder)(backbone)
        self.texts = Texts(backbone.processor.tokenizer, self._end_tokens())
        self._adapter = adapter
        self._memory: Memory | None = None
        self._passes: dict[str, LocalEngine] = {}

    def decode_apart(self) -> None:
        """From now on decode with a tokenizer of its own: the model's may be encoding in another thread."""
        self.texts = Texts(copy.deepcopy(self.texts.tokenizer), self.texts.ends)
        for engine in self._passes.values():
            engine.decode_apart()

    def _end_tokens(self) -> set[int]:
        configured = self.backbone.model.generation_config.eos_token_id
        ends = set(configured) if isinstance(configured, list) else {configured}
        return (ends | {self.backbone.processor.tokenizer.eos_token_id}) - {None}

    def for_pass(self, cot_format: CotFormat) -> LocalEngine:
        """See `Engine.for_pass`."""
        if cot_format.name not in self._passes:
            engine = LocalEngine(self.backbone.for_pass(cot_format.name), cot_format, self.max_pixels, self._adapter)
            self._passes[cot_format.name] = engine
        return self._with(self._passes[cot_format.name], self._memory)

    def for_search(self) -> LocalEngine:
        """See `Engine.for_search`."""
        return self._with(self, Memory())

    def see(self, how: Interleave) -> Interleave:
        """See `Engine.see`."""
        return see(self._decoder, how)

    def plain(self, adapter: bool = True) -> LocalEngine:
        """See `Engine.plain`."""
        if self.backbone.family.is_encoder_decoder:
            what = "an encoder-decoder answers nothing but what it was trained on: it cannot judge"
            raise SearchError(Problem("search.scorer", what, "use logprob or reward"))
        if not adapter and not hasattr(self.backbone.model, "disable_adapter"):
            what = "this model has no adapter that could be switched off"
            raise SearchError(Problem("judge_adapter: off", what, "use a run or an adapter, not a merged model"))
        if not adapter and self.backbone.family.new_modules(self.backbone.base_model):
            what = "without its adapter this model sees by a fusion that was never trained"
            raise SearchError(Problem("judge_adapter: off", what, "leave it on"))
        engine = self._with(self, self._memory)
        engine.encoder, engine._adapter = self._plain_encoder, adapter and self._adapter
        return engine

    @staticmethod
    def _with(engine: LocalEngine, memory: Memory | None) -> LocalEngine:
        engine = copy.copy(engine)
        engine._memory = memory
        return engine

    @property
    def reader(self) -> Hashable:
        """Who reads: what one adapter makes of a prompt is not what another does."""
        return id(self.backbone.model), self.backbone.adapter, self._adapter

    @contextmanager
    def running(self) -> Iterator[None]:
        """The model as this engine runs it."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            self.backbone.use_adapter()
            if not self._adapter:
                stack.enter_context(self.backbone.model.disable_adapter())
            yield

    def start(self, samples: Sequence[Sample]) -> list[State]:
        """See `Engine.start`.

        Raises:
            DataError: an image cannot be opened.
        """
        return self.read([self.encode(samples)])[0]

    def encode(self, samples: Sequence[Sample], lock: AbstractContextManager[Any] | None = None) -> Encodings:
        """Prompts as tokens, images opened; the model is not run.

        Args:
            samples: what is asked.
            lock: see `data.collate.encode`.

        Raises:
            DataError: an image cannot be opened, or the prompt cannot be written.
        """
        memory = self._memory or Memory()
        prompts = []
        for sample in samples:
            prompts.append(encode(self.encoder, sample, False, self.max_pixels, like=memory.like(sample), lock=lock))
            memory.remember(sample, prompts[-1])
        return Encodings(memory, [Memory.key(sample) for sample in samples], prompts)

    def read(self, searches: Sequence[Encodings]) -> list[list[State]]:
        """The states of prompts of several searches, read together."""
        with self.running():
            openings = [[self._decoder.opening(prompt) for prompt in one.prompts] for one in searches]
            rooted = [
                self._rooted([prompt for prompt, _ in mine], one.keys, one.memory)
                for one, mine in zip(searches, openings, strict=True)
            ]
            roots = iter(self._read([prompt for mine in rooted for prompt in mine]))
            found = []
            for one, mine, prompts in zip(searches, openings, rooted, strict=True):
                states = [State(next(roots), first) for _, first in mine]
                for key, prompt, state in zip(one.keys, prompts, states, strict=True):
                    one.memory.store(self.reader, key, prompt.encoded.input_ids, state.root)
                found.append(states)
            return found

    def batch(self) -> Batch:
        """An empty batch for asks of this engine; its steps are made while the engine is `running`."""
        return Batch(self._decoder, self.texts)

    def extend(self, asks: Sequence[Ask]) -> list[list[Candidate]]:
        """See `Engine.extend`. Equal draws are promised in float32 on a CPU; elsewhere batches may round differently."""
        with self.running():
            batch = self.batch()
            jobs = [batch.add(ask) for ask in asks]
            while not batch.is_empty:
                batch.step()
        return [[job.candidates[number] for number in range(len(job.ask.seeds))] for job in jobs]

    def choose(self, samples: Sequence[Sample], options: Sequence[str], deadline: float | None = None) -> list[list[float]]:
        """See `Engine.choose`; an option counts by the first token in which it differs from the others.

        Raises:
            SearchError: two options are the same.
        """
        return self.weigh([self.encode(samples)], self.told_apart(options))[0]

    def weigh(self, searches: Sequence[Encodings], options: Options) -> list[list[list[float]]]:
        """For each prompt of several searches the log-probability of each option."""
        with self.running():
            rooted = [self._rooted(one.prompts, one.keys, one.memory, spare=1) for one in searches]
            prompts = [prompt for mine in rooted for prompt in mine]
            scores: list[list[float]] = [[] for _ in prompts]
            for chunk in _batches(prompts, self.backbone):
                logits = self._decoder.next_logits([prompts[index] for index in chunk], options.begun).float()
                rows = logits.log_softmax(-1)[:, list(options.firsts)].tolist()
                for index, row in zip(chunk, rows, strict=True):
                    scores[index] = row
        rest = iter(scores)
        return [[next(rest) for _ in mine] for mine in rooted]

    def told_apart(self, options: Sequence[str]) -> Options:
        """Where options differ first.

        Raises:
            SearchError: two options are the same.
        """
        ids = [self._plain_encoder.answer_ids(option) for option in options]
        begun = next((i for i, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1), 0)
        firsts = tuple(tokens[begun] for tokens in ids)
        if len(set(firsts)) < len(firsts):
            raise SearchError(f"the options {list(options)} cannot be told apart by a token")
        return Options(tuple(ids[0][:begun]), firsts)

    def _rooted(self, prompts: Sequence[Encoded], keys: Sequence[Hashable], memory: Memory, spare: int = 0) -> list[Prompt]:
        """Prompts with what is known of their beginnings; what several with the same images begin with is read first.

        Args:
            prompts: whole.
            keys: of their images.
            memory: of the search.
            spare: tokens at the end of each that are read again, known or not.
        """
        if self.backbone.family.is_encoder_decoder:
            return [Prompt(prompt) for prompt in prompts]
        groups: dict[Hashable, list[Encoded]] = {}
        for key, prompt in zip(keys, prompts, strict=True):
            groups.setdefault(key, []).append(prompt)
        shared = {key: _beginning(group) for key, group in groups.items() if len(group) > 1}
        found = {key: Prompt(begin, memory.root(self.reader, key, begin)) for key, begin in shared.items()}
        unread = {key: prompt for key, prompt in found.items() if prompt.ids}
        for (key, one), root in zip(unread.items(), self._read([*unread.values()]), strict=True):
            memory.store(self.reader, key, one.encoded.input_ids, root)
        known = [memory.root(self.reader, key, prompt, spare) for key, prompt in zip(keys, prompts, strict=True)]
        return [Prompt(prompt, root) for prompt, root in zip(prompts, known, strict=True)]

    def _read(self, prompts: Sequence[Prompt]) -> list[Root]:
        """What each prompt leaves in the cache, in order."""
        roots: dict[int, Root] = {index: p.root for index, p in enumerate(prompts) if p.root and not p.ids}
        waiting = [index for index in range(len(prompts)) if index not in roots]
        for chunk in _batches([prompts[index] for index in waiting], self.backbone):
            chosen = [waiting[place] for place in chunk]
            roots |= zip(chosen, self._decoder.read([prompts[index] for index in chosen]), strict=True)
        return [roots[index] for index in range(len(prompts))]


def _beginning(prompts: Sequence[Encoded]) -> Encoded:
    """What prompts with the same images begin with, and go on after; nothing, if an image comes after it."""
    length = min(len(prompt.input_ids) - 1 for prompt in prompts)
    for prompt in prompts[1:]:
        length = min(length, common(prompts[0].input_ids, prompt.input_ids))
    return first_tokens(prompts[0], length if Memory.has_images(prompts[0], length) else 0)


def _batches(prompts: Sequence[Prompt], backbone: Backbone) -> Iterator[list[int]]:
    """Places of prompts of like length that may share a batch."""

    def kind(prompt: Prompt) -> tuple[Hashable, ...]:
        rooted = prompt.root.kv.shape_key if prompt.root else None
        return (prompt.root is not None, rooted or (), backbone.family.batch_key(prompt.encoded.images))

    order = sorted(range(len(prompts)), key=lambda i: (kind(prompts[i]), len(prompts[i].encoded.input_ids)))
    while order:
        chunk = [order[0]]
        for index in order[1:]:
            width = len(prompts[index].encoded.input_ids)
            if kind(prompts[index]) != kind(prompts[order[0]]) or width * (len(chunk) + 1) > PREFILL_TOKENS:
                break
            chunk.append(index)
        order = order[len(chunk) :]
        yield chunk
