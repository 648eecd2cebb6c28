"""`evaluate`: a model and a strategy on a benchmark, batch by batch."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_cot.checkpoints.opening import Opened, Quantization, open_model
from lora_cot.engines.local import LocalEngine
from lora_cot.errors import Problem, RunError
from lora_cot.evaluation.benchmarks import Benchmark, find
from lora_cot.evaluation.metrics import Share
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.strategies import answer
from lora_cot.search.trace import Completion
from lora_cot.types import Sample


@dataclass(frozen=True)
class EvalReport:
    """What a strategy got right, and what it cost."""

    benchmark: str
    split: str
    model: str
    strategy: str
    accuracy: Share
    groups: dict[str, Share]
    format_validity: Share
    unanswered: int
    """Questions without an answer; they count as wrong."""
    tokens_per_question: float
    """Tokens generated, those of lost candidates included."""
    kept_tokens_per_question: float
    judge_calls_per_question: float
    seconds_per_question: float

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        plain = {key: value for key, value in vars(self).items() if not isinstance(value, Share | dict)}
        shares = {"accuracy": self.accuracy.to_json(), "format_validity": self.format_validity.to_json()}
        return {**plain, **shares, "groups": {name: share.to_json() for name, share in self.groups.items()}}


def evaluate(
    model: str,
    benchmark: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    search: dict[str, Any] | None = None,
    output: Path | None = None,
    quantization: Quantization = "auto",
) -> EvalReport:
    """A model on a benchmark.

    Args:
        model: run, adapter, merged folder or hub id.
        benchmark: name of a benchmark; the recipe's if not given, its split and limit too.
        split: one of its splits; its first if not given.
        limit: first so many questions.
        search: keys of the recipe's search section to change.
        output: JSONL with each question's text, answer and verdict.
        quantization: how the base is loaded.

    Raises:
        RunError: no such benchmark, split or model.
    """
    if benchmark is not None:
        find(benchmark)  # before a model is loaded for nothing
    opened = open_model(model, quantization)
    print(opened.said, file=sys.stderr)
    wanted = opened.recipe.evaluation
    if benchmark is None or benchmark == wanted.benchmark:
        benchmark, split, limit = wanted.benchmark, split or wanted.split, limit or wanted.limit
    chosen = find(benchmark)
    split = split or chosen.splits[0]
    if split not in chosen.splits:
        raise RunError(Problem("--split", f"{benchmark} has no split '{split}'", f"allowed: {', '.join(chosen.splits)}"))
    config = SearchSection.model_validate({**opened.recipe.search.model_dump(), **(search or {})})
    samples = chosen.load(split, limit or chosen.default_limit)
    begin = time.perf_counter()
    completions = _answer_all(opened, samples, config)
    seconds = time.perf_counter() - begin
    right = [chosen.is_right(c.parsed.answer, sample) for c, sample in zip(completions, samples, strict=True)]
    if output is not None:
        _write(output, samples, completions, right)
    return _report(chosen, benchmark, split, model, config, samples, completions, right, seconds)


def _answer_all(opened: Opened, samples: Sequence[Sample], config: SearchSection) -> list[Completion]:
    from tqdm import tqdm

    cot_format = opened.recipe.format.build().spelled(opened.backbone.family.tag_style)
    engine = LocalEngine(opened.backbone, cot_format, opened.recipe.data.max_pixels)
    size = opened.recipe.evaluation.batch_size
    completions: list[Completion] = []
    with tqdm(total=len(samples), desc=config.strategy, unit="question", file=sys.stderr, mininterval=2) as bar:
        for begin in range(0, len(samples), size):
            completions += answer(engine, cot_format, samples[begin : begin + size], config)
            bar.update(len(completions) - bar.n)
    return completions


def _report(
    chosen: Benchmark,
    benchmark: str,
    split: str,
    model: str,
    config: SearchSection,
    samples: Sequence[Sample],
    completions: Sequence[Completion],
    right: Sequence[bool],
    seconds: float,
) -> EvalReport:
    count = len(samples)
    members: dict[str, list[bool]] = {}
    for sample, is_right in zip(samples, right, strict=True):
        for group in chosen.groups(sample):
            members.setdefault(group, []).append(is_right)
    return EvalReport(
        benchmark,
        split,
        model,
        config.strategy,
        Share(sum(right), count),
        {name: Share(sum(rights), len(rights)) for name, rights in sorted(members.items())},
        Share(sum(c.parsed.outcome == "complete" for c in completions), count),
        sum(c.parsed.answer is None for c in completions),
        sum(c.generated_tokens for c in completions) / count,
        sum(c.kept_tokens for c in completions) / count,
        sum(c.judge_calls for c in completions) / count,
        seconds / count,
    )


def _write(output: Path, samples: Sequence[Sample], completions: Sequence[Completion], right: Sequence[bool]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", encoding="utf-8") as file:
        for sample, completion, is_right in zip(samples, completions, right, strict=True):
            row = {
                "id": sample.id,
                "question": sample.last.question,
                "output": completion.text,
                "answer": completion.parsed.answer,
                "gold": sample.last.answer,
                "right": is_right,
                "format": completion.parsed.outcome,
                "stopped": completion.stopped,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
