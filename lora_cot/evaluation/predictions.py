"""`score`: answers that were made elsewhere, judged as our own are.

Files are read in four forms: ours, one `{"id": …, "output": …}` a line, as `eval --output` writes it, and then in the format
that its `.meta.json` tells; ScienceQA's official one, `{"results": {id: index}, "outputs": {id: text}}`, where an index counts
before the text and -1 is no answer; A-OKVQA's, `{id: {"multiple_choice": text, "direct_answer": text}}`; and M3CoT's, one
`{"id", "answer", "choices", "domain", "topic", "messages"}` a line, whose last message is the answer, judged as it stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from lora_cot.data.kept import meta_of
from lora_cot.data.rows import Row, StrictRow, checked, read_json_rows, shortened
from lora_cot.engines.teacher import Teacher
from lora_cot.errors import DataError, Problem, RunError
from lora_cot.evaluation.benchmarks import check_split, find
from lora_cot.evaluation.judging import Grading, check_judge, grade
from lora_cot.evaluation.questions import Wanted
from lora_cot.evaluation.summary import Judged, Summary, reasoning, summarise
from lora_cot.formats import FORMATS, CotFormat, Parsed
from lora_cot.formats.answers import letter
from lora_cot.formats.base import TAG_STYLES
from lora_cot.recipe.schema import FormatSection


@dataclass(frozen=True)
class Prediction:
    """One answer as it was read from a file."""

    answer: str | None
    """The text to be judged."""
    rationale: str | None = None
    in_messages: bool = False
    """It came in M3CoT's form: of several rows with one id the first counts, as its scorer has it."""


@dataclass(frozen=True)
class ScoreReport:
    """What a file of answers is worth."""

    benchmark: str
    split: str | None
    """None where the predictions brought their questions along."""
    scored: int
    """Questions that have a prediction."""
    summary: Summary
    gaps: dict[str, list[str]]
    """no_prediction: questions of the split without one; no_question: predictions for others; no_problem: ids of the split
    that are no question that can be scored; repeated: rows of M3CoT's form whose id an earlier row has."""
    grading: Grading
    """Who decided what the answers are worth."""

    def lines(self) -> list[tuple[str, Any]]:
        """For people."""
        counts = [(gap.replace("_", " "), len(ids)) for gap, ids in self.gaps.items()]
        return [("scored", self.scored), *self.summary.lines(), self.grading.line(), *counts]

    def to_json(self) -> dict[str, Any]:
        """One JSON object; each class is a key of it."""
        shares = {**self.summary.groups, "accuracy": self.summary.accuracy}
        return {  # M3CoT's classes are named by the rows themselves: none takes the place of a key
            **{name: {"correct": share.correct, "total": share.total} for name, share in shares.items()},
            "benchmark": self.benchmark,
            "split": self.split,
            "scored": self.scored,
            "metric": self.summary.metric,
            "unanswered": self.summary.unanswered,
            "rouge_l": self.summary.rouge_l,
            "failure_modes": self.summary.failure_modes,
            "figures": self.summary.figures,
            "shares": {name: share.to_json() for name, share in shares.items()},
            "gaps": self.gaps,
            "grading": self.grading.to_json(),
        }


class PredictionRow(StrictRow):
    """A row of our own form; its other keys are left alone."""

    id: str | int
    output: str | None


class MessagesRow(StrictRow):
    """What M3CoT's form says of the answer; `evaluation.m3cot` reads its questions."""

    id: str | int
    messages: list[str] = Field(min_length=1)


