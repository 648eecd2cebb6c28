"""Answered questions, and the rows that keep them, so that an evaluation can be stopped anywhere and go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_cot.checkpoints.fingerprints import data_print
from lora_cot.checkpoints.layout import adapter_in
from lora_cot.data.kept import KeptRows
from lora_cot.data.rows import StrictRow, checked
from lora_cot.errors import DataError, Problem, RunError
from lora_cot.evaluation.asking import UNASKABLE, is_failed
from lora_cot.evaluation.benchmarks import Benchmark
from lora_cot.evaluation.judging import Grading
from lora_cot.evaluation.summary import Judged, counted_of, reasoning
from lora_cot.evaluation.verdicts import Verdict
from lora_cot.formats import CotFormat, Parsed
from lora_cot.search.trace import Completion
from lora_cot.types import Sample


@dataclass(frozen=True)
class Answered:
    """A question that was asked, now or before."""

    sample: Sample
    digest: str
    """See `question_print`."""
    text: str
    parsed: Parsed
    stopped: str
    """complete, or why the search ended early."""
    failed: bool
    """The engine gave no text."""
    totals: dict[str, float]
    """See `Completion.totals`."""


class AnswerRow(StrictRow):
    """What of a row is read again; the rest follows from it."""

    digest: str
    output: str
    stopped: str
    failed: bool
    totals: dict[str, int | float]


def question_print(sample: Sample) -> str:
    """A short text that is equal only for the same question with the same choices, gold answer and images.

    What is shown before it, and the reasoning that leads to its answer, do not count.
    """
    asked = tuple(replace(exchange, stages=None) for exchange in sample.exchanges)
    plain = replace(sample, exchanges=asked, images=sample.own_images, preface=())
    try:
        return data_print([plain])
    except OSError:  # an image that is gone: the question cannot be asked, and is asked again when it is back
        return data_print([replace(plain, images=())])


def answered(sample: Sample, completion: Completion) -> Answered:
    """The question with its answer."""
    failed = is_failed(completion)
    digest = question_print(sample)
    return Answered(sample, digest, completion.text, completion.parsed, completion.stopped, failed, completion.totals)


def judged(benchmark: Benchmark, cot_format: CotFormat, one: Answered, graded: Verdict | None = None) -> Judged:
    """The answer with the verdict on it: a judge's, where there is one, else the benchmark's own."""
    verdict = graded or benchmark.judge(one.parsed.answer, one.sample)
    return Judged(one.sample, verdict, reasoning(one.parsed, cot_format))


def row_of(one: Answered, judgement: Judged, benchmark: Benchmark, grading: Grading) -> dict[str, Any]:
    """The row that keeps an answer, with all that a comparison needs to know of its question."""
    counted = counted_of(benchmark, judgement)
    return {
        "id": one.sample.id,
        "digest": one.digest,
        "question": one.sample.last.question,
        "output": one.text,
        "stages": {stage.name: stage.text for stage in one.parsed.stages},
        "answer": judgement.verdict.answer,
        "gold": one.sample.last.answer,
        "right": judgement.verdict.credit == 1,
        "credit": judgement.verdict.credit,
        "graded_by": grading.by,
        "graded": one.sample.id not in grading.failed,
        "groups": counted.groups,
        "sets": counted.sets,
        "counts": counted.counts,
        "format": one.parsed.outcome,
        "stopped": one.stopped,
        "failed": one.failed,
        "totals": one.totals,
    }


def known(kept: KeptRows, samples: Sequence[Sample], cot_format: CotFormat) -> dict[str, Answered]:
    """What a file has answers to, by id. Rows of questions that could not be answered are taken out of it.

    Raises:
        DataError: a row is damaged.
        RunError: a question is another one than it was.
    """
    rows = kept.read(kept.output)
    found: dict[str, Answered] = {}
    again = set()
    for sample in samples:
        if sample.id not in rows:
            continue
        try:
            row = checked(AnswerRow, rows[sample.id])
        except DataError as error:
            remedy = Problem(str(kept.output), "rows that cannot be read again", "name another output, or delete this one")
            raise DataError([*error.at(f"{kept.output} · {sample.id}").problems, remedy]) from None
        if row.failed or row.stopped.startswith(UNASKABLE):
            again.add(sample.id)
            continue
        digest = question_print(sample)
        if row.digest != digest:
            what = f"the question {sample.id} is another one now: its text, choices, gold answer or images"
            raise RunError(Problem(str(kept.output), what, "name another output, or delete this one"))
        found[sample.id] = Answered(sample, digest, row.output, cot_format.parse(row.output), row.stopped, False, row.totals)
    if again:
        kept.rewrite(kept.output, (row for name, row in rows.items() if name not in again))
    return found


def write_verdicts(kept: KeptRows, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put these rows in the place of those of the same questions, where a judge has come to another verdict since."""
    before = kept.read(kept.output)
    after = before | {row["id"]: row for row in rows}
    if after != before:
        kept.rewrite(kept.output, after.values())


def weights_date(model: str) -> str | None:
    """When the newest weights in a model's folder were written; None of what is in no folder."""
    folder = adapter_in(Path(model)) or Path(model)
    times = [file.stat().st_mtime for file in folder.rglob("*.safetensors")]
    return datetime.fromtimestamp(max(times), UTC).isoformat() if times else None
