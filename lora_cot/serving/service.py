"""Requests from their arrival to their answer, whatever API they came by."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from lora_cot.formats import CotFormat
from lora_cot.recipe.search import UNSCORED
from lora_cot.search.cost import most_shown, most_tokens
from lora_cot.search.drive import drive
from lora_cot.search.run import prepare, run
from lora_cot.search.trace import Completion, TracedStage
from lora_cot.serving.errors import NO_ANSWER, ApiError, told, told_whole
from lora_cot.serving.events import Accepted, Decided, Done, Event, Text, Wanted
from lora_cot.serving.faults import PAUSE_SECONDS
from lora_cot.serving.fetching import Fetcher
from lora_cot.serving.limits import Admission, Limits, Place
from lora_cot.serving.metrics import Metrics
from lora_cot.serving.models import ServedModel
from lora_cot.serving.room import Load
from lora_cot.serving.scheduler import Scheduler
from lora_cot.serving.settings import image_urls, sample_of, search_of, within
from lora_cot.serving.tickets import Ticket

PREPARING = 4
"""Requests whose images are opened at once."""


class Service:
    """The models of a server and all requests to them."""

    def __init__(self, models: Sequence[ServedModel], limits: Limits, scheduler: Scheduler | None = None):
        """
        Args:
            models: by which a request names what answers; the first one is the default of nothing: a name is needed.
            limits: bounds of the server.
            scheduler: that runs them, if this process does.
        """
        self.models: Mapping[str, ServedModel] = {model.name: model for model in models}
        self.limits, self.scheduler, self.metrics = limits, scheduler, Metrics()
        self.admission = Admission(limits, self._speed)
        self.runs: weakref.WeakSet[Run] = weakref.WeakSet()
        """Requests that are answered."""
        self._fetcher = Fetcher(limits.fetching)
        self._preparing = ThreadPoolExecutor(PREPARING, "prepare")
        self._searching = ThreadPoolExecutor(limits.max_requests, "search")

    def _speed(self) -> float:
        scheduler = self.scheduler
        return scheduler.tokens / scheduler.step_seconds if scheduler and scheduler.step_seconds else 100.0

    @property
    def is_healthy(self) -> bool:
        """Whether an answer can be expected."""
        return self.scheduler is None or self.scheduler.is_healthy

    @property
    def is_ready(self) -> bool:
        """Whether a request would be let in."""
        return self.is_healthy and self.admission.is_open and all(model.is_ready() for model in self.models.values())

    @property
    def load(self) -> Load:
        """What the engine has to do."""
        return self.scheduler.load if self.scheduler else Load()

    def model(self, name: str) -> ServedModel:
        """The model of that name.

        Raises:
            ApiError: 404: there is none.
        """
        if name not in self.models:
            raise ApiError(404, f"no such model; there are: {', '.join(self.models)}", "model_not_found", "model")
        return self.models[name]

    async def begin(self, wanted: Wanted, place: Place) -> Run:
        """Start on a request, once it was found that it can be answered and that there is room.

        Args:
            wanted: what is asked for.
            place: the request's; it is given back at the end of its run. If there is none, whoever entered gives it back.

        Raises:
            ApiError, DataError, SearchError: it cannot, or there is none.
        """
        model = self.model(wanted.model)
        begun = Run(self, place, self._is_trial(model))
        fetched = await self._fetcher.fetched(image_urls(wanted.messages, self.limits), place.hold)
        prepare = partial(self._prepare, model, wanted, fetched, begun)
        with self.scheduler.inbox.expecting() if self.scheduler else contextlib.nullcontext():
            question, cost = await asyncio.get_running_loop().run_in_executor(self._preparing, prepare)
            place.take(cost)
        begun.start(question, self._searching)
        self.runs.add(begun)
        return begun

    def _is_trial(self, model: ServedModel) -> bool:
        """Whether a request to a model that fails again and again is let in to see whether it still does.

        Raises:
            ApiError: 503: it has to wait; or nothing is answered any more.
        """
        if self.scheduler is None:
            return False
        if not self.scheduler.is_running:
            raise ApiError(503, "the engine is out of order", "engine_unavailable", retry_after=30)
        if self.scheduler.faults.refuses(model.readers):
            what = "this model failed again and again; it is tried again in a while"
            raise ApiError(503, what, "engine_unavailable", retry_after=PAUSE_SECONDS)
        return self.scheduler.faults.is_trial(model.readers)

    def _prepare(self, model: ServedModel, wanted: Wanted, fetched: Mapping[str, bytes], begun: Run) -> tuple[Accepted, int]:
        """The question, and what it may cost in tokens. Images are opened here, and nothing runs yet."""
        sample = sample_of(wanted.messages, self.limits, fetched)
        config = search_of(model, wanted.effort, wanted.options, wanted.sampling, self.limits)
        tells = wanted.stream and wanted.n == 1 and config.strategy in UNSCORED and model.streams_tokens
        until = None if config.deadline_seconds is None else wanted.arrived + config.deadline_seconds
        ticket = Ticket(begun.told if tells else None, until)
        begun.ticket = ticket
        engine = model.engine(ticket).for_search()
        passes = prepare(engine, model.cot_format, config)
        prompt = model.count(passes[0].engine, sample)
        shown = partial(most_shown, passes[0], sample, prompt)
        config = within(model, config, prompt, wanted.most_tokens, shown)
        samples = tuple(replace(sample, id=f"{sample.id}.{number}" if number else sample.id) for number in range(wanted.n))
        cost = most_tokens(passes, sample, config, model.most or model.count)
        ticket.most_judged = wanted.n * cost.judged
        return Accepted(model, samples, config, passes, ticket, wanted.arrived, tells), wanted.n * cost.tokens

    def expire(self) -> None:
        """End what still runs; its clients are told."""
        for one in [*self.runs]:
            one.expire(ApiError(503, "the server is shutting down", "engine_unavailable", retry_after=10))

    def close(self) -> None:
        """End all threads; what another server is asked is given up."""
        for model in self.models.values():
            model.close()
        self._fetcher.close()
        self._preparing.shutdown(wait=False, cancel_futures=True)
        self._searching.shutdown(wait=False, cancel_futures=True)
        if self.scheduler is not None:
            self.scheduler.stop()


class Run:
    """A request while it is answered; made and read in the event loop."""

    question: Accepted

    def __init__(self, service: Service, place: Place, is_trial: bool):
        self._service, self._place, self._is_trial = service, place, is_trial
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | BaseException] = asyncio.Queue()
        self._future: Future[None] | None = None
        self._is_first, self._is_over = True, False
        self._failed: list[Event] = []
        """Steps without any candidate, before anything else was told."""
        self.ticket: Ticket | None = None

    def start(self, question: Accepted, pool: ThreadPoolExecutor) -> None:
        """Search, in a thread."""
        self.question = question
        self._future = pool.submit(self._search)

    def told(self, cot_format: CotFormat, text: str) -> None:
        """The engine tells a piece of text."""
        self._put(Text(text, cot_format if cot_format.given is not None else None))

    async def next(self) -> list[Event]:
        """What has happened since; at least one thing.

        Raises:
            Exception: whatever ended the search.
        """
        found = [await self._events.get()]
        while not self._events.empty():
            found.append(self._events.get_nowait())
        events: list[Event] = []
        for event in found:
            if isinstance(event, BaseException):
                if events:  # what came before it is told first
                    self._events.put_nowait(event)
                    break
                raise event
            events.append(event)
        return events

    async def result(self) -> list[Completion]:
        """All answers.

        Raises:
            Exception: whatever ended the search.
        """
        while True:
            for event in await self.next():
                if isinstance(event, Done):
                    return event.completions

    def cancel(self) -> None:
        """Nobody waits for it any more, if it still runs."""
        if self._is_over or self.ticket is None:
            return
        self._is_over = True
        self._service.metrics.cancelled.inc()
        self.ticket.cancel()
        if self._future is not None and self._future.cancel():
            self._place.leave()  # it had not begun
        if self._service.scheduler is not None:
            self._service.scheduler.wake()

    def expire(self, error: BaseException) -> None:
        """End it with an error, that its client is told."""
        if not self._is_over:
            self._events.put_nowait(error)

    def _put(self, event: Event | BaseException) -> None:
        if self._is_first and isinstance(event, Decided) and all(one.problem for one in event.step.candidates):
            self._failed.append(event)  # told with the next event: if that is an error, there is nothing to stream
            return
        if not isinstance(event, BaseException):
            for failed in self._failed:
                self._loop.call_soon_threadsafe(self._events.put_nowait, failed)
            self._failed.clear()
        if self._is_first and not isinstance(event, BaseException):
            self._is_first = False
            self._service.metrics.first.observe(time.monotonic() - self.question.arrived)
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _search(self) -> None:
        question, metrics = self.question, self._service.metrics
        stages = [stage.name for stage in question.model.cot_format.stages]

        def decided(number: int, step: TracedStage) -> None:
            metrics.decided(step, stages)
            self._put(Decided(number, told(step)))

        try:
            fixed = question.passes, question.model.cot_format
            searches = [
                run(*fixed, sample, question.config, partial(decided, number), question.ticket.deadline)
                for number, sample in enumerate(question.samples)
            ]
            completions = drive(searches)
            failed = [c.problem for found in completions for step in found.trace for c in step.candidates if c.problem]
            if failed and not any(found.text.strip() for found in completions):
                raise ApiError(503, NO_ANSWER, "engine_unavailable", retry_after=5)
            metrics.answered(completions, question.ticket.spent)
            if self._is_trial and self._service.scheduler is not None:
                self._service.scheduler.faults.forget(question.model.readers)
            event: Event | BaseException = Done([told_whole(completion) for completion in completions])
        except BaseException as error:  # told to whoever waits
            event = error
        self._place.leave()
        self._is_over = True
        with contextlib.suppress(RuntimeError):  # the server is gone
            self._put(event)
        # what was read of the prompt goes now, and not when a collector finds these cycles
        question.ticket.on_text = None
        del event
