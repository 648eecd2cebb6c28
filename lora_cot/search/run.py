"""`answer`: questions searched with an engine, all of them at once and pass by pass.

What one pass of a split format chose stands in the next one's prompt. Every search is bounded (`segments.py`), and a
question whose candidates fail ends with what it has while the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from lora_cot.engines.base import Engine
from lora_cot.engines.interleave import Interleave
from lora_cot.formats import CotFormat
from lora_cot.recipe.schema import SearchSection
from lora_cot.recipe.search import UNSCORED
from lora_cot.search import scorers
from lora_cot.search.budget import Budget
from lora_cot.search.contests import Scorer, logprob
from lora_cot.search.drive import Steps, drive
from lora_cot.search.interleave import interleave
from lora_cot.search.question import Question
from lora_cot.search.strategies import STRATEGIES, check
from lora_cot.search.trace import Completion, Log, OnStage, TracedStage
from lora_cot.types import Sample


@dataclass(frozen=True)
class Pass:
    """One pass of a format, and what runs and judges it."""

    engine: Engine
    cot_format: CotFormat
    scorer: Scorer
    look: Interleave | None = None


def answer(
    engine: Engine,
    cot_format: CotFormat,
    samples: Sequence[Sample],
    config: SearchSection,
    on_stage: OnStage = lambda _number, _stage: None,
    scorer: scorers.Scores | None = None,
) -> list[Completion]:
    """Answers to the samples' last questions, in order.

    Args:
        engine: runs the model.
        cot_format: its stages are the boundaries of a stage search. A split format is searched pass by pass; what one
            pass chose stands in the next one's prompt, whatever gold text the sample has.
        samples: answered together, as one batch; the deadline is for all of them.
        config: strategy and settings.
        on_stage: called as soon as a step with a part of the returned text is certain.
        scorer: a function of one's own instead of the settings' scorer: from contests to the scores of each one's
            candidates, the higher the better.

    Raises:
        SearchError: the strategy is not defined for this format, or the scorer for this engine; or this engine can show no
            patches again.
        DataError: an image cannot be opened.
    """
    begin = time.perf_counter()
    passes = prepare(engine.for_search(), cot_format, config, scorer)
    completions = drive(
        [run(passes, cot_format, sample, config, partial(on_stage, number)) for number, sample in enumerate(samples)]
    )
    for completion in completions:
        completion.seconds = (time.perf_counter() - begin) / len(samples)
    return completions


def prepare(
    engine: Engine, cot_format: CotFormat, config: SearchSection, scorer: scorers.Scores | None = None
) -> tuple[Pass, ...]:
    """What the searches of a format share: nothing is run.

    Raises:
        SearchError: see `answer`.
    """
    check(cot_format, config, scorer is not None)
    engines = [engine.for_pass(one) for one in cot_format.passes] if cot_format.split else [engine]

    def judge(own: Engine) -> Scorer:
        return logprob if config.strategy in UNSCORED else scorers.scorer(own, config, scorer)

    looks = [interleave(one, config) for one in cot_format.passes]
    looks = [how and own.see(how) for own, how in zip(engines, looks, strict=True)]
    passes = zip(engines, cot_format.passes, looks, strict=True)
    return tuple(Pass(own, one, judge(own), how) for own, one, how in passes)


def run(
    passes: Sequence[Pass],
    cot_format: CotFormat,
    sample: Sample,
    config: SearchSection,
    tell: Callable[[TracedStage], None],
    deadline: float | None = None,
) -> Steps[Completion]:
    """The search of one question, to be driven with any others.

    Args:
        passes: see `prepare`.
        cot_format: of the whole text.
        sample: what is asked.
        config: strategy and settings.
        tell: called with each step that has a part of the returned text, as soon as that is certain.
        deadline: on `time.monotonic`'s clock; the settings' seconds from now, if not given.
    """
    log, budget = Log(tell), Budget(config, deadline)
    texts: dict[str, str] = {}
    stopped, root, whole = "complete", None, False
    text = ""
    for one in passes:
        asked = sample.with_stages(texts)
        question = Question(one.engine, one.cot_format, asked, config, one.scorer, budget, log, root, one.look)
        found = yield from STRATEGIES[config.strategy](question)
        text, path = found.path.text, found.path
        reason = found.stopped
        if cot_format.split:
            name = one.cot_format.stages[0].name
            texts[name] = text.strip()
            if reason == "complete" and not texts[name]:
                reason = f"{name} is empty"
        stopped = reason if stopped == "complete" else stopped  # of several reasons the first is told
        whole = bool(path.candidates) and path.last.ended == "end"
        root = path.numbers[-1] if path.numbers else root
        if not text.strip() or path.last.ended == "failed":
            break  # a text without an end is handed on as it is
    if cot_format.split:
        text = _written(cot_format, texts, whole)
    return _completion(sample.id, text, cot_format, stopped, log)


def _written(cot_format: CotFormat, texts: Mapping[str, str], whole: bool) -> str:
    """The text of a split format as if it had been written in one pass; the last stage is left open if it did not end."""
    text = "".join(piece for _, piece in cot_format.write(texts))
    last = cot_format.stage(list(texts)[-1])
    return text if whole else text.removesuffix(cot_format.closing(last)).rstrip()


def _completion(sample_id: str, text: str, cot_format: CotFormat, stopped: str, log: Log) -> Completion:
    drawn = [candidate for step in log.steps for candidate in step.candidates]
    return Completion(
        sample_id,
        text,
        cot_format.parse(text),
        stopped,
        log.steps,
        sum(candidate.tokens for candidate in drawn if candidate.chosen),
        sum(candidate.tokens for candidate in drawn),
        sum(step.judge_prompts for step in log.steps),
        sum(step.judge_tokens for step in log.steps),
    )