def score(
    benchmark: str,
    predictions: Path,
    data: str | None = None,
    split: str | None = None,
    rationale: str | None = None,
    judge: Teacher | None = None,
) -> ScoreReport:
    """The questions of a split that a file answers, judged; those that are on one side only are listed, not judged.

    Args:
        benchmark: its name.
        predictions: a file in one of the four forms.
        data: where the benchmark's files are; not needed for predictions that bring their questions along.
        split: its first if not given; such predictions have none.
        rationale: of ScienceQA, LE or E: what the gold rationale is; LE if not given.
        judge: a served model that grades the answers, where the benchmark has them graded; its rule alone, if not given.

    Raises:
        RunError: no such benchmark or split, or one that takes no judge.
        DataError: a file that is in none of the forms, or answers none of the questions.
        AccessError, EngineError: the judge takes no request, or gives no answer any more.
    """
    check_judge(benchmark, judge)  # before anything is read for nothing
    chosen = find(benchmark)
    asked = check_split(benchmark, split)
    keys = {} if rationale is None else {"rationale": rationale}
    read, repeated = read_predictions(predictions)
    if chosen.carried is not None and data is None and any(one.in_messages for one in read.values()):
        if split is not None:
            raise RunError(Problem("--split", "the predictions bring their questions along", "drop it, or add --data"))
        found = chosen.carried(predictions)
    else:
        split = asked
        found = chosen.load(Wanted(asked, None, data, "scoring", keys))
    answered = [(sample, read[sample.id]) for sample in found.samples if sample.id in read]
    if not answered:
        raise DataError(_unmatched(predictions, benchmark, split, list(read), [sample.id for sample in found.samples]))
    grading = grade(benchmark, judge, [(sample, one.answer) for sample, one in answered], predictions)
    judged = [
        Judged(sample, grading.verdicts.get(sample.id) or chosen.judge(one.answer, sample), one.rationale)
        for sample, one in answered
    ]
    known = {sample.id for sample in found.samples}
    gaps = {
        "no_prediction": [sample.id for sample in found.samples if sample.id not in read],
        "no_question": [number for number in read if number not in known],
        "no_problem": [str(problem) for problem in found.problems],
        "repeated": repeated,
    }
    return ScoreReport(benchmark, split, len(judged), summarise(chosen, judged), gaps, grading)


def _unmatched(path: Path, benchmark: str, split: str | None, read: Sequence[str], asked: Sequence[str]) -> Problem:
    ids = f"its ids: {', '.join(read[:3]) or 'none'}; those of the questions: {', '.join(asked[:3]) or 'none'}"
    where = f"{benchmark} {split}" if split else benchmark
    return Problem(str(path), f"it answers no question of {where}", f"{ids}. Check --benchmark, --split and --data")


def read_predictions(path: Path) -> tuple[dict[str, Prediction], list[str]]:
    """Answers by id; and where ids stand again, of rows of which the first counts.

    Raises:
        DataError: a file in none of the forms; all its faults.
    """
    if not path.is_file():
        raise DataError(Problem(str(path), "no such file of predictions", "check the path"))
    found: dict[str, Prediction] = {}
    repeated: list[str] = []
    problems: list[Problem] = []
    for where, item in _read(path):
        if isinstance(item, Problem):
            problems.append(item)
        elif item[0] in found and item[1].in_messages:
            repeated.append(f"{where} · {item[0]}")
        elif item[0] in found:
            problems.append(Problem(f"{where} · id", f"'{item[0]}' occurs twice", "keep one row of each id"))
        else:
            found[item[0]] = item[1]
    if problems:
        raise DataError(shortened(problems))
    return found, repeated


def _read(path: Path) -> Iterator[tuple[str, tuple[str, Prediction] | Problem]]:
    whole = _whole(path)
    if whole is not None and ("results" in whole or "outputs" in whole):
        yield from _official(path, whole)
    elif whole and "id" not in whole:
        yield from _aokvqa(path, whole)
    else:
        cot_format = _format_of(path)
        for where, read in read_json_rows(path) if whole is None else [(path.name, lambda: whole)]:
            try:
                yield where, _of_row(read(), cot_format)
            except DataError as error:
                yield from ((where, problem) for problem in error.at(where).problems)


