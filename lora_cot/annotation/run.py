"""`annotate`: a teacher writes the reasoning that rows lack, and only what agrees with their gold answers is used.

Multimodal-CoT (arXiv 2302.00923, section 6) had InstructBLIP and ChatGPT write such pseudo-rationales for ScienceQA;
LLaVA-CoT (arXiv 2411.10440, section 3.2) had GPT-4o write its four stages. Where we differ from the latter: the teacher
does not see the gold answer, and its own is compared by `formats.answers`; `faithful` shows it, and lets the teacher judge
answers that differ as texts (the released code always asks, and takes what it cannot read for valid). A row is asked once,
not twice: `retry_aside` asks for all that failed again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_cot.annotation.asking import Asker
from lora_cot.annotation.prompts import version
from lora_cot.annotation.rows import Rows, Selection, gold_answer, rationale_stage, read_rows, row_of, sections_of
from lora_cot.annotation.store import Store
from lora_cot.annotation.verdicts import Aside
from lora_cot.data.images import MAX_PIXELS
from lora_cot.engines.chat import ChatServer, base_url
from lora_cot.engines.teacher import Teacher, ask_each, check_model
from lora_cot.errors import AccessError, EngineError, Problem, RunError
from lora_cot.formats import FORMATS, CotFormat, format_called
from lora_cot.recipe import Recipe
from lora_cot.types import Sample

KEY_OPTION = "--teacher-key-file"
"""Of the command line: the one that names the file of the teacher's key."""


@dataclass
class AnnotationReport:
    """What was asked, and what there is now."""

    output: str
    aside_file: str
    train_with: str
    """How a recipe names the output."""
    rows: int
    with_gold: int
    """Rows that have what is asked for; they are left alone."""
    wanted: int
    asked: int = 0
    """Rows asked now; the rest of `wanted` was there already."""
    used: int = 0
    """Rows in the output."""
    aside: dict[str, int] = field(default_factory=dict)
    """Rows kept aside by reason."""
    foreign: int = 0
    """Rows in the files that the data have no longer."""
    failed: dict[str, str] = field(default_factory=dict)
    """Rows without an answer, to be asked again, and why."""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return asdict(self)

    def lines(self) -> list[tuple[str, Any]]:
        """For people."""
        counts = [("rows", self.rows), ("have their own", self.with_gold), ("asked now", self.asked), ("used", self.used)]
        aside = [("kept aside", sum(self.aside.values())), *((f"  {name}", n) for name, n in self.aside.items())]
        rest = [("of no row", self.foreign)] * bool(self.foreign) + [("no answer", len(self.failed))] * bool(self.failed)
        return [*counts, *aside, *rest, ("output", self.output), ("train with", self.train_with)]


def annotate(
    what: Recipe | Path,
    teacher: Teacher,
    output: Path,
    format_name: str | None = None,
    selection: Selection | None = None,
    faithful: bool = False,
    retry_aside: bool = False,
    concurrency: int = 4,
) -> AnnotationReport:
    """The reasoning of rows that have none, written by a teacher; a row that is done is not asked again.

    Args:
        what: a recipe, a file of data, or the folder of ScienceQA or A-OKVQA.
        teacher: who is asked.
        output: JSONL: `id` and `output` where the format's only reasoning is a RATIONALE, rows of the source `jsonl` else.
        format_name: a built-in format; a recipe's own, or four_stage, if not given.
        selection: which rows; those of data.train that have no reasoning if not given.
        faithful: ask as LLaVA-CoT does.
        retry_aside: ask again for rows that were kept aside.
        concurrency: requests at once.

    Raises:
        DataError: rows that cannot be asked; damaged files.
        RunError: names that do not exist; an output that belongs to something else.
        AccessError: the teacher's address, key or model is wrong.
        EngineError: the teacher gave no answer to `GIVE_UP_AFTER` rows running; what was done is kept.
    """
    begin = time.perf_counter()
    chosen, url = _format(what, format_name), base_url(teacher.url, KEY_OPTION)
    only = rationale_stage(chosen)
    selection = selection or Selection()
    rows = read_rows(_sections(what, selection, only), chosen, selection.everything, output)
    wanted = rows.wanted[: selection.limit]
    setting = {"teacher": url, "model": teacher.model, "format": chosen.name, "prompt": version(chosen, faithful)}
    setting |= {} if only else {"image_root": str(rows.root)}
    counts = (len(rows.samples), len(rows.samples) - len(rows.wanted), len(wanted))
    with Store(output, setting) as store:
        report = AnnotationReport(str(output), str(store.aside), _train_with(output, rows, only), *counts)
        report.foreign = len({*store.done, *store.reasons} - {sample.id for sample in rows.samples})
        left = store.done if retry_aside else {*store.done, *store.reasons}
        if todo := [sample for sample in wanted if sample.id not in left]:
            max_pixels = what.data.max_pixels if isinstance(what, Recipe) else MAX_PIXELS
            with closing(ChatServer(teacher.url, teacher.key, teacher.patience, key_option=KEY_OPTION)) as server:
                check_model(server, teacher.model)
                store.forget_aside({sample.id for sample in todo})
                _ask_all(Asker(server, teacher, chosen, faithful, max_pixels), todo, store, rows, report, concurrency)
        report.used, report.aside = len(store.done), store.counts()
    report.seconds = time.perf_counter() - begin
    return report


