"""Which rows are to be annotated, and what a row with its new stages looks like.

Of a format whose only reasoning is a RATIONALE, `{"id", "output"}`: what the key `rationales` of a source takes. Of any
other, rows of the source `jsonl`, with image names relative to a root that all sources' images lie under; images that
have no file of their own (in a table, or built in) are written to a folder beside the output.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from lora_cot.data.images import read_bytes
from lora_cot.data.rationales import has_gold
from lora_cot.data.rows import SampleReader, gather, shortened, tolerate
from lora_cot.data.sources import rows_with_answers
from lora_cot.errors import DataError, Problem, RunError, nearest
from lora_cot.formats import FORMATS, CotFormat
from lora_cot.recipe import Recipe
from lora_cot.recipe.schema import DataSection
from lora_cot.types import Exchange, Sample
from lora_cot.validation.files import source_of

PARTS = ("train", "eval")
"""Of a recipe's data, whose rows may be meant."""


@dataclass(frozen=True)
class Selection:
    """Which rows are asked for.

    Raises:
        RunError: no such part.
    """

    part: str = "train"
    """train or eval, of a recipe."""
    source: int | None = None
    """Number of one source in that part; all of them if not given."""
    split: str | None = None
    """Of a folder, or of a table without a recipe."""
    everything: bool = False
    """Also rows that have reasoning of their own."""
    limit: int | None = None
    """Only the first so many."""

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise RunError(Problem("--part", f"no part '{self.part}'", nearest(self.part, PARTS)))


@dataclass(frozen=True)
class Rows:
    """The rows of all sources."""

    samples: tuple[Sample, ...]
    wanted: tuple[Sample, ...]
    """Those among them that lack the reasoning that is asked for."""
    root: Path
    """Folder that all images lie under, or will: see `row_of`."""


def sections_of(what: Recipe | Path, selection: Selection) -> list[Any]:
    """The sources of a recipe, or the one of a file of data or of the folder of a published set of questions.

    Raises:
        RunError: there is no such source.
        DataError: no such file, or none of the kinds that are known.
    """
    part, number, split = selection.part, selection.source, selection.split
    if isinstance(what, Recipe):
        if split is not None:
            raise RunError(Problem("--split", "a recipe's sources have their own splits", "change it in the recipe"))
        sections = list(getattr(what.data, part))
        if number is not None and not 0 <= number < len(sections):
            raise RunError(Problem("--source", f"data.{part} has {len(sections)} sources", "they are counted from 0"))
        if not sections:
            raise RunError(Problem(f"data.{part}", "the recipe names no source there", "allowed: --part train, --part eval"))
        return sections if number is None else [sections[number]]
    found = _folder(what, split or "train") if what.is_dir() else source_of(what)
    if found is None:
        remedy = "rows hold conversations, messages, or question and stages or answer; a folder is ScienceQA's or A-OKVQA's"
        raise DataError(Problem(str(what), "no data whose rows could be annotated", remedy))
    if split is not None and found in ("jsonl", "llava_cot_100k"):
        raise RunError(Problem("--split", "a file of rows has no splits", "leave it out"))
    keys = {"source": found, "path": str(what)} | ({"split": split} if split else {})
    return list(DataSection.model_validate({"train": [keys]}).train)


def _folder(path: Path, split: str) -> str | None:
    if any(path.glob("*problems*.json")):
        return "scienceqa"
    return "aokvqa" if (path / f"aokvqa_v1p0_{split}.json").is_file() else None


def read_rows(sections: Sequence[Any], cot_format: CotFormat, everything: bool, output: Path) -> Rows:
    """The rows of sources, whose own `rationales` and weights do not count here.

    Args:
        sections: of a recipe.
        cot_format: whose reasoning is asked for.
        everything: whether rows that have gold text for it are wanted too.
        output: the file that will be written.

    Raises:
        DataError: rows that cannot be asked, unless their source lets so many be left out; an id of two sources.
    """
    samples: list[Sample] = []
    roots: list[Path] = []
    for number, section in enumerate(sections):
        readers = _askable(rows_with_answers(section, cot_format), cot_format, everything)
        found = gather(readers)
        try:
            tolerate(found.problems, found.bad, found.total, section)
        except DataError as error:
            raise error.at(f"data source {number} ({section.source})") from None
        samples += found.samples
        has_file = {isinstance(image, Path) for sample in found.samples for image in sample.images}
        roots += [_root(section) if one else image_folder(output).parent for one in has_file]
    _check_ids(samples)
    wanted = tuple(sample for sample in samples if everything or not has_gold(sample, cot_format))
    return Rows(tuple(samples), wanted, Path(os.path.commonpath(roots or [image_folder(output).parent])))


