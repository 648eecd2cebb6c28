"""One question while it is searched: what has been written, drawn and spent."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lora_cot.engines.base import Ask, Candidate, Engine
from lora_cot.engines.interleave import Interleave, Looking
from lora_cot.formats import CotFormat
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.boundaries import Boundary, Path, closed, piece, standing
from lora_cot.search.budget import Budget
from lora_cot.search.contests import Contest, Scorer, Verdict, logprob, ranking
from lora_cot.search.drive import Extend, Judge, Start, Steps
from lora_cot.search.trace import WITHIN, Log, TracedCandidate, TracedStage
from lora_cot.types import Sample


@dataclass(frozen=True)
class Outcome:
    """What a search of one pass comes to."""

    path: Path
    stopped: str
    """complete, or why it ended early."""


class Question:
    """One pass of one question. What it draws goes into its log and comes off its budget."""

    def __init__(
        self,
        engine: Engine,
        cot_format: CotFormat,
        sample: Sample,
        config: SearchSection,
        scorer: Scorer,
        budget: Budget,
        log: Log,
        root: int | None = None,
        look: Interleave | None = None,
    ):
        """
        Args:
            engine: with the prompts of this pass.
            cot_format: the whole format, or the pass of a split one.
            sample: what is asked.
            config: strategy and settings.
            scorer: chooses among candidates.
            budget: of the whole question, all passes together.
            log: of the whole question.
            root: number of the candidate that the pass before ended with.
            look: how its texts look at their images again.
        """
        self.engine, self.cot_format, self.sample, self.config = engine, cot_format, sample, config
        self.scorer, self.budget, self.log, self._root = scorer, budget, log, root
        self._look = Looking(look, sample, config.seed) if look else None
        self.alone = False
        """The tokens are nearly spent: from here on one candidate at a time."""
        self._begun: float | None = None
        self._rounds = 0

    def start(self) -> Steps[Path]:
        """The prompt, nothing written yet."""
        state = yield Start(self.engine, self.sample)
        return Path(state, self.cot_format.parse(""))

    def draw(self, paths: Sequence[Path], boundary: Boundary, count: int | None = None, first: int = 0) -> Steps[list[Path]]:
        """The paths, each with its share of new candidates; none if the budget is spent.

        Args:
            paths: best first: the first ones get one more where the candidates cannot be shared evenly.
            boundary: where the candidates end.
            count: of candidates; the boundary's if not given.
            first: number of the first one's seed.
        """
        count = boundary.count if count is None else count
        if self.alone or self.budget.share(count) == 0:
            count, self.alone = 1, True
        share = self.budget.share(count)
        if share == 0 or self.budget.is_late:
            return []
        self._begun = time.perf_counter() if self._begun is None else self._begun
        self._rounds += 1
        each, more = divmod(count, len(paths))
        asks, asking = [], []
        for place, path in enumerate(paths):
            size = each + (place < more)
            if size:
                asks.append(self._ask(path, boundary, range(first, first + size), share))
                asking.append(path)
                first += size
        drawn = yield Extend(self.engine, tuple(asks))
        return [
            self._grown(path, boundary, candidate)
            for path, candidates in zip(asking, drawn, strict=True)
            for candidate in candidates
        ]

    def _ask(self, path: Path, boundary: Boundary, seeds: range, share: int | None) -> Ask:
        limit = boundary.limit - path.used
        more = "more." if path.used and boundary.kind != "sentence" else ""
        return Ask(
            path.state,
            [f"{self.config.seed}/{self.sample.id}/{more}{boundary.step}/{number}" for number in seeds],
            limit if share is None else min(limit, share),
            boundary.stop,
            boundary.kind == "sentence",
            boundary.sampling,
            self.budget.deadline,
            keep_states=not boundary.is_last or (share is not None and share < limit),
            look=self._look,
        )

    def _grown(self, path: Path, boundary: Boundary, candidate: Candidate) -> Path:
        self.budget.spend(candidate.spent)
        text = path.text + candidate.text
        parsed = self.cot_format.parse(text) if candidate.text else path.parsed
        return Path(
            candidate.state,
            parsed,
            text,
            (*path.candidates, replace(candidate, state=None)),  # or a path would hold the cache of each of its segments
            (*path.numbers, self.log.number()),
            (*path.pieces, (boundary.stage.name, piece(boundary, parsed, candidate))),
            path.used + candidate.tokens,
        )

    def carried(self, path: Path, boundary: Boundary) -> Path:
        """A path that has ended, as a candidate among those that go on."""
        return self._grown(path, boundary, replace(path.last, text="", tokens=0, logprob=0.0, seconds=0.0, looks=()))

    def select(self, boundary: Boundary, drawn: Sequence[Path]) -> Steps[list[Path]]:
        """The best of the paths, best first: of those of the best standing, as the scorer ranks them."""
        standings = [standing(boundary, self.cot_format, path) for path in drawn]
        field = [place for place, found in enumerate(standings) if found == min(standings)]
        contest = self.contest(boundary, [drawn[place] for place in field])
        verdict = yield from self.judge(contest)
        ranked = [field[place] for place in ranking(contest, verdict)]
        kept = ranked[: 1 if self.alone else boundary.keep]
        self.record(boundary, drawn, kept, field, verdict)
        if len(kept) == 1:
            self.log.settle(drawn[kept[0]].numbers)
        return [drawn[place] for place in kept]

    def contest(self, boundary: Boundary, paths: Sequence[Path], votes: Sequence[str] = ()) -> Contest:
        """The paths before a scorer: what all have in common is given, the rest are the texts.

        Args:
            boundary: that they were drawn for.
            paths: at least one.
            votes: of theirs, where that is all that is to be decided.
        """
        common = 0
        for numbers in zip(*(path.numbers[:-1] for path in paths), strict=False):
            if len(set(numbers)) > 1:
                break
            common += 1
        prompted = [(one.name, (self.sample.last.stages or {}).get(one.name, "")) for one in self.cot_format.given or ()]
        given = [(name, text) for name, text in (*prompted, *paths[0].pieces[:common]) if text]
        texts = [" ".join(filter(None, (text for _, text in path.pieces[common:]))) for path in paths]
        candidates = [_joined(path.candidates[common:]) for path in paths]
        seed = f"{self.config.seed}/{self.sample.id}/{boundary.step}"
        bounds = (self.budget.deadline, self.budget.for_judges)
        return Contest(self.sample, boundary.stage, tuple(given), candidates, texts, seed, *bounds, votes)

    def judge(self, contest: Contest) -> Steps[Verdict]:
        """The scorer's verdict. One text needs none, and after the deadline none is asked for: likelihood decides."""
        if len(contest.texts) == 1 or self.budget.is_late:
            return logprob([contest])[0]
        (verdict,) = yield Judge(self.scorer, (contest,))
        self.budget.spend(verdict.judge_tokens)
        return verdict

    def record(
        self,
        boundary: Boundary,
        drawn: Sequence[Path],
        kept: Sequence[int],
        field: Sequence[int],
        verdict: Verdict,
        answers: Sequence[str | None] | None = None,
    ) -> None:
        """Trace a step: all that was drawn, the places of those that go on, and of those that competed."""
        scores = dict(zip(field, verdict.scores, strict=True))
        traced = tuple(
            self._traced(boundary, path, scores.get(place), place in kept, answers[place] if answers else None)
            for place, path in enumerate(drawn)
        )
        comparisons = tuple(comparison.renumbered(field) for comparison in verdict.comparisons)
        seconds, rounds = time.perf_counter() - (self._begun or 0.0), self._rounds
        self._begun, self._rounds = None, 0
        self.log.steps.append(
            TracedStage(
                self._name(boundary),
                traced,
                comparisons,
                verdict.scored_by,
                verdict.prompts,
                verdict.skipped,
                verdict.failures,
                seconds,
                rounds,
                verdict.judge_tokens,
            )
        )

    def _name(self, boundary: Boundary) -> str | None:
        if self.cot_format.given is None:
            return boundary.name
        stage = self.cot_format.stages[0].name
        return stage if boundary.name in (None, stage) else f"{stage}{WITHIN}{boundary.name}"

    def _traced(self, boundary: Boundary, path: Path, score: float | None, kept: bool, answer: str | None) -> TracedCandidate:
        last = path.last
        parent = path.numbers[-2] if len(path.numbers) > 1 else self._root
        return TracedCandidate(
            last.text,
            last.spent,
            score,
            last.mean_logprob,
            closed(boundary, self.cot_format, path),
            False,
            kept,
            path.numbers[-1],
            parent,
            last.ended,
            last.seconds,
            last.problem,
            answer,
            last.tokens_shared,
            last.looks,
        )


def _joined(candidates: Sequence[Candidate]) -> Candidate:
    """Candidates one after another as one, so that texts that parted earlier are scored by all in which they differ."""
    tokens, logprob = sum(c.tokens for c in candidates), sum(c.logprob for c in candidates)
    return replace(candidates[-1], tokens=tokens, logprob=logprob)
