"""What an evaluation found: the figures of its answers, and what they cost."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_cot.evaluation.answered import Answered
from lora_cot.evaluation.benchmarks import find
from lora_cot.evaluation.judging import Grading
from lora_cot.evaluation.metrics import Share
from lora_cot.evaluation.summary import Judged, Summary, summarise
from lora_cot.recipe.schema import SearchSection
from lora_cot.recipe.search import UNSCORED


@dataclass(frozen=True)
class EvalReport:
    """What a strategy got right, and what it cost."""

    benchmark: str
    split: str
    model: str
    strategy: str
    candidates: int
    scorer: str
    seed: int
    summary: Summary
    format_validity: Share
    left_out: int
    """Problems of questions that cannot be asked, such as an image that is not there; they count nowhere."""
    totals: dict[str, float]
    """Costs of all questions by the names of `Completion.totals`; `generated_tokens` are those of lost candidates too, the
    seconds those of the searches."""
    stopped: dict[str, int]
    """Questions whose search ended early, by the reason without its particulars."""
    failed: int
    """Questions that the engine gave no text for; they count as wrong."""
    grading: Grading
    """Who decided what answers are worth."""
    interleave: str | None = None
    """What chose the patches that were shown again; None: none were."""

    @property
    def accuracy(self) -> Share:
        """Share of right answers."""
        return self.summary.accuracy

    @property
    def groups(self) -> dict[str, Share]:
        """The same by group."""
        return self.summary.groups

    @property
    def unanswered(self) -> int:
        """Questions without an answer; they count as wrong."""
        return self.summary.unanswered

    @property
    def flip_rate(self) -> float | None:
        """Share of the judged pairs, each asked in both orders, whose verdict changed with the order; None without any."""
        return 2 * self.totals["flips"] / self.totals["judge_prompts"] if self.totals["judge_prompts"] else None

    @property
    def per_question(self) -> dict[str, float]:
        """Costs of one question."""
        names = {
            "tokens": "generated_tokens",
            "kept_tokens": "kept_tokens",
            "judge_prompts": "judge_prompts",
            "seconds": "seconds",
        }
        count = self.format_validity.total
        return {f"{name}_per_question": self.totals[total] / count for name, total in names.items()}

    @property
    def _search(self) -> str:
        chosen = "" if self.strategy in UNSCORED else f"{self.candidates} candidates, scorer {self.scorer}, "
        return f"{self.strategy}, {chosen}seed {self.seed}"

    def lines(self) -> list[tuple[str, Any]]:
        """For people: accuracy, and beside it tokens and seconds."""
        spent = self.totals
        tokens, kept, prompts, seconds = self.per_question.values()
        flips = f"{spent['flips']} flips" + (f" ({self.flip_rate:.1%} of pairs)" if self.flip_rate is not None else "")
        judged = f"{flips}, {spent['skipped_judgements']} not needed, {spent['judge_failures']} failed"
        rows: list[tuple[str, Any]] = [
            *self.summary.lines(),
            self.grading.line(),
            ("search", self._search),
            ("valid format", self.format_validity),
            ("left out", self.left_out),
            ("tokens a question", f"{tokens:.1f} ({kept:.1f} kept), {spent['generated_tokens']} in all"),
            ("judge prompts a question", f"{prompts:.1f} ({judged} in all)"),
            ("seconds a question", f"{seconds:.3f}, {spent['seconds']:.1f} in all"),
        ]
        rows += [("failed by the engine", self.failed)] if self.failed else []
        looks = spent["looks"] / self.format_validity.total
        rows += [("patches chosen by", f"{self.interleave}, {looks:.1f} looks a question")] if self.interleave else []
        return rows + [(f"stopped: {reason}", count) for reason, count in self.stopped.items()]

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        plain = {key: value for key, value in vars(self).items() if not isinstance(value, Share | Summary | Grading)}
        shares = {"accuracy": self.accuracy.to_json(), "format_validity": self.format_validity.to_json()}
        groups = {name: share.to_json() for name, share in self.groups.items()}
        told = {key: getattr(self.summary, key) for key in ("metric", "unanswered", "rouge_l", "failure_modes", "figures")}
        told |= {"grading": self.grading.to_json(), "groups": groups}
        return {**plain, **self.per_question, "flip_rate": self.flip_rate, **shares, **told}


def report_of(
    asked: tuple[str, str, str],
    config: SearchSection,
    verdicts: Sequence[Judged],
    left_out: int,
    done: Sequence[Answered],
    grading: Grading,
) -> EvalReport:
    """The report on answered questions.

    Args:
        asked: benchmark, split and model.
        config: what was searched with.
        verdicts: on the answers, in their order.
        left_out: problems of questions that could not be asked.
        done: the answers.
        grading: who decided on them.
    """
    return EvalReport(
        *asked,
        config.strategy,
        config.candidates,
        config.scorer,
        config.seed,
        summarise(find(asked[0]), verdicts),
        Share(sum(one.parsed.outcome == "complete" for one in done), len(done)),
        left_out,
        {name: sum(one.totals.get(name, 0) for one in done) for name in done[-1].totals},
        dict(Counter(re.split(":| after ", one.stopped)[0] for one in done if one.stopped != "complete")),
        sum(one.failed for one in done),
        grading,
        config.interleave.selector if config.interleave else None,
    )