def _root(section: Any) -> Path:
    path = Path(section.path)
    return (section.image_root or (path if path.is_dir() else path.parent)).resolve()


def _askable(rows: Iterable[SampleReader], cot_format: CotFormat, everything: bool) -> Iterator[SampleReader]:
    return ((where, partial(_checked, where, read, cot_format, everything)) for where, read in rows)


def _checked(where: str, read: Callable[[], Sample], cot_format: CotFormat, everything: bool) -> Sample:
    """The row, if it need not be asked or can be."""
    sample = read()
    if not everything and has_gold(sample, cot_format):
        return sample
    gold = gold_answer(sample.last, cot_format)
    if len(sample.exchanges) > 1:
        what, remedy = "several exchanges, of which one row of the output cannot tell", "bad_rows: drop leaves such rows out"
    elif not gold:
        what, remedy = "no gold answer that the teacher's could be held against", "give the row one"
    elif cot_format.parse(gold).outcome != "none":
        what, remedy = "the gold answer holds a stage's tag", "complete its stages, or remove them"
    else:
        return sample
    raise DataError(Problem(where, what, remedy, row=sample.id))


def _check_ids(samples: Sequence[Sample]) -> None:
    seen = set[str]()
    twice = [sample.id for sample in samples if sample.id in seen or seen.add(sample.id)]  # type: ignore[func-returns-value]
    if twice:
        remedy = "annotate each source into a file of its own: --source NUMBER"
        raise DataError(shortened([Problem(f"id '{name}'", "two sources have a row of this id", remedy) for name in twice]))


def gold_answer(exchange: Exchange, cot_format: CotFormat) -> str:
    """The short answer of a row, whatever format it is kept in; empty if it has none."""
    own = cot_format.answer_stage
    names = (own.name, *own.made_of, *(one.answer_stage.name for one in FORMATS.values()))
    texts = (exchange.answer, *((exchange.stages or {}).get(name) for name in names))
    return next((text.strip() for text in texts if text and text.strip()), "")


def rationale_stage(cot_format: CotFormat) -> str | None:
    """The stage that a file of rationales holds; None if the format reasons in other stages.

    Raises:
        RunError: the format has no stage beside the answer.
    """
    names = [stage.name for stage in cot_format.stages if not stage.is_answer]
    if not names:
        what = "it is an answer alone: there is nothing to ask for"
        raise RunError(Problem(f"format {cot_format.name}", what, "take another with --format"))
    return names[0] if names == ["RATIONALE"] else None


def row_of(sample: Sample, stages: Mapping[str, str], gold: str, root: Path, output: Path) -> dict[str, Any]:
    """The row of the source `jsonl` for a sample with new stages.

    Args:
        sample: the question.
        stages: text by stage name.
        gold: its answer.
        root: that image names are relative to.
        output: the file; images without a file are written to a folder beside it.
    """
    names = [os.path.relpath(_file(image, output), root) for image in sample.images]
    images: dict[str, Any] = {"image": names[0]} if len(names) == 1 else {"images": names} if names else {}
    choices = {"choices": list(sample.choices)} if sample.choices else {}
    row = {"id": sample.id, **images, "question": sample.last.question, **choices}
    return row | {"stages": dict(stages), "answer": gold}


def _file(image: Any, output: Path) -> Path:
    """The image's file; one is made, named by its content, where there is none."""
    if isinstance(image, Path):
        return image.resolve()
    data = read_bytes(image)
    with PILImage.open(io.BytesIO(data)) as opened:
        kind = (opened.format or "bin").lower()
    folder = image_folder(output)
    folder.mkdir(exist_ok=True)
    path = folder / f"{hashlib.sha256(data).hexdigest()[:20]}.{kind}"
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_bytes(data)
        part.replace(path)
    return path


def image_folder(output: Path) -> Path:
    """Where images are written that have no file of their own."""
    return output.resolve().with_suffix(".images")
