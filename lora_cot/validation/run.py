"""`validate`: every row of a recipe or of a file of data, checked as training would meet it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_cot.backbones.loading import limit_of, load_processor
from lora_cot.data.lengths import LengthLimit
from lora_cot.data.rows import too_many, twice
from lora_cot.data.sources import keep_back, mixture
from lora_cot.errors import DataError, LoraCotError, Problem, RunError
from lora_cot.formats import CotFormat, format_called
from lora_cot.recipe import Recipe
from lora_cot.recipe.schema import SEES_IMAGES, DataSection
from lora_cot.types import Sample
from lora_cot.validation.checks import Checker, Finding, findings
from lora_cot.validation.files import source_of
from lora_cot.validation.report import Findings, ValidationReport
from lora_cot.validation.store import RowStore, Twin
from lora_cot.validation.stream import CheckedRow, RecipeSource, check_rows


@dataclass(frozen=True)
class CheckPlan:
    """What is to be checked, and how."""

    name: str
    kind: str
    setting: str
    data: DataSection
    checker: Checker
    problems: tuple[Problem, ...] = ()
    """What is wrong before a row is read."""

    @property
    def sources(self) -> list[RecipeSource]:
        """All sources, those that are trained on first."""
        named = (("train", self.data.train), ("eval", self.data.eval))
        return [RecipeSource(split, number, section) for split, sections in named for number, section in enumerate(sections)]


def validate(
    what: Recipe | str | Path, format_name: str = "four_stage", bad_rows: Path | None = None, workers: int | None = None
) -> ValidationReport:
    """A report on every row, as training would meet it; nothing is trained and no weights are loaded.

    Args:
        what: a recipe, or a file of data: our own JSONL form, LLaVA-CoT-100k's, or `messages`. Without a recipe there is
            no processor, so lengths are not known.
        format_name: of a file's answers, a built-in one; a recipe has its own.
        bad_rows: every finding is written here as JSONL, while rows are checked.
        workers: processes; as many as cores, four at most, if not given.

    Raises:
        DataError, RunError: a file that is missing or holds no data; no such format; `bad_rows` is a file that is read.
    """
    begin = time.perf_counter()
    plan = plan_of_recipe(what) if isinstance(what, Recipe) else plan_of_file(Path(what), format_called(format_name))
    sources = plan.sources
    if bad_rows is not None:
        _check_free(bad_rows, sources)
    store, found = RowStore(sources), Findings(bad_rows)
    problems = list(plan.problems)
    for chunk in check_rows(sources, plan.checker, workers):
        for row in chunk:
            _take(row, sources[row.source], store, found)
    problems += _too_many_dropped(sources, store)
    problems += _hold_out(plan.data, store)
    for check, twin in _twins(store):
        source = sources[twin.source]
        found.add(twin.split, source.number, twin.where, twin.id, Finding(check, "note", f"the same as {twin.first}"))
    splits = [split for split in ("train", "eval", "held_out") if split == "train" or _has(plan.data, split)]
    problems += _nothing_left(plan, store, splits)
    return ValidationReport(
        plan.name,
        plan.kind,
        plan.setting,
        {split: store.statistics(split) for split in splits},
        found,
        problems,
        found.close(),
        time.perf_counter() - begin,
    )


def plan_of_recipe(recipe: Recipe) -> CheckPlan:
    """A recipe's data with the processor of its base; without one, if the base has none that can be used."""
    cot_format, training = recipe.format.build(), recipe.training
    max_length = training.library.get("max_length")
    problems: tuple[Problem, ...] = ()
    limits: tuple[LengthLimit, ...] = ()
    try:
        family, processor = load_processor(recipe.model)
        cot_format = cot_format.spelled(family.tag_style)
        limits = tuple(limit_of(recipe, family, processor, one) for one in cot_format.passes)
    except LoraCotError as error:
        problems = error.problems
    only_images = set(recipe.lora.parts) <= SEES_IMAGES and recipe.model.adapter is None
    others = recipe.lora.library.get("modules_to_save") or recipe.lora.library.get("trainable_token_indices")
    checker = Checker(cot_format, limits, recipe.data.max_pixels, only_images and not others)
    limit = f"training.max_length {max_length} ({training.long_samples})" if max_length else "no training.max_length"
    setting = f"format {recipe.format.name} · base {recipe.model.base} · {limit}"
    if not recipe.data.train:
        problems += (Problem("data.train", "there is nothing to train on", "name at least one source"),)
    return CheckPlan(recipe.name, "recipe", setting, recipe.data, checker, problems)