def _sections(what: Recipe | Path, selection: Selection, only: str | None) -> list[Any]:
    sections = sections_of(what, selection)
    if only and len(sections) > 1:
        told = f"{len(sections)} sources, and a file of rationales belongs to one"
        raise RunError(Problem(f"data.{selection.part}", told, "annotate each into a file of its own: --source NUMBER"))
    return sections


def _format(what: Recipe | Path, name: str | None) -> CotFormat:
    if name is None:
        return what.format.build() if isinstance(what, Recipe) else FORMATS["four_stage"]
    return format_called(name)


def _train_with(output: Path, rows: Rows, only: str | None) -> str:
    """What a recipe says to train on the output."""
    if only is None:
        return f"{{source: jsonl, path: {output}, image_root: {rows.root}}}"
    more = ", rationales_for: missing" if len(rows.wanted) < len(rows.samples) else ""
    return f"rationales: {output}{more}"


def _ask_all(
    asker: Asker, todo: Sequence[Sample], store: Store, rows: Rows, report: AnnotationReport, concurrency: int
) -> None:
    """Ask for all samples and write each as it is done."""
    outcome: Any = None
    try:
        for sample, outcome in ask_each(
            asker,
            todo,
            concurrency,
            ("annotating", "row"),
            _failure,
            lambda: {"used": len(store.done), "aside": len(store.reasons)},
        ):
            report.asked += 1
            why = _keep(sample, outcome, asker.cot_format, store, rows)
            if why:
                report.failed[sample.id] = why
    except KeyboardInterrupt:
        print(f"stopped: {len(store.done)} rows are kept; the same command goes on from here", file=sys.stderr)
        raise
    except AccessError:
        raise
    except EngineError as error:
        more = "; the rows it rejected are aside, --retry-aside asks for them again" if isinstance(outcome, Aside) else ""
        remedy = f"{len(store.done)} rows are kept; the same command goes on from here{more}"
        raise EngineError(replace(error.problems[0], remedy=remedy)) from None


def _failure(outcome: Any) -> str:
    if isinstance(outcome, Aside):
        return outcome.detail if outcome.reason == "rejected" else ""
    return str(outcome) if isinstance(outcome, EngineError) else ""


def _keep(sample: Sample, outcome: Any, cot_format: CotFormat, store: Store, rows: Rows) -> str:
    """Write a row that is done; of one without an answer, why."""
    if isinstance(outcome, EngineError):
        return str(outcome)
    if isinstance(outcome, Aside):
        store.put_aside(sample.id, outcome)
    elif stage := rationale_stage(cot_format):
        store.take(sample.id, {"id": sample.id, "output": outcome[stage]})
    else:
        gold = gold_answer(sample.last, cot_format)
        store.take(sample.id, row_of(sample, outcome, gold, rows.root, store.output))
    return ""
