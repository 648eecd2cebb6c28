"""What a training tells on standard error before it starts: the parts, the samples, and one of them as it is trained on."""

from __future__ import annotations

import sys

from accelerate import PartialState

from lora_cot.adapters.lora import report
from lora_cot.backbones import Backbone
from lora_cot.data.collate import Collator
from lora_cot.data.lengths import Kept
from lora_cot.types import Sample
from lora_cot.validation.report import aligned
from lora_cot.validation.show import mark_trained, spans


def show(*texts: str) -> None:
    """Print paragraphs, once for all ranks."""
    if PartialState().is_main_process:
        print(*filter(None, texts), sep="\n\n", end="\n\n", file=sys.stderr, flush=True)


def sample_counts(samples: Kept, held_out: Kept) -> str:
    """How many samples are trained on and held out, and what became of long ones."""
    without = sum(not sample.images for sample in samples.samples)
    lines = [
        f"{len(samples.samples)} samples to train on, {without} of them without an image, of {min(samples.lengths)} to "
        f"{max(samples.lengths)} tokens; {len(held_out.samples)} held out"
    ]
    dropped = samples.dropped + held_out.dropped
    if dropped:
        lines.append(f"{len(dropped)} dropped, too long: {', '.join(dropped[:10])}{' …' if len(dropped) > 10 else ''}")
    if shrunk := samples.shrunk + held_out.shrunk:
        lines.append(f"the images of {shrunk} samples are made smaller, so that they fit")
    return "\n".join(lines)


def preview(collator: Collator, sample: Sample) -> str:
    """A sample as text, its trained part between marks."""
    return mark_trained(spans(collator.encode(sample), collator.encoder))


def parts_table(backbone: Backbone) -> str:
    """The table of parts as text."""
    rows = [("part", "adapted layers", "trained", "parameters", "precision")]
    rows += [(p.part, str(p.adapted), f"{p.trained:,}", f"{p.parameters:,}", p.precision) for p in report(backbone)]
    return "\n".join(aligned(rows, left=(0, 4)))
