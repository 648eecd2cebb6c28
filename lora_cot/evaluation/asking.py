"""A benchmark's questions, asked batch by batch. None is lost to a server that is away for a while, or to its neighbour."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from lora_cot.checkpoints.opening import Opened
from lora_cot.data.images import image_size
from lora_cot.data.labels import Encoded
from lora_cot.engines.opening import AnyOpened, OpenedRemote, engine_of
from lora_cot.engines.retries import Circuit
from lora_cot.errors import DataError, EngineError, Problem
from lora_cot.formats import CotFormat
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.run import answer
from lora_cot.search.trace import Completion
from lora_cot.types import Sample

UNASKABLE = "cannot be asked"
"""How the reason of a question begins that there is no prompt of."""
RESTS = 10
"""How often in a row a server that gives no answer is left to rest."""
Ask = Callable[[Sequence[Sample]], list[Completion]]
"""Answers to one batch, in order."""


def answers(
    opened: AnyOpened, cot_format: CotFormat, samples: Sequence[Sample], config: SearchSection
) -> Iterator[tuple[Sample, Completion]]:
    """Each sample with its answer, as soon as its batch is done.

    Args:
        opened: the model, here or on a server.
        cot_format: as the model's family spells it.
        samples: a question that cannot be asked, such as one whose image is damaged, has that for an answer.
        config: strategy and settings.

    Raises:
        SearchError, AccessError: see `search.run.answer`.
        EngineError: the server gives no answer, however long it is left to rest.
    """
    from tqdm import tqdm

    engine, size = engine_of(opened, cot_format), opened.recipe.evaluation.batch_size
    if isinstance(opened, Opened):
        with suppress(DataError):  # told of its question, when that is asked
            opened.backbone.prepare(samples, opened.recipe.data.max_pixels)

    check = fitting(opened, cot_format) if isinstance(opened, Opened) else lambda _: None  # a server checks for itself

    def ask_all(batch: Sequence[Sample]) -> list[Completion]:
        for sample in batch:
            check(sample)
        return answer(engine, cot_format, batch, config)

    def ask(batch: Sequence[Sample]) -> list[Completion]:
        return each(ask_all, batch, cot_format)

    with tqdm(total=len(samples), desc=config.strategy, unit="question", file=sys.stderr, mininterval=2) as bar:
        for begin in range(0, len(samples), size):
            batch = samples[begin : begin + size]
            done = patiently(ask, batch, opened.engine.link.circuit) if isinstance(opened, OpenedRemote) else ask(batch)
            bar.update(len(batch))
            yield from zip(batch, done, strict=True)


def each(ask: Ask, batch: Sequence[Sample], cot_format: CotFormat) -> list[Completion]:
    """Answers to a batch; what is wrong with the data of one question is that one's answer."""
    try:
        return ask(batch)
    except DataError as error:
        if len(batch) == 1:
            return [Completion(batch[0].id, "", cot_format.parse(""), f"{UNASKABLE}: {error}")]
    middle = len(batch) // 2
    return each(ask, batch[:middle], cot_format) + each(ask, batch[middle:], cot_format)


def fitting(opened: Opened, cot_format: CotFormat) -> Callable[[Sample], None]:
    """A check that a question's first prompt is no longer than the model's positions, beyond which it writes nonsense.

    The check raises DataError: it is longer; an image's header cannot be read.
    """
    backbone, max_pixels = opened.backbone, opened.recipe.data.max_pixels
    encoder = backbone.encoder(cot_format.passes[0])
    config: Any = backbone.base_model.config
    most = getattr(config.get_text_config(), "max_position_embeddings", math.inf)  # a T5 counts distances: they have no end

    def check(sample: Sample) -> None:
        sizes = [image_size(image, max_pixels) for image in sample.images]
        unseen = Encoded([], [], [], {}, len(sizes), [[] for _ in sizes])
        text = len(encoder.prompt(sample, [], unseen).input_ids)
        images = sum(backbone.family.image_tokens(encoder.processor, sizes)) if sizes else 0
        if text + images > most:
            what = f"its prompt takes {text + images} tokens ({images} of images), more than the {most} of the model"
            raise DataError(Problem(sample.id, what, "shorten it, or scale its images down", "too_long"))

    return check


def patiently(ask: Ask, batch: Sequence[Sample], circuit: Circuit) -> list[Completion]:
    """Answers to a batch. What a server failed is asked again a few times, after a rest where it answers nothing at all.

    Raises:
        EngineError: it has been left to rest often enough.
    """
    done: dict[str, Completion] = {}
    left, rests, tries = batch, 0, 0
    while True:
        done |= {completion.sample_id: completion for completion in ask(left)}
        failed = [sample for sample in left if is_failed(done[sample.id])]
        if failed and circuit.is_open:
            rests += 1
            if rests > RESTS:
                what = f"{RESTS} rests of {circuit.rest_seconds:g} s were not enough"
                raise EngineError(Problem("", f"{done[failed[0].id].stopped} · {what}"))
            print(f"the server gives no answer: {circuit.rest_seconds:g} s of rest ({rests} of {RESTS})", file=sys.stderr)
            time.sleep(circuit.rest_seconds)
        elif not failed or tries == circuit.most:
            return [done[sample.id] for sample in batch]
        else:  # a server that is away and one that refuses the questions: so many tries tell them apart
            tries += 1
        left = failed


def is_failed(completion: Completion) -> bool:
    """Whether the engine gave no text where the answer should have gone on."""
    return any(one.chosen and one.ended == "failed" for step in completion.trace for one in step.candidates)
