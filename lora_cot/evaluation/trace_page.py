"""A search drawn as a tree: steps from top to bottom, candidates side by side, lines from each to what goes on from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_cot.engines.base import Ended
from lora_cot.evaluation.looks import Area, stretches
from lora_cot.pages import render
from lora_cot.recipe.schema import SearchSection
from lora_cot.recipe.search import UNSCORED
from lora_cot.search.trace import Comparison, Completion, TracedCandidate, TracedStage

ENDED: dict[Ended, str] = {
    "stop": "closed",
    "sentence": "ended a sentence",
    "end": "ended",
    "length": "cut at its tokens",
    "deadline": "cut by the deadline",
    "failed": "failed",
}
WIDTH = 1000
"""Of a drawing of lines, in its own units; the browser stretches it to the row."""
Rank = str
"""chosen, kept or lost: what became of a candidate."""


@dataclass(frozen=True)
class Line:
    """From a candidate to one that goes on from it; `start` or `end` None: it comes from, or goes to, the margin."""

    start: float | None
    end: float | None
    rank: Rank


@dataclass(frozen=True)
class Card:
    """One candidate on the page."""

    candidate: TracedCandidate
    rank: Rank
    ended: str
    is_fault: bool
    """It did not end as it was meant to."""
    score: str
    bar: float | None
    """Its score as a length, 0 to 100."""
    verdicts: tuple[tuple[str, str], ...]
    """(how it went: won, lost or unclear; in words) of each comparison."""


@dataclass(frozen=True)
class Group:
    """Candidates side by side that voted for the same; of a step without votes, all of them."""

    answer: str | None
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Row:
    """One step on the page."""

    step: TracedStage
    is_vote: bool
    groups: tuple[Group, ...]
    lines: tuple[Line, ...]
    """That come into it."""
    passing: Rank | None
    """The best rank among lines that pass it by in the margin."""
    tokens: int
    kept: int
    flips: int

    @property
    def cards(self) -> tuple[Card, ...]:
        """From left to right."""
        return tuple(card for group in self.groups for card in group.cards)


def trace_page(
    question: str, images: Sequence[str], completion: Completion, config: SearchSection, areas: Sequence[Area] = ()
) -> str:
    """The page of a search, self-contained.

    Args:
        question: as it was asked.
        images: data URIs.
        completion: with its trace.
        config: what it was searched with.
        areas: what of each image the model's patches cover; all of it if not given.
    """
    found = rows(completion.trace)
    return render(
        "trace.html",
        title="How the answer was found",
        question=question,
        images=images,
        completion=completion,
        settings=_settings(config),
        stretches=stretches(completion.trace, images, areas),
        rows=found,
        columns=max((len(row.cards) for row in found), default=1),
        most=max((row.tokens for row in found), default=0) or 1,
        width=WIDTH,
    )


def rows(steps: Sequence[TracedStage]) -> list[Row]:
    """The steps as they are drawn. A line from a step that is not the one before runs along the margin."""
    places: dict[int | None, tuple[int, float]] = {None: (-1, WIDTH / 2)}
    drawn = []
    for number, step in enumerate(steps):
        groups = _groups(step)
        ordered = [card.candidate for group in groups for card in group.cards]
        for place, candidate in enumerate(ordered):
            places[candidate.number] = (number, (place + 0.5) / len(ordered) * WIDTH)
        drawn.append((step, groups, ordered))
    into: list[list[Line]] = [[] for _ in drawn]
    passing: list[list[Rank]] = [[] for _ in drawn]
    for number, (_, _, ordered) in enumerate(drawn):
        for candidate in ordered:
            above, start = places.get(candidate.parent, places[None])
            rank, end = _rank(candidate), places[candidate.number][1]
            if above == number - 1:
                into[number].append(Line(start, end, rank))
                continue
            into[above + 1].append(Line(start, None, rank))
            into[number].append(Line(None, end, rank))
            for between in range(above + 1, number):
                passing[between].append(rank)
    return [_row(step, groups, into[number], passing[number]) for number, (step, groups, _) in enumerate(drawn)]


RANKS = ("lost", "kept", "chosen")
"""From the least; the better one is drawn over the others."""


def _row(step: TracedStage, groups: tuple[Group, ...], lines: Sequence[Line], passing: Sequence[Rank]) -> Row:
    return Row(
        step,
        any(candidate.answer is not None for candidate in step.candidates),
        groups,
        tuple(sorted(set(lines), key=lambda line: RANKS.index(line.rank))),
        max(passing, key=RANKS.index, default=None),
        sum(candidate.tokens for candidate in step.candidates),
        sum(candidate.tokens for candidate in step.candidates if candidate.chosen),
        sum(comparison.flipped for comparison in step.comparisons),
    )


def _groups(step: TracedStage) -> tuple[Group, ...]:
    """The winner's votes first, then by their number; those without a vote last."""
    cards: dict[str | None, list[Card]] = {}
    for place in range(len(step.candidates)):
        cards.setdefault(step.candidates[place].answer, []).append(_card(step, place))
    order = sorted(
        cards.items(), key=lambda item: (item[0] is None, not any(c.rank == "chosen" for c in item[1]), -len(item[1]))
    )
    return tuple(Group(answer, tuple(found)) for answer, found in order)