def _format_of(path: Path) -> CotFormat | None:
    """The format that `eval` asked in for this file; None of one that it did not write.

    Raises:
        DataError: what it wrote beside the file cannot be read.
    """
    meta = meta_of(path)
    if not meta.is_file():
        return None
    try:
        told = dict(json.loads(meta.read_text("utf-8"))).get("format")
        return None if told is None else FormatSection.model_validate(told).build()
    except (ValueError, TypeError, KeyError):
        remedy = "evaluate again, into another file; or remove it: the format is then told by the text"
        raise DataError(Problem(str(meta), "no format can be read in it", remedy)) from None


def _of_row(row: Row, cot_format: CotFormat | None) -> tuple[str, Prediction]:
    if "messages" in row:
        chat = checked(MessagesRow, row)
        return str(chat.id), Prediction(chat.messages[-1], in_messages=True)
    record = checked(PredictionRow, row)
    text = record.output or ""
    return str(record.id), split_output(text) if cot_format is None else _prediction(*_best([cot_format], text))


def _whole(path: Path) -> dict[str, Any] | None:
    """The file as one JSON object, if it is one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _official(path: Path, whole: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, Prediction] | Problem]]:
    results, outputs = whole.get("results") or {}, whole.get("outputs") or {}
    if not isinstance(results, dict) or not isinstance(outputs, dict):
        yield path.name, Problem(path.name, "results and outputs must be objects by id")
        return
    for number in {**results, **outputs}:
        index, text, where = results.get(number), outputs.get(number), f"{path.name} · {number}"
        if index is not None and (not isinstance(index, int) or isinstance(index, bool)):
            yield where, Problem(f"{where} · results", f"{index!r} is no index", "expected an integer, -1 for no answer")
        elif text is not None and not isinstance(text, str):
            yield where, Problem(f"{where} · outputs", "not a text", "expected a string, or null for none")
        else:
            read = split_output(text or "")
            answer = read.answer if index is None else letter(index) if 0 <= index < 26 else None
            yield where, (number, Prediction(answer, read.rationale))


def _aokvqa(path: Path, whole: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, Prediction] | Problem]]:
    for number, answers in whole.items():
        where = f"{path.name} · {number}"
        texts = answers if isinstance(answers, dict) else {}
        known = {key: texts.get(key) for key in ("multiple_choice", "direct_answer")}
        if not any(isinstance(text, str) for text in known.values()):
            lines = '{"id", "output"} or {"id", "messages"} a line'
            remedy = f'forms: {lines}; {{"results", "outputs"}}; {{id: {{"multiple_choice", "direct_answer"}}}}'
            yield where, Problem(where, "not an answer in one of the forms", remedy)
        for key, text in known.items():
            if isinstance(text, str):
                yield where, (number if key == "multiple_choice" else f"{number}/direct", split_output(text))


def split_output(text: str) -> Prediction:
    """The answer in a whole output, and the reasoning beside it.

    Stages are told by the tags of any built-in format; without tags, the reasoning is what stands before `The answer is`
    (after `Solution:`) or after `BECAUSE:`. A text with neither is an answer alone.
    """
    cot_format, parsed = _best([one for one in FORMATS.values() if len(one.stages) > 1], text)
    if parsed.outcome != "none":
        return _prediction(cot_format, parsed)
    before, says, after = text.partition("The answer is")
    if not says:
        return Prediction(text if text.strip() else None)
    rationale = after.partition("BECAUSE:")[2] or re.sub(r"^\s*(Solution|Answer):", "", before)
    return Prediction(text, rationale.strip() or None)


def _best(formats: Sequence[CotFormat], text: str) -> tuple[CotFormat, Parsed]:
    """The format and spelling of tags in which the most of a text can be read, the first of several, and what is read."""
    spelled = [one.spelled(style) for one in formats for style in TAG_STYLES]
    parses = [(one, one.parse(text)) for one in spelled]
    return min(parses, key=lambda pair: ("complete", "partial", "none").index(pair[1].outcome))


def _prediction(cot_format: CotFormat, parsed: Parsed) -> Prediction:
    return Prediction(parsed.answer, reasoning(parsed, cot_format))
