"""Ways to answer a question with an engine: one pass, or stage by stage with a choice at every closing tag.

Stage-level beam search (LLaVA-CoT, Xu et al. 2024, section 3.3): N candidates for each stage, the best one is the
prefix of the next stage's candidates. Every search is bounded by the stages' budgets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_cot.engines.base import Candidate, Engine, Sampling
from lora_cot.errors import Problem, SearchError
from lora_cot.formats import CotFormat, Stage
from lora_cot.recipe.schema import SearchSection
from lora_cot.search import scorers
from lora_cot.search.trace import Completion, TracedCandidate, TracedStage
from lora_cot.types import Sample

OnStage = Callable[[int, TracedStage], None]
"""Told (number of the question, what was chosen) as soon as a stage is decided."""

Strategy = Callable[[Engine, CotFormat, Sequence[Sample], SearchSection, OnStage], list[Completion]]


def answer(
    engine: Engine,
    cot_format: CotFormat,
    samples: Sequence[Sample],
    config: SearchSection,
    on_stage: OnStage = lambda _number, _stage: None,
) -> list[Completion]:
    """Answers to the samples' last questions, in order.

    Args:
        engine: runs the model.
        cot_format: its stages are the boundaries of a stage search. A split format is searched pass by pass; what one
            pass chose stands in the next one's prompt, whatever gold text the sample has.
        samples: answered together, as one batch.
        config: strategy and settings.
        on_stage: called as each stage of each question is decided.

    Raises:
        SearchError: the strategy is not defined for this format.
        DataError: an image cannot be opened.
    """
    begin = time.perf_counter()
    strategy = STRATEGIES[config.strategy]
    if config.strategy == "stage_beam" and not cot_format.is_tagged:
        remedy = "use greedy or sample, or a format with stages"
        raise SearchError(Problem("search.strategy", f"the format {cot_format.name} has no stages to search", remedy))
    if cot_format.split:
        completions = _pass_by_pass(strategy, engine, cot_format, samples, config, on_stage)
    else:
        completions = strategy(engine, cot_format, samples, config, on_stage)
    for completion in completions:
        completion.seconds = (time.perf_counter() - begin) / len(samples)
    return completions


def _pass_by_pass(
    strategy: Strategy,
    engine: Engine,
    cot_format: CotFormat,
    samples: Sequence[Sample],
    config: SearchSection,
    on_stage: OnStage,
) -> list[Completion]:
    done = [Completion(sample.id, "", cot_format.parse("")) for sample in samples]
    texts: list[dict[str, str]] = [{} for _ in samples]
    alive = list(range(len(samples)))
    for one in cot_format.passes:
        stage = one.stages[0]
        asked = [with_stages(samples[i], texts[i]) for i in alive]

        def tell(number: int, traced: TracedStage, alive: list[int] = alive, name: str = stage.name) -> None:
            done[alive[number]].trace.append(replace(traced, stage=name))
            on_stage(alive[number], done[alive[number]].trace[-1])

        for i, found in zip(alive, strategy(engine.for_pass(one), one, asked, config, tell), strict=True):
            texts[i][stage.name] = found.text.strip()
            _add_costs(done[i], found)
            stopped = found.stopped if found.text.strip() else f"{stage.name} is empty"
            if done[i].stopped == "complete":  # of several reasons the first is told
                done[i].stopped = stopped
        alive = [i for i in alive if texts[i][stage.name]]  # a text without an end is handed on as it is
        if not alive:
            break
    for completion, found_texts in zip(done, texts, strict=True):
        ended = completion.trace[-1].candidates
        completion.text = _written(cot_format, found_texts, any(c.chosen and c.closed for c in ended))
        completion.parsed = cot_format.parse(completion.text)
    return done


def with_stages(sample: Sample, texts: Mapping[str, str]) -> Sample:
    """The sample with these texts as stages of its last exchange, in place of the gold ones."""
    last = replace(sample.last, stages={**(sample.last.stages or {}), **texts})
    return replace(sample, exchanges=(*sample.exchanges[:-1], last))


def _written(cot_format: CotFormat, texts: Mapping[str, str], complete: bool) -> str:
    """The text of a split format as if it had been written in one pass; the last stage is left open if it did not end."""
    text = "".join(piece for _, piece in cot_format.write(texts))
    last = cot_format.stage(list(texts)[-1])
    return text if complete else text.removesuffix(cot_format.closing(last)).rstrip()


def _add_costs(completion: Completion, found: Completion) -> None:
    completion.kept_tokens += found.kept_tokens
    completion.generated_tokens += found.generated_tokens
    completion.judge_calls += found.judge_calls


def _seeds(sample: Sample, config: SearchSection, step: str, count: int) -> list[str]:
    return [f"{config.seed}/{sample.id}/{step}/{number}" for number in range(count)]


def _budget(stage: Stage, config: SearchSection) -> int:
    special = config.stages.get(stage.name)
    return (special and special.max_new_tokens) or stage.max_new_tokens


def _traced(candidate: Candidate, score: float | None, chosen: bool) -> TracedCandidate:
    return TracedCandidate(candidate.text, candidate.tokens, score, candidate.mean_logprob, candidate.closed, chosen)


def _one_pass(sampling: Sampling | None) -> Strategy:
    def run(
        engine: Engine, cot_format: CotFormat, samples: Sequence[Sample], config: SearchSection, on_stage: OnStage
    ) -> list[Completion]:
        budget = sum(_budget(stage, config) for stage in cot_format.stages)
        drawn = engine.extend(
            engine.start(samples),
            [_seeds(sample, config, "all" if cot_format.given is None else cot_format.name, 1) for sample in samples],
            None,
            budget,
            sampling or Sampling(config.temperature, config.top_p),
            keep_states=False,
        )
        completions = []
        for number, (sample, (candidate,)) in enumerate(zip(samples, drawn, strict=True)):
            step = TracedStage(None, (_traced(candidate, candidate.mean_logprob, True),))
            on_stage(number, step)
            stopped = "complete" if candidate.closed else f"no end after {candidate.tokens} tokens"
            parsed = cot_format.parse(candidate.text)
            tokens = candidate.tokens
            completions.append(Completion(sample.id, candidate.text, parsed, stopped, [step], tokens, tokens))
        return completions

    return run


def stage_beam(
    engine: Engine, cot_format: CotFormat, samples: Sequence[Sample], config: SearchSection, on_stage: OnStage
) -> list[Completion]:
    """N candidates for each stage; the scorer's choice goes on. A candidate that closes its stage beats one that does not."""
    scorer = scorers.SCORERS[config.scorer](engine, config)
    states: list[Any] = engine.start(samples)
    done = [Completion(sample.id, "", cot_format.parse("")) for sample in samples]
    alive = list(range(len(samples)))
    for stage in cot_format.stages:
        special = config.stages.get(stage.name)
        count = (special and special.candidates) or config.candidates
        drawn = engine.extend(
            [states[i] for i in alive],
            [_seeds(samples[i], config, stage.name, count) for i in alive],
            cot_format.closing(stage) or None,
            _budget(stage, config),
            Sampling(config.temperature, config.top_p),
        )
        contests, fields = [], []
        for i, candidates in zip(alive, drawn, strict=True):
            closed = [k for k, c in enumerate(candidates) if c.closed]
            running = [k for k in closed if candidates[k].text.strip()] or closed or list(range(len(candidates)))
            given = _given(cot_format, samples[i], done[i].text)
            texts = [_stage_text(cot_format, stage, done[i].text, candidates[k].text) for k in running]
            contests.append(scorers.Contest(samples[i], stage, given, [candidates[k] for k in running], texts))
            fields.append(running)
        for i, candidates, running, verdict in zip(alive, drawn, fields, scorer(contests), strict=True):
            winner = running[verdict.winner]
            scores = dict(zip(running, verdict.scores, strict=True))
            traced = [_traced(c, scores.get(k), k == winner) for k, c in enumerate(candidates)]
            comparisons = [scorers.renumber(comparison, running) for comparison in verdict.comparisons]
            _record(done[i], TracedStage(stage.name, tuple(traced), tuple(comparisons)), candidates, winner)
            on_stage(i, done[i].trace[-1])
            states[i] = candidates[winner].state
            if not candidates[winner].closed:
                done[i].stopped = f"no candidate closed {stage.name}"
        alive = [i for i in alive if done[i].stopped == "complete"]
        if not alive:
            break
    for completion in done:
        completion.parsed = cot_format.parse(completion.text)
    return done


def _given(cot_format: CotFormat, sample: Sample, text: str) -> str:
    """The stages before: those that stand in the prompt of a pass, and those written since."""
    prompted = [(sample.last.stages or {}).get(stage.name, "") for stage in cot_format.given or ()]
    return " ".join(filter(None, [*prompted, *(found.text for found in cot_format.parse(text).stages)]))


def _stage_text(cot_format: CotFormat, stage: Stage, before: str, text: str) -> str:
    found = cot_format.parse(before + text).get(stage.name)
    return found.text if found else text.strip()


def _record(completion: Completion, step: TracedStage, candidates: Sequence[Candidate], winner: int) -> None:
    completion.trace.append(step)
    completion.text += candidates[winner].text
    completion.kept_tokens += candidates[winner].tokens
    completion.generated_tokens += sum(candidate.tokens for candidate in candidates)
    completion.judge_calls += 2 * len(step.comparisons)


STRATEGIES: dict[str, Strategy] = {
    "greedy": _one_pass(Sampling()),
    "sample": _one_pass(None),
    "stage_beam": stage_beam,
}
"""Strategies by the name a recipe gives them."""