def plan_of_file(path: Path, cot_format: CotFormat) -> CheckPlan:
    """A file of data, its kind told by its rows.

    Raises:
        DataError: no such file, or none of the kinds that are known.
    """
    checker = Checker(cot_format)
    source = source_of(path)
    if source is None:
        what = "neither rows of data nor predictions"
        raise DataError(Problem(str(path), what, "rows hold conversations, messages, or question and stages or answer"))
    section = {"source": source, "path": str(path)}
    data = DataSection.model_validate({"train": [section]})
    return CheckPlan(str(path), source, f"format {cot_format.name} · no recipe: no lengths", data, checker)


def _check_free(bad_rows: Path, sources: Sequence[RecipeSource]) -> None:
    """See that the file of bad rows is not one that is read."""
    read = {Path(source.section.path).resolve() for source in sources if hasattr(source.section, "path")}
    if bad_rows.resolve() in read:
        raise RunError(Problem(str(bad_rows), "findings would be written over the data", "name another file"))


def _take(row: CheckedRow, source: RecipeSource, store: RowStore, found: Findings) -> None:
    """Keep a row's facts and findings; the row of an id that was there before is no sample."""
    facts, place = row.facts, row.where
    all_found, is_sample = facts.findings, facts.readable
    if is_sample and not store.is_new(row):
        is_sample = False
        problem = twice(place, Sample(facts.id, ()))
        all_found = tuple(findings([problem], place, drop=source.section.bad_rows == "drop"))
    severities = {finding.severity for finding in all_found}
    if place:  # else it is the source itself
        store.add(row, "failed" if "fails" in severities else "dropped" if "dropped" in severities else "used", is_sample)
    for finding in all_found:
        found.add(source.split, source.number, place, facts.id, finding)


def _twins(store: RowStore) -> Iterator[tuple[str, Twin]]:
    yield from (("duplicate_row", twin) for twin in store.duplicates())
    yield from (("leak_question", twin) for twin in store.leaked_questions())
    yield from (("leak_image", twin) for twin in store.leaked_images())


def _has(data: DataSection, split: str) -> bool:
    return bool(data.eval) if split == "eval" else data.held_out is not None


def _too_many_dropped(sources: Sequence[RecipeSource], store: RowStore) -> Iterator[Problem]:
    """The sources that drop more rows than they may."""
    for number, source in enumerate(sources):
        problem = too_many(*store.unusable(number), source.section)
        if problem is not None and source.section.bad_rows == "drop":
            yield replace(problem, where=f"data.{source.split}.{source.number}")


def _hold_out(data: DataSection, store: RowStore) -> tuple[Problem, ...]:
    """Tell apart the rows that training would keep back; why it cannot."""
    if data.held_out is None:
        return ()
    try:
        store.hold_out(keep_back(mixture(store.samples("train"), data.train), data.held_out))
    except DataError as error:
        return error.problems
    return ()


def _nothing_left(plan: CheckPlan, store: RowStore, splits: Sequence[str]) -> list[Problem]:
    """Why training would stop at what is left of all rows."""
    problems = []
    if plan.data.train and not sum(store.samples("train")):
        problems.append(
            Problem("data.train", "no row can be used: there is nothing to train on", "mend the rows that are told of")
        )
        return problems
    for number, limit in enumerate(plan.checker.limits):
        for split in splits:
            measured, kept, with_images, least = store.kept(number, split)
            if kept and least and not with_images:
                what = f"every sample with an image is longer than training.max_length={limit.max_length}"
                problems.append(Problem(f"data.{split}", f"{what}: images take at least {least} tokens", "raise it"))
            elif measured and not kept and split == "train":
                problems.append(Problem("data.train", "every sample is too long", "raise training.max_length"))
    return list(dict.fromkeys(problems))