def _rank(candidate: TracedCandidate) -> Rank:
    return "chosen" if candidate.chosen else "kept" if candidate.kept else "lost"


def _card(step: TracedStage, place: int) -> Card:
    candidate = step.candidates[place]
    rank, score, bar = _rank(candidate), _score(step, candidate), _bar(step, candidate)
    ended = ENDED[candidate.ended]
    if not candidate.closed and candidate.ended in ("stop", "sentence", "end"):
        ended += ", but not where it was meant to"
    if candidate.problem:
        ended += f": {candidate.problem}"
    verdicts = tuple(_verdict(step, one, place) for one in step.comparisons if place in (one.first, one.second))
    return Card(candidate, rank, ended, not candidate.closed, score, bar, verdicts)


def _score(step: TracedStage, candidate: TracedCandidate) -> str:
    score = candidate.score
    if score is None:
        return "not in the contest"
    if step.scored_by == "wins":
        return f"{score:g} {'win' if score == 1 else 'wins'}"
    if math.isnan(score):
        return "likelihood unknown"
    return f"{score:.3g} nats" if step.scored_by == "logprob" else f"{score:.3g} {step.scored_by}"


def _bar(step: TracedStage, candidate: TracedCandidate) -> float | None:
    """A likelihood as it is, anything else between the least and the best of the step."""
    scores = [one.score for one in step.candidates if one.score is not None and math.isfinite(one.score)]
    if candidate.score is None or not math.isfinite(candidate.score):
        return None
    if step.scored_by == "logprob":
        return 100 * math.exp(min(candidate.score, 0.0))
    low, high = min(0.0, *scores), max(scores)
    return 100 * (candidate.score - low) / (high - low) if high > low else None


def _verdict(step: TracedStage, comparison: Comparison, place: int) -> tuple[str, str]:
    other = comparison.second if place == comparison.first else comparison.first
    number = step.candidates[other].number
    outcome = "won against" if comparison.winner == place else "lost to"
    if comparison.failed:
        return "unclear", f"{outcome} #{number}, by likelihood: the verdict could not be read"
    if comparison.flipped:
        return "unclear", f"{outcome} #{number}, by likelihood: the verdict changed with the order"
    margin = "" if comparison.margin is None else f" by {abs(comparison.margin):.2f} log-odds"
    return ("won" if comparison.winner == place else "lost"), f"{outcome} #{number}{margin}"


def _settings(config: SearchSection) -> list[tuple[str, Any]]:
    """What matters to the strategy, and whatever is not at its default."""
    names = ["strategy"]
    names += [] if config.strategy in UNSCORED else ["candidates", "scorer"]
    names += [] if config.strategy in ("greedy", "two_pass") else ["temperature", "top_p", "seed"]
    looks = [("interleave", config.interleave.selector)] if config.interleave else []
    changed = {k: v for k, v in _flat(config.model_dump(exclude_defaults=True)) if k not in (*names, "interleave.selector")}
    return [(name, getattr(config, name)) for name in names] + looks + list(changed.items())


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
