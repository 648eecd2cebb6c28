"""SWIRES, stage-wise retracing search (LLaVA-CoT, Xu et al. 2024, arXiv 2411.10440, later version).

All stages before the last three are written once. Then N of the first of the three (captions) are drawn and the best
`keep` go on to N reasonings together. While the reasonings of all rounds so far have not `keep` scores above the cutoff, it
goes back to the captions, `retraces` times at most. Of the best `keep` reasonings each gets a conclusion, the best of which
is the answer. `faithful` is the released loop and its numbers (`swires.py`): one round more, the second-best reasoning
decides, and three conclusions.

A cutoff belongs to one scorer: `calibrate` measures the mean and the standard deviation it is made of. Scores of a server
that was down are likelihoods, which no cutoff fits: they choose, and nothing is retraced for them; nor for likelihoods that a
server does not tell.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lora_cot.engines.base import Engine
from lora_cot.errors import Problem, SearchError
from lora_cot.formats import CotFormat, Stage
from lora_cot.recipe.search import NO_CUTOFF, NO_SCORE, SearchSection
from lora_cot.search import scorers
from lora_cot.search.boundaries import Boundary, Path, stage, standing
from lora_cot.search.budget import Budget
from lora_cot.search.contests import Verdict, logprob
from lora_cot.search.drive import Judge, Steps, drive
from lora_cot.search.interleave import interleave
from lora_cot.search.question import Outcome, Question
from lora_cot.search.segments import ended, is_cut, search, settle, why
from lora_cot.search.trace import Log
from lora_cot.types import Sample

RELEASED_CUTOFF = -0.77 + 0.2533 * 2.08
"""Of InternLM-XComposer2.5-Reward-7B, which the authors score with."""
AT_ONCE = 8
"""Questions of a calibration that are answered together."""
RELEASED_RETRACES, RELEASED_KEEP, RELEASED_CONCLUSIONS = 4, 2, 3


@dataclass(frozen=True)
class Calibration:
    """What a scorer gives to reasonings of a model: `search.swires.mean` and `search.swires.std`."""

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class _Scored:
    """A text as far as a stage, and that stage's score."""

    path: Path
    stage: Stage
    score: float
    unit: str
    usable: bool
    """It can be gone on from."""
    is_cut: bool
    """It ended for want of the question's tokens."""


def swires(question: Question) -> Steps[Outcome]:
    """The best conclusion of the best reasonings."""
    config, stages = question.config, question.cot_format.stages
    before = yield from search(question, [_single(question, one) for one in stages[:-3]])
    if before.stopped != "complete":
        return before
    pool, stuck = yield from _retrace(question, before.path)
    if not pool:
        return (yield from _without_reasoning(question, before.path, stuck))
    finalists = [one.path for one in pool[: RELEASED_CONCLUSIONS if config.faithful else config.swires.keep]]
    boundary = replace(stage(question.cot_format, config, stages[-1]), count=len(finalists))
    drawn = yield from question.draw(finalists, boundary)
    if not drawn:
        return ended(question, finalists[0], question.budget.spent)
    (best,) = yield from settle(question, boundary, drawn)
    return ended(question, best, why(question, boundary, best))


def _retrace(question: Question, before: Path) -> Steps[tuple[list[_Scored], _Scored | None]]:
    """The best reasonings of all rounds, best first; if there is none, the furthest that any round came."""
    config, (looked, reasoned) = question.config, question.cot_format.stages[-3:-1]
    keep = RELEASED_KEEP if config.faithful else config.swires.keep
    most = max(keep, RELEASED_CONCLUSIONS if config.faithful else 0)
    pool: list[_Scored] = []
    stuck = None
    for number in range(1 + (RELEASED_RETRACES if config.faithful else config.swires.retraces)):
        found = yield from _round(question, [before], looked, number)
        if found and found[0].usable:
            kept = [one.path for one in found[:keep]]
            found = (yield from _round(question, kept, reasoned, number)) or found
        if found and found[0].usable and found[0].stage == reasoned:
            pool = _ranked([*pool, *found])[:most]
        elif found:
            stuck = found[0]
        if found and found[0].is_cut:  # what is left is for the conclusion
            question.alone = True
        if not found or question.alone or question.budget.is_late or _is_accepted(question, pool, keep):
            break
    return pool, stuck


def _without_reasoning(question: Question, before: Path, stuck: _Scored | None) -> Steps[Outcome]:
    """No round came to a reasoning: what the budget cut is finished alone, what the model did not close is the end."""
    path, left = before, question.cot_format.stages[-3:]
    if stuck is not None:
        path = stuck.path
        left = left[left.index(stuck.stage) + stuck.usable :]
        if not stuck.usable and not stuck.is_cut:
            return ended(question, path, why(question, stage(question.cot_format, question.config, stuck.stage), path))
    return (yield from search(question, [_single(question, one) for one in left], path))


