"""Sources by name, and mixtures of them."""

from __future__ import annotations

import itertools
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lora_cot.data import aokvqa, jsonl, llava_cot_100k, llava_wild, m3cot, messages, multi30k, scienceqa, shapes
from lora_cot.data.rationales import check_foreign, with_rationales
from lora_cot.data.rows import SampleReader, collect
from lora_cot.errors import DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.formats.one_stage import ANSWER_ONLY
from lora_cot.recipe.schema import DataSection
from lora_cot.types import Sample

SOURCES: dict[str, Callable[[Any, CotFormat], Iterator[SampleReader]]] = {
    "jsonl": jsonl.rows,
    "llava_cot_100k": llava_cot_100k.rows,
    "messages": messages.rows,
    "shapes": shapes.rows,
    "scienceqa": scienceqa.rows,
    "aokvqa": aokvqa.rows,
    "m3cot": m3cot.rows,
    "llava_wild": llava_wild.rows,
    "multi30k": multi30k.rows,
}
"""A source takes its own section of the recipe and the format, and gives its rows one by one, not yet read."""


def rows_of(source: Any, cot_format: CotFormat) -> Iterator[SampleReader]:
    """The rows of a source up to its limit, with the rationales that it names."""
    if source.rationales is None:
        return itertools.islice(SOURCES[source.source](source, cot_format), source.limit)
    keep_gold = cot_format if source.rationales_for == "missing" else None
    return with_rationales(rows_with_answers(source, cot_format), source.rationales, keep_gold)


def rows_with_answers(source: Any, cot_format: CotFormat) -> Iterator[SampleReader]:
    """The rows of a source up to its limit, also those that have no reasoning: they come with their answer alone."""
    load = SOURCES[source.source]
    pairs = zip(load(source, cot_format), load(source, ANSWER_ONLY), strict=True)
    both = ((where, partial(_read_either, whole, answer, cot_format)) for (where, whole), (_, answer) in pairs)
    return itertools.islice(both, source.limit)


def _read_either(whole: Callable[[], Sample], answer: Callable[[], Sample], cot_format: CotFormat) -> Sample:
    """The row by its format; where it is not in it, its answer, unless that is a text with some of the format's tags."""
    try:
        return whole()
    except DataError as error:
        sample, stage = answer(), ANSWER_ONLY.answer_stage.name
        texts = [(exchange.stages or {}).get(stage, "") for exchange in sample.exchanges]
        if cot_format.is_tagged and any(cot_format.parse(text).outcome != "none" for text in texts):
            raise error from None
        exchanges = (replace(e, stages={stage: text} if text else {}) for e, text in zip(sample.exchanges, texts, strict=True))
        return replace(sample, exchanges=tuple(exchanges))


@dataclass(frozen=True)
class Loaded:
    """A recipe's data."""

    train: list[Sample]
    held_out: list[Sample]
    used: dict[str, list[int]]
    """Rows of each source, in the recipe's order, as often as its weight takes them: of data.train and data.eval by `train`
    and `eval`; `held_out` of data.train, where those are kept back."""


def load_data(section: DataSection, cot_format: CotFormat) -> tuple[list[Sample], list[Sample]]:
    """What is trained on, and what is held out, by the recipe's section.

    Raises:
        DataError: the problems of a source; or held_out leaves nothing to train on.
    """
    loaded = load_counted(section, cot_format)
    return loaded.train, loaded.held_out


def load_counted(section: DataSection, cot_format: CotFormat) -> Loaded:
    """The same as `load_data`, with how many rows each source gave."""
    samples, mixed, counts = _load("data.train", section.train, cot_format)
    if section.held_out is None:
        held, others, of_eval = _load("data.eval", section.eval, cot_format)
        used = {"train": _by_source(mixed, counts), "eval": _by_source(others, of_eval)}
        return Loaded([samples[number] for number in mixed], [held[number] for number in others], used)
    chosen = keep_back(mixed, section.held_out)
    kept = set(chosen)
    left = [number for number in mixed if number not in kept]
    used = {"train": _by_source(left, counts), "held_out": _by_source(chosen, counts)}
    return Loaded([samples[number] for number in left], [samples[number] for number in chosen], used)


def _by_source(numbers: Sequence[int], counts: Sequence[int]) -> list[int]:
    """How many of the rows are of each source."""
    ends = list(itertools.accumulate(counts))
    found = Counter(bisect_right(ends, number) for number in numbers)
    return [found[source] for source in range(len(counts))]


def _load(key: str, sources: Sequence[Any], cot_format: CotFormat) -> tuple[list[Sample], list[int], list[int]]:
    """The samples of all sources; which of them are taken, see `mixture`; and how many each source has.

    Raises:
        DataError: the problems of a source, under its key in the recipe.
    """
    samples: list[Sample] = []
    counts = []
    for number, source in enumerate(sources):
        try:
            found = collect(rows_of(source, cot_format), source)
            check_foreign(found, source)
        except DataError as error:
            raise error.at(f"{key}.{number} ({source.source})") from None
        samples += found
        counts.append(len(found))
    return samples, mixture(counts, sources), counts


def mixture(counts: Sequence[int], sources: Sequence[Any]) -> list[int]:
    """Which rows are taken, by their numbers through all sources, each as often as its source's weight says.

    Those of a fraction are the same in every run: whoever reads a recipe's data again must find what was trained on.
    """
    mixed: list[int] = []
    first = 0
    for count, source in zip(counts, sources, strict=True):
        numbers = range(first, first + count)
        whole, part = divmod(source.weight, 1.0)
        mixed += list(numbers) * int(whole)
        mixed += random.Random(0).sample(numbers, round(part * count))
        first += count
    return mixed


def keep_back(mixed: Sequence[int], held_out: int) -> list[int]:
    """Which rows of a mixture are held out, drawn by chance, and the same in every run.

    Raises:
        DataError: none would be left to train on.
    """
    rows = list(dict.fromkeys(mixed))  # a weight above 1 repeats them
    if held_out >= len(rows):
        what = f"{held_out} of {len(rows)} rows are kept back: none is left to train on"
        raise DataError(Problem("data.held_out", what, "keep back fewer"))
    return random.Random("held-out-0").sample(rows, held_out)
