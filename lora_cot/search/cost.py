"""What a search takes at most, in tokens, before it is begun.

A bound, not an estimate: every candidate is counted as long as it may get, every stage as drawn in every round, every pair
as compared. What is written cannot be counted before; read again, by a judge or in the next pass's prompt, it is other
tokens, and more where it holds halves of characters or control tokens. So what judges may read is an allowance: whoever runs
them holds them to it (`Cost.judged`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lora_cot.engines.base import Engine
from lora_cot.formats import FORMATS, CotFormat, Stage
from lora_cot.formats.judging import HINTS, judge_question, published_check, published_question
from lora_cot.recipe.schema import SearchSection
from lora_cot.recipe.search import UNSCORED
from lora_cot.search import boundaries, published
from lora_cot.search.run import Pass
from lora_cot.search.swires import RELEASED_CONCLUSIONS, RELEASED_KEEP, RELEASED_RETRACES
from lora_cot.types import Exchange, Sample

AGAIN = 2
"""Tokens of a judge's prompt for each token of a text; of most texts it is one."""
LETTERS = 8
"""The same of the next pass's prompt, which is written once: even of control tokens, which are read letter by letter."""
JUDGED_SENTENCES = 64
"""Sentences of an answer that there is an allowance to judge."""
Count = Callable[[Engine, Sample], int]
"""Tokens of a sample's prompt, at most."""


@dataclass(frozen=True)
class Cost:
    """Of one answer, at most."""

    prompts: int = 0
    """Tokens of its passes' prompts."""
    drawn: int = 0
    """Tokens of all candidates, and that judges write."""
    judged: int = 0
    """Tokens of judges' prompts."""
    shown: int = 0
    """Tokens of patches that its texts are shown again; of a sentence beam, what as many sentences may be shown as are judged:
    what all may be is no search that is ever made."""

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.prompts + self.drawn + self.judged + self.shown


@dataclass(frozen=True)
class _Step:
    """Candidates of one kind that are drawn, and compared."""

    stage: Stage
    drawn: int
    """Tokens of all of them."""
    rows: int
    """Candidates, one by one."""
    compared: int
    """Candidates of a contest."""
    contests: int
    given: int
    """Tokens of what they go on from."""
    text: int
    """Tokens of each one's text."""


def most_tokens(passes: Sequence[Pass], sample: Sample, config: SearchSection, count: Count) -> Cost:
    """What the search of one question takes at most.

    Args:
        passes: see `prepare`.
        sample: what is asked.
        config: strategy and settings.
        count: of prompts. A judge's is counted with placeholders.
    """
    prompts = drawn = judged = shown = before = 0
    placeholders: dict[str, str] = {}
    for one in passes:
        prompt = count(one.engine, sample.with_stages(placeholders)) + LETTERS * before
        prompts += prompt
        for step in _steps(one.cot_format, config):
            drawn += step.drawn
            shown += step.rows * most_shown(one, sample, prompt, step.text)
            if config.scorer == "self_judge" and config.strategy not in UNSCORED:
                written, read = _judged(one, sample, config, step, before, count)
                drawn, judged = drawn + written, judged + read
        if len(passes) > 1:
            before += sum(config.budget(stage) for stage in one.cot_format.stages)
            placeholders |= {stage.name: "." for stage in one.cot_format.stages}
    most = config.max_search_tokens
    return Cost(prompts, drawn if most is None else min(drawn, most), judged, shown)


def most_shown(one: Pass, sample: Sample, prompt: int, drawn: int) -> int:
    """Tokens that a text of a pass may be shown again, at most: its images have no more patches than its prompt has tokens.

    Args:
        one: the pass.
        sample: what is asked.
        prompt: its tokens.
        drawn: tokens of the text.
    """
    return one.look.most_shown(prompt, drawn) if one.look and sample.images else 0


def _steps(cot_format: CotFormat, config: SearchSection) -> Iterator[_Step]:
    """The steps of one pass."""
    whole = boundaries.whole(cot_format, config, 1)
    if config.strategy in UNSCORED:
        yield _Step(whole.stage, whole.limit, 1, 1, 0, 0, whole.limit)
    elif config.strategy == "swires":
        yield from _retraced(cot_format, config)
    elif config.strategy == "stage_beam":
        before = 0
        for one in boundaries.stages(cot_format, config):
            given, text = (before, one.limit) if config.keep == 1 and not _keeps_more(config) else (0, before + one.limit)
            yield _Step(one.stage, one.count * one.limit, one.count, one.count, 1, given, text)
            before += one.limit
    elif config.strategy == "sentence_beam":
        sentence, limit = next(boundaries.sentences(cot_format, config)), whole.limit
        drawn = config.candidates * limit * (limit + 1) // 2  # a sentence has a token at least, and may be all that is left
        rounds = min(limit, JUDGED_SENTENCES)
        yield _Step(sentence.stage, drawn, config.candidates * rounds, config.candidates + config.keep, rounds, 0, limit)
    else:
        yield _Step(whole.stage, config.candidates * whole.limit, config.candidates, config.candidates, 1, 0, whole.limit)


def _keeps_more(config: SearchSection) -> bool:
    return any((stage.keep or 1) > 1 for stage in config.stages.values())


def _retraced(cot_format: CotFormat, config: SearchSection) -> Iterator[_Step]:
    """See `swires`; what scores there reads no prompt."""
    *before, looked, reasoned, last = boundaries.stages(cot_format, config)
    rounds = 1 + (RELEASED_RETRACES if config.faithful else config.swires.retraces)
    keep = max(config.swires.keep, RELEASED_KEEP, RELEASED_CONCLUSIONS) if config.faithful else config.swires.keep
    alone = looked.limit + reasoned.limit + last.limit  # where no round came to a reasoning
    for one in before:
        yield _Step(one.stage, one.limit, 1, 1, 0, 0, one.limit)
    for one in (looked, reasoned):
        yield _Step(one.stage, rounds * one.count * one.limit, rounds * one.count, one.count, 0, 0, one.limit)
    yield _Step(last.stage, max(keep * last.limit, alone), keep, keep, 0, 0, alone)


def _judged(one: Pass, sample: Sample, config: SearchSection, step: _Step, before: int, count: Count) -> tuple[int, int]:
    """Tokens that the judge of a step writes, and that it reads: a knock-out has a comparison less than players."""
    comparisons = step.contests * (step.compared - 1)
    if not comparisons:
        return 0, 0
    judge, question = one.engine.plain(config.judge_adapter), FORMATS["direct"].question(sample.last, sample.choices)
    texts = AGAIN * (before + step.given + 2 * step.text)

    def prompt(text: str, images: bool = True) -> int:
        return texts + count(judge, Sample(sample.id, (Exchange(text),), sample.images if images else ()))

    if not config.faithful:
        return 0, comparisons * 2 * prompt(judge_question(question, step.stage, ".", ".", "."))
    given = [(name, ".") for name in HINTS.get(step.stage.name, (step.stage.name,))]
    checks = 2 if step.stage.name == "REASONING" else 0
    asked = prompt(published_question(question, step.stage.name, given, ".", "."))
    read = asked + (checks * prompt(published_check(".", "."), images=False) if checks else 0)
    return comparisons * (1 + checks) * published.MAX_NEW_TOKENS, comparisons * read
