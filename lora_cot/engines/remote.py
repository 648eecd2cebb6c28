"""A model behind an OpenAI-compatible server as an `Engine`.

A state is the chat so far and the accepted beginning of the answer, which the server goes on from; its prefix cache has
read all but the end of it. The server tokenises that beginning anew: a boundary inside what was one token can move.

A server promises no draw to a candidate. Ours is that the same seeds make the same request; what it makes of the `seed` in
it is its own affair. At temperature 0 all candidates of an ask are one. What fails, fails for its ask alone: the candidates
say why.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lora_cot.data.images import MAX_PIXELS
from lora_cot.engines.base import Ask, Candidate, Sampling
from lora_cot.engines.capabilities import Capabilities, probe
from lora_cot.engines.chat import ChatServer, Patience
from lora_cot.engines.choices import count, option_logprobs, read_end, stop_strings
from lora_cot.engines.completions import Answer
from lora_cot.engines.interleave import Interleave
from lora_cot.engines.prompts import chat_messages
from lora_cot.engines.retries import Circuit, Retries
from lora_cot.engines.served import CONTINUE, KEEP, TEMPLATE, Served, ask_served, find_served
from lora_cot.engines.threads import in_threads
from lora_cot.errors import EngineError, Problem, RejectedError, SearchError
from lora_cot.formats import FORMATS, CotFormat
from lora_cot.recipe.interleave import UNSERVED
from lora_cot.types import Sample

REQUESTS = 16
"""Sent at once; the server makes batches of them."""


@dataclass(frozen=True)
class RemoteState:
    """A text that can be continued."""

    messages: list[dict[str, Any]] = field(repr=False)
    """Shared by all states of a question; images are in it."""
    retries: Retries = field(repr=False)
    begun: str = ""
    """The accepted beginning of the answer."""


@dataclass
class Link:
    """A server, and what is known of it. Engines share it."""

    server: ChatServer
    capabilities: Capabilities
    circuit: Circuit
    many: bool
    """It still gives several candidates a request."""


@dataclass(frozen=True)
class RemoteEngine:
    """A served model as an `Engine`; see `RemoteEngine.open`."""

    link: Link
    cot_format: CotFormat
    served: Served
    others: Mapping[str, Served]
    """Served models by the name of the pass that they are the adapter of, and `base`."""
    max_pixels: int = MAX_PIXELS
    retries: Retries | None = None
    """What the search may spend on asking again."""

    @classmethod
    def open(
        cls,
        url: str,
        cot_format: CotFormat,
        model: str | None = None,
        key: str | None = None,
        patience: Patience | None = None,
        others: Mapping[str, str] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> RemoteEngine:
        """An engine on a server, after it was seen to do what a search needs.

        Args:
            url: the server's address.
            cot_format: how prompts are written.
            model: name of the served model; may be left out where there is one only.
            key: sent with every request, and in no text.
            patience: how long each request is waited for.
            others: names of more served models: by pass, the adapters of a split format; as `base`, the model without its
                adapter, for a judge.
            max_pixels: images of more are refused.

        Raises:
            AccessError: the server does not let us, serves no such model, or lacks what a search needs.
            EngineError: it gave no answer.
        """
        server = ChatServer(url, key, patience)
        named = {name: find_served(server, other) for name, other in (others or {}).items()}
        passes = [named[one.name] for one in cot_format.passes if one.name in named]
        served = passes[0] if passes and model is None else find_served(server, model)
        capabilities = probe(server, served)
        return cls(Link(server, capabilities, Circuit(), capabilities.many), cot_format, served, named, max_pixels)

    def __str__(self) -> str:
        return f"{self.served.name} at {self.link.server.url}: {self.link.capabilities}"

    def close(self) -> None:
        """Give up all that is still asked."""
        self.link.server.close()

    def give_up(self) -> None:
        """Give up what is still asked for this search; see `for_search`."""
        if self.retries is not None:
            self.retries.waits.give_up()

    @property
    def is_resting(self) -> bool:
        """Whether the server left so much unanswered that nothing is asked of it for a while."""
        return self.link.circuit.is_open

    def for_pass(self, cot_format: CotFormat) -> RemoteEngine:
        """See `Engine.for_pass`.

        Raises:
            SearchError: it is not known which served model has this pass's adapter.
        """
        if cot_format.name not in self.others:
            what = f"no served model is named for the pass {cot_format.name}"
            raise SearchError(Problem(self.link.server.url, what, f"serve its adapter, and name it: {cot_format.name}=NAME"))
        return replace(self, cot_format=cot_format, served=self.others[cot_format.name])

    def for_search(self) -> RemoteEngine:
        """See `Engine.for_search`; a search has a budget for asking again."""
        return replace(self, retries=Retries(self.link.circuit))

    def see(self, how: Interleave) -> Interleave:
        """See `Engine.see`; no server can."""
        raise SearchError(UNSERVED)

    def plain(self, adapter: bool = True) -> RemoteEngine:
        """See `Engine.plain`.

        Raises:
            SearchError: the base is not served.
        """
        if not adapter and "base" not in self.others:
            what = "it is not known under which name the server has the model without its adapter"
            raise SearchError(Problem("judge_adapter: off", what, "serve the base too, and name it: base=NAME"))
        return replace(self, cot_format=FORMATS["direct"], served=self.served if adapter else self.others["base"])

    def start(self, samples: Sequence[Sample]) -> list[RemoteState]:
        """See `Engine.start`; nothing is sent.

        Raises:
            DataError: an image cannot be opened.
            SearchError: the served model takes no images.
        """
        if any(sample.images for sample in samples) and not self.link.capabilities.images:
            what = f"{self.served.name} takes no images there"
            raise SearchError(Problem(self.link.server.url, what, "serve a vision-language model, with its processor"))
        retries = self.retries or Retries(self.link.circuit)
        return [RemoteState(chat_messages(self.cot_format, sample, self.max_pixels), retries) for sample in samples]

    def extend(self, asks: Sequence[Ask]) -> list[list[Candidate]]:
        """See `Engine.extend`. One request an ask where the server knows `n`, else one a candidate."""
        found: list[dict[int, Candidate]] = [{} for _ in asks]
        together = self.link.many
        while jobs := [job for number, ask in enumerate(asks) for job in _jobs(number, ask, found[number], together)]:
            for (number, places), got in in_threads(lambda job: self._draw(asks[job[0]], job[1]), jobs, REQUESTS):
                candidates = [_failed(got)] * len(places) if isinstance(got, EngineError) else got
                if len(candidates) < len(places):
                    self.link.many = False
                found[number].update(zip(places, candidates, strict=False))
            together = False  # what a server that ignores `n` left out is asked for one by one
        return [[candidates[place] for place in range(len(ask.seeds))] for ask, candidates in zip(asks, found, strict=True)]

    def _draw(self, ask: Ask, places: Sequence[int]) -> list[Candidate]:
        """Candidates for some of an ask's seeds: at least one, at most as many."""
        begin = time.monotonic()
        late = Candidate("", 0, 0.0, "deadline", ask.state if ask.keep_states else None)
        if ask.deadline is not None and begin >= ask.deadline:
            return [late] * len(places)
        copies = len(places) if _alike(ask) else 1  # vLLM refuses an `n` where nothing is drawn
        stops = {"stop": stops} if (stops := stop_strings(ask)) else {}
        seed = _seed([ask.seeds[place] for place in places])
        keys = {"max_tokens": ask.max_new_tokens, "n": len(places) // copies, "seed": seed, **stops, **_sampling(ask.sampling)}
        if self.link.capabilities.logprobs:
            keys["logprobs"] = True
        try:
            answer = self._ask(ask.state, keys, ask.deadline)
        except EngineError as error:
            if ask.deadline is not None and time.monotonic() >= ask.deadline:
                return [replace(late, seconds=time.monotonic() - begin)] * len(places)
            raise EngineError(error.problems) from None
        seconds = time.monotonic() - begin
        given = min(len(answer.replies), len(places) // copies)
        drawn = [_candidate(ask, answer, number, seconds) for number in range(given)]
        return drawn + [replace(candidate, is_copy=True) for candidate in drawn for _ in range(copies - 1)]

    def _ask(self, state: RemoteState, keys: Mapping[str, Any], until: float | None = None) -> Answer:
        begun = CONTINUE if state.begun.strip() else {}
        asked = {**keys, **KEEP, **TEMPLATE, **begun}
        begin = state.begun if begun else ""
        server = self.link.server
        return ask_served(server, self.served, state.messages, begin, asked, until=until, retries=state.retries)

    def choose(self, samples: Sequence[Sample], options: Sequence[str], deadline: float | None = None) -> list[list[float]]:
        """See `Engine.choose` and `option_logprobs`; nan for all options of a prompt that there is no verdict on.

        Raises:
            SearchError: the server tells no odds that a verdict could be read from; or see `start`.
            DataError: see `start`.
        """
        if not self.link.capabilities.top_logprobs:
            what = "the server does not list the likeliest tokens, which verdicts are read from"
            raise SearchError(Problem(self.link.server.url, what, "switch its logprobs on, or use another scorer"))
        keys = {"max_tokens": 2, "logprobs": True, "top_logprobs": self.link.capabilities.top_logprobs}
        states = self.start(samples)

        def read(number: int) -> list[float]:
            if deadline is not None and time.monotonic() >= deadline:
                raise EngineError("the time is over")
            try:
                found = self._ask(states[number], {**keys, "temperature": 0.0}, deadline)
                return option_logprobs(found.replies[0], options)
            except RejectedError as error:
                raise EngineError(error.problems) from None

        found = dict(in_threads(read, range(len(samples)), REQUESTS))
        rows = [found[number] for number in range(len(samples))]
        return [[math.nan] * len(options) if isinstance(row, EngineError) else row for row in rows]


def _jobs(number: int, ask: Ask, found: Mapping[int, Candidate], together: bool) -> list[tuple[int, list[int]]]:
    """Requests for the seeds of an ask that have no candidate: its number, and their places."""
    left = [place for place in range(len(ask.seeds)) if place not in found]
    if left and (together or _alike(ask)):
        return [(number, left)]
    return [(number, [place]) for place in left]


def _alike(ask: Ask) -> bool:
    """Whether all its candidates are one text."""
    return ask.sampling.temperature == 0


def _seed(seeds: Sequence[str]) -> int:
    """One number for a request, since a server takes no more."""
    return int.from_bytes(hashlib.sha256("\n".join(seeds).encode()).digest()[:4]) >> 1


def _sampling(sampling: Sampling) -> dict[str, float]:
    return {"temperature": sampling.temperature} | ({"top_p": sampling.top_p} if sampling.temperature else {})


def _failed(error: EngineError) -> Candidate:
    return Candidate("", 0, math.nan, "failed", None, problem=str(error))


def _candidate(ask: Ask, answer: Answer, number: int, seconds: float) -> Candidate:
    try:
        text, ended = read_end(answer.replies[number], ask)
        tokens, logprob, shared = count(answer, number, ask.max_new_tokens)
    except EngineError as error:
        return replace(_failed(error), seconds=seconds)
    state = replace(ask.state, begun=ask.state.begun + text) if ask.keep_states else None
    return Candidate(text, tokens, logprob, ended, state, seconds, tokens_shared=shared)
