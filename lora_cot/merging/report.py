"""What a merge was measured to be, and what it must be to be kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lora_cot.cards.card import probes_words
from lora_cot.cards.support import SUPPORT
from lora_cot.merging.onto import Onto
from lora_cot.merging.verify import Agreement


@dataclass(frozen=True)
class Bound:
    """How near a merged model must be to the adapter on the same base weights."""

    kl: float
    """Mean nats a token, at most, however far the adapter moved its base."""
    rounding: float
    """Mean nats a token that are allowed however little it did."""
    top1_agreement: float
    """Share of tokens, at least."""
    answers_equal: float
    """Share of greedy answers, at least."""

    def beside(self, moved: float) -> Bound:
        """The bound where the adapter moved its base by so many nats a token: a tenth of that, between the two."""
        return replace(self, kl=max(self.rounding, min(self.kl, SHARE * moved)))

    def broken(self, found: Agreement) -> Iterator[str]:
        """What is not kept, in words."""
        if not found.kl <= self.kl:  # a NaN is not
            yield f"the KL from adapter to merged model is {found.kl:.2g} nats a token, and may be {self.kl:g}"
        if not found.top1_agreement >= self.top1_agreement:
            share = f"{found.top1_agreement:.2%} of {found.tokens} tokens"
            yield f"adapter and merged model agree on {share}, and must on {self.top1_agreement:.1%}"
        if found.questions and found.answers_equal is not None and found.answers_equal < self.answers_equal * found.questions:
            least = f"{self.answers_equal:.0%} must be"
            yield f"{found.answers_equal} of {found.questions} greedy answers are the same, and {least}"


SHARE = 0.1
"""Of what the adapter moved its base by: what its merge may lose."""
BOUNDS = {
    "float32": Bound(1e-8, 1e-8, 0.999, 1.0),
    "float16": Bound(1e-3, 1e-6, 0.99, 0.0),
    "bfloat16": Bound(5e-3, 1e-5, 0.98, 0.0),
}
"""By the coarsest precision there is: of the merged weights, or of what they or the adapter are computed in. In float32 only
the order of sums differs: measured 1e-15 to 1e-12 on tiny models of every family, random and taught, where a scale that is
wrong by 10 % gave 4e-9 to 2e-3; every answer must be the same. In 16 bits the merged weight is rounded, which the adapter's
sum is not: measured (bfloat16) 1e-7 on random models and 1.2e-4 on a taught one, with top-1 of 0.986 and more, and answers
that part where two tokens are nearly tied: how many is reported and refuses nothing. KL grows with the square of a mistake,
so a tenth of what the adapter moved lets a scale pass that is wrong by 10 %: that is found in the weights (`proof`). float16
was not measured."""


def bound_of(*dtypes: str) -> Bound:
    """The bound of the coarsest of these precisions."""
    return BOUNDS[max(dtypes, key=list(BOUNDS).index)]


@dataclass(frozen=True)
class MergeReport:
    """What a merge was measured to be."""

    folder: str
    base: str
    family: str
    onto: Onto
    """full: the base's own weights. dequantized: what the 4-bit weights stand for that the adapter was trained on."""
    dtype: str
    probes: int
    """Samples; 0 if nothing was measured."""
    probes_from: Literal["held_out", "train"] | None
    """train: of those that were trained on, for the recipe names no others. None: nothing was measured."""
    with_images: int
    """How many of them show an image."""
    changed_tensors: int
    """Tensors of the merged model that differ from what the adapter was merged onto."""
    changed_values: int
    """How many of their values do."""
    adapter_vs_merged: Agreement | None
    """On the same base weights: the merge's own error."""
    bound: Bound
    """What that had to keep."""
    base_vs_merged: Agreement | None
    """How far the adapter moved the base; no difference means that there was nothing to merge."""
    trained_vs_merged: Agreement | None
    """Against the adapter on the quantised base it was trained on: the drift that merging a QLoRA brings. Reported, and never
    a reason to refuse. None if the base was not quantised."""
    losses: Mapping[str, float] | None
    """Mean loss of a token of the gold answers, of each model that was measured: by what it was merged onto; `adapter`
    is the model as it was trained."""

    verified: bool
    """Whether it was held against the adapter's model."""
    engines: Mapping[str, str]
    """Which of them can serve its family."""

    @property
    def _compared(self) -> list[tuple[str, Agreement]]:
        """The comparisons that were made, each with what it says."""
        names = ("adapter = merged", "base ≠ merged", "drift from the quantised base")
        found = (self.adapter_vs_merged, self.base_vs_merged, self.trained_vs_merged)
        return [(name, agreement) for name, agreement in zip(names, found, strict=True) if agreement]

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return asdict(self)

    def lines(self) -> list[tuple[str, Any]]:
        """For people."""
        what = {"full": "its own weights", "dequantized": "its dequantised 4-bit weights"}[self.onto]
        rows = [("merged into", f"{self.base}, {what} ({self.dtype})"), ("folder", self.folder)]
        if self.losses:
            rows.append(("loss on gold answers", ", ".join(f"{name} {loss:.4f}" for name, loss in self.losses.items())))
        rows.append(("changed", f"{self.changed_values:,} values in {self.changed_tensors} tensors"))
        if self.probes_from:
            rows.append(("measured on", probes_words(self.probes, self.probes_from, self.with_images)))
        rows += [(name, _words(agreement)) for name, agreement in self._compared]
        if not self.verified:
            rows.append(("verified", "no model was loaded; some rows of each tensor were held against PEFT's"))
        own, moved = self.adapter_vs_merged, self.base_vs_merged
        if own and moved and own.kl > SHARE * moved.kl:
            what = f"rounding to {self.dtype} takes {own.kl:.2g} nats a token"
            rows.append(("note", f"{what}, where the adapter's own effect is {moved.kl:.2g}"))
        return [*rows, ("serve it with", SUPPORT[self.family].line())]


@dataclass(frozen=True)
class Merged:
    """What `merge` wrote."""

    folder: Path
    """The whole model: what is opened, served or pushed."""
    reports: tuple[MergeReport, ...]
    """Of each pass; a single one unless the format is split."""

    def to_json(self) -> dict[str, Any]:
        """The report of the one model, or those of the passes."""
        values = [report.to_json() for report in self.reports]
        return values[0] if len(values) == 1 else {"passes": values}

    def lines(self) -> list[tuple[str, Any]]:
        """For people."""
        return [row for report in self.reports for row in report.lines()]


def _words(agreement: Agreement) -> str:
    text = (
        f"KL {agreement.kl:.2g} nats a token, {agreement.top1_agreement:.2%} of {agreement.tokens} tokens agree, logits "
        f"differ by at most {agreement.max_logit_difference:.2g}"
    )
    if agreement.questions is None:
        return text
    return f"{text}, {agreement.answers_equal} of {agreement.questions} greedy answers are the same"