def _round(
    question: Question, paths: Sequence[Path], one: Stage, number: int, count: int | None = None
) -> Steps[list[_Scored]]:
    """Candidates of one stage, so many or as many as the settings say, best first, each with its own score."""
    boundary = stage(question.cot_format, question.config, one)
    boundary = replace(boundary, step=f"{one.name}.{number}")
    drawn = yield from question.draw(paths, boundary, count)
    if not drawn:
        return []
    standings = [standing(boundary, question.cot_format, path) for path in drawn]
    field = [place for place, found in enumerate(standings) if found == min(standings)]
    verdict = yield from _scores(question, boundary, [drawn[place] for place in field])
    usable = min(standings) <= 1
    question.record(boundary, drawn, field if usable else [], field, verdict)
    scored = []
    for path, score in zip((drawn[place] for place in field), verdict.scores, strict=True):
        rested = replace(path, used=0) if usable else path
        scored.append(_Scored(rested, one, score, verdict.scored_by, usable, not usable and is_cut(boundary, path)))
    return _ranked(scored)


def _scores(question: Question, boundary: Boundary, paths: Sequence[Path]) -> Steps[Verdict]:
    """A score for the latest stage of each; of one unit, whatever the scorer could not score."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, path in enumerate(paths):
        groups.setdefault(path.numbers[:-1], []).append(place)
    contests = tuple(question.contest(boundary, [paths[place] for place in group]) for group in groups.values())
    verdicts: list[Verdict] = logprob(contests) if question.budget.is_late else (yield Judge(question.scorer, contests))
    failures = sum(verdict.failures for verdict in verdicts)
    if len({verdict.scored_by for verdict in verdicts}) > 1:
        verdicts = logprob(contests)
    scores = [0.0] * len(paths)
    for group, verdict in zip(groups.values(), verdicts, strict=True):
        for place, score in zip(group, verdict.scores, strict=True):
            scores[place] = score
    winner = max(range(len(scores)), key=scores.__getitem__)
    return Verdict(winner, scores, scored_by=verdicts[0].scored_by, failures=failures)


def _ranked(pool: Sequence[_Scored]) -> list[_Scored]:
    """Best first; scores of different units are not compared, but likelihoods are."""
    if len({one.unit for one in pool}) > 1:
        return sorted(pool, key=lambda one: -one.path.last.likelihood)
    return sorted(pool, key=lambda one: -one.score)


def _is_accepted(question: Question, pool: Sequence[_Scored], keep: int) -> bool:
    unit = "logprob" if question.scorer is logprob else "reward"
    if any(one.unit != unit or not math.isfinite(one.score) for one in pool):
        return True
    return len(pool) >= keep and pool[keep - 1].score > cutoff(question.config)


def _single(question: Question, one: Stage) -> Boundary:
    return replace(stage(question.cot_format, question.config, one), count=1, keep=1)


def cutoff(config: SearchSection) -> float:
    """The score that a reasoning must be above.

    Raises:
        SearchError: the scorer is not calibrated.
    """
    known = config.swires.accepts_above
    if known is None and not config.faithful:
        raise SearchError(NO_CUTOFF)
    return RELEASED_CUTOFF if known is None else known


def check(cot_format: CotFormat, config: SearchSection, has_own_scorer: bool) -> None:
    """See that the search is defined.

    Raises:
        SearchError: the format has too few stages, the scorer none that can be held against a cutoff, or there is no cutoff.
    """
    if cot_format.split or not cot_format.is_tagged or len(cot_format.stages) < 3:
        what = f"swires needs three stages written in one pass, and the format {cot_format.name} has not"
        raise SearchError(Problem("search.strategy", what, "use stage_beam, best_of_n, majority or adaptive"))
    if config.scorer == "self_judge" and not has_own_scorer:
        raise SearchError(NO_SCORE)
    cutoff(config)


def calibrate(
    engine: Engine, cot_format: CotFormat, samples: Sequence[Sample], scorer: scorers.Scores | None, config: SearchSection
) -> Calibration:
    """Mean and standard deviation of the scores of one sampled reasoning a question.

    Args:
        engine: runs the model.
        cot_format: its last stage but one is scored.
        samples: questions; more are better: the mean of 25 is known to a fifth of the standard deviation.
        scorer: a function of one's own; the settings' scorer if None.
        config: its scorer, budgets and sampling.

    Raises:
        SearchError: fewer than two reasonings could be scored, or the format or scorer does not fit.
    """
    check(cot_format, config.model_copy(update={"faithful": True}), scorer is not None)
    engine, how = engine.for_search(), interleave(cot_format, config)
    judge, look = scorers.scorer(engine, config, scorer), how and engine.see(how)

    def score(sample: Sample) -> Steps[list[_Scored]]:
        question = Question(engine, cot_format, sample, config, judge, Budget(config), Log(lambda _step: None), look=look)
        before = yield from search(question, [_single(question, one) for one in cot_format.stages[:-2]])
        if before.stopped != "complete":
            return []
        return (yield from _round(question, [before.path], cot_format.stages[-2], 0, 1))

    unit = "logprob" if judge is logprob else "reward"
    scored: list[_Scored] = []
    for begin in range(0, len(samples), AT_ONCE):
        scored += [one for some in drive([*map(score, samples[begin : begin + AT_ONCE])]) for one in some[:1]]
    found = [one.score for one in scored if one.unit == unit and one.usable and math.isfinite(one.score)]
    if len(found) < 2:
        what = f"{len(found)} of {len(samples)} questions came to a reasoning with a score, and at least two are needed"
        raise SearchError(Problem("calibrate", what, "give more questions, or see that the scorer answers"))
    return Calibration(statistics.mean(found), statistics.stdev(found), len(found))
