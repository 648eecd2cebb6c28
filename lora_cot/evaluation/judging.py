"""A judge behind a server grades the answers that its benchmark has graded so; without one the benchmark's rule decides.

`FILE.judged.jsonl` beside the answers holds what the judge said to each, so that it is asked once. A reply that cannot be
read, and none at all, are no grade: such answers count as wrong, are listed, and are asked about again by the next call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lora_cot.data.kept import KeptRows
from lora_cot.engines.chat import ChatServer
from lora_cot.engines.teacher import Teacher, ask_each, check_model
from lora_cot.errors import AccessError, EngineError, Problem, RejectedError, RunError, StoppedError
from lora_cot.evaluation.benchmarks import find
from lora_cot.evaluation.grading import Grader
from lora_cot.evaluation.verdicts import Verdict
from lora_cot.types import Sample

KEY_OPTION = "--judge-key-file"
"""Of the command line: the one that names the file of the judge's key."""
REPLY_TOKENS = 64
"""Budget of a judge's reply, unless it has one of its own."""
TOGETHER = 4
"""Answers that are graded at once."""
Asked = tuple[Sample, str, str]
"""A question, the text of its answer, and what the judge is asked about it."""


@dataclass(frozen=True)
class Grading:
    """Who decided what the answers are worth."""

    by: str = "exact"
    """exact: the benchmark's rule; else the judge's name, and the digest of what it was told."""
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """Of the judge, by the question's id; the rule decides on all others."""
    asked: int = 0
    """Answers that the judge was asked about now; the rest it had graded before."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Answers that have no grade, by id, and why; they count as wrong."""

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {"by": self.by, "judged": len(self.verdicts), "asked": self.asked, "failed": dict(self.failed)}

    def line(self) -> tuple[str, str]:
        """For people."""
        if self.by == "exact":
            return "graded by", "exact: the benchmark's rule, no judge"
        counts = f"{len(self.verdicts)} answers, {self.asked} of them asked now, {len(self.failed)} failed"
        return "graded by", f"the judge {self.by}: {counts}; the rule decided on the rest"


def check_judge(benchmark: str, judge: Teacher | None, output: Path | None = None) -> None:
    """See that a judge, if one is named, will grade a benchmark's answers, before any is made for it.

    Args:
        benchmark: its name.
        judge: who is asked.
        output: the answers' file.

    Raises:
        RunError: the benchmark takes no judge; what is kept there another judge said, or to another prompt.
        AccessError: the judge's address, key or model is wrong.
        EngineError: it gave no answer.
    """
    if judge is None:
        return
    grader = find(benchmark).grader
    if grader is None:
        raise RunError(Problem("--judge", f"{benchmark} is graded by its rule alone", "drop it, or take mmvet or mathvista"))
    with closing(ChatServer(judge.url, judge.key, judge.patience, key_option=KEY_OPTION)) as server:
        check_model(server, judge.model)
    if output:
        _kept(output, judge, grader).close()


def grade(benchmark: str, judge: Teacher | None, answers: Sequence[tuple[Sample, str | None]], output: Path | None) -> Grading:
    """What a judge that `check_judge` has seen says to the answers of a benchmark.

    Args:
        benchmark: its name.
        judge: who is asked; None: nobody.
        answers: questions with the texts of their answers; what has no text is not asked about.
        output: the answers' file.

    Raises:
        RunError: what is kept there another judge said, or to another prompt.
        AccessError: the judge takes no request any more.
        EngineError: it gave no answer several times running. What it said before is kept; without `output` nothing would
            be, and all that is left has no grade instead.
    """
    grader = find(benchmark).grader
    if judge is None or grader is None:
        return Grading()
    prompts = [(sample, text, grader.prompt(text, sample)) for sample, text in answers if text and text.strip()]
    wanted: list[Asked] = [(sample, text, prompt) for sample, text, prompt in prompts if prompt is not None]
    with _kept(output, judge, grader) if output else nullcontext() as kept:
        known = _known(kept, grader, wanted) if kept else {}
        todo = [one for one in wanted if one[0].id not in known]
        try:
            new, failed = _ask(judge, grader, todo, kept) if todo else ({}, {})
        except KeyboardInterrupt:
            remedy = f"its grades are in {kept.output}: the same command goes on from there" if kept else "name an --output"
            raise StoppedError(Problem("", "stopped by SIGINT while the judge was asked", remedy), 130) from None
    none = dict.fromkeys(failed, Verdict(None, 0.0))
    return Grading(f"{judge.model} (prompt {grader.version})", {**known, **new, **none}, len(todo), failed)


def _kept(output: Path, judge: Teacher, grader: Grader) -> KeptRows:
    """What the judge said to the answers of a file; where it is served is no matter."""
    return KeptRows(output.with_suffix(".judged.jsonl"), {"model": judge.model, "prompt": grader.version})


def _known(kept: KeptRows, grader: Grader, wanted: Sequence[Asked]) -> dict[str, Verdict]:
    """What was said before to the same answers; other rows of these questions are taken out."""
    rows = kept.read(kept.output)
    found, old = {}, set()
    for sample, text, _ in wanted:
        row = rows.get(sample.id)
        if row is None:
            continue
        verdict = grader.read(str(row.get("reply")), text, sample) if row.get("answer") == text else None
        if verdict is None:
            old.add(sample.id)
        else:
            found[sample.id] = verdict
    if old:
        kept.rewrite(kept.output, (row for name, row in rows.items() if name not in old))
    return found


def _ask(
    judge: Teacher, grader: Grader, todo: Sequence[Asked], kept: KeptRows | None
) -> tuple[dict[str, Verdict], dict[str, str]]:
    """The judge's verdicts, each kept as it comes; and why others are none."""
    found: dict[str, Verdict] = {}
    failed: dict[str, str] = {}
    with closing(ChatServer(judge.url, judge.key, judge.patience, key_option=KEY_OPTION)) as server:
        try:
            for (sample, text, _), reply in ask_each(
                partial(_reply, judge, server), todo, TOGETHER, ("judging", "answer"), _no_reply
            ):
                verdict = None if isinstance(reply, EngineError) else grader.read(reply, text, sample)
                if verdict is None:
                    why = _no_reply(reply) or f"the judge's reply cannot be read: {' '.join(reply.split())[:80]!r}"
                    failed[sample.id] = why
                    continue
                found[sample.id] = verdict
                if kept:
                    kept.append(kept.output, {"id": sample.id, "answer": text, "reply": reply})
        except EngineError as error:
            if kept:
                raise
            left = (sample.id for sample, _, _ in todo if sample.id not in found)
            failed = dict.fromkeys(left, str(error)) | failed
    return found, failed


def _reply(judge: Teacher, server: ChatServer, asked: Asked) -> str:
    try:
        return judge.ask(server, [{"role": "user", "content": asked[2]}], REPLY_TOKENS).text
    except AccessError:
        raise
    except RejectedError as error:  # of this answer alone: the others are asked about all the same
        raise EngineError(error.problems) from None


def _no_reply(outcome: Any) -> str:
    return str(outcome) if isinstance(outcome, EngineError) else ""
