"""What a run leaves to look at: report.json for machines, report.html for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_cot.adapters.lora import PartReport
from lora_cot.cards.card import write_adapter_card
from lora_cot.cards.facts import Facts, hub_data
from lora_cot.checkpoints.layout import RUN_REPORT
from lora_cot.checkpoints.store import replace_text
from lora_cot.data.images import open_image
from lora_cot.formats import CotFormat
from lora_cot.pages import Line, image_uri, line_plot, render
from lora_cot.recipe import Recipe, dump
from lora_cot.search.trace import Completion
from lora_cot.training.attended import Word
from lora_cot.types import Sample


@dataclass(frozen=True)
class ShownAnswers:
    """A held-out question with the answers before and after training."""

    sample: Sample
    before: Completion
    after: Completion
    words: Sequence[Word] = ()
    """What its image's latents looked at after training, where they look at the text."""


@dataclass(frozen=True)
class PassReport:
    """What training one adapter was like; a run has one, or one for each pass of a split format."""

    cot_format: CotFormat
    parts: Sequence[PartReport]
    history: Sequence[dict[str, Any]]
    """Log entries as transformers keeps them."""
    seconds: float
    dropped: Sequence[str]
    """Ids of samples that were too long."""
    shrunk: int
    """Samples whose images were made smaller."""

    def write(self, path: Path) -> None:
        """Keep it for a run that goes on later; the file appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(self.numbers()) + "\n")

    @classmethod
    def read(cls, path: Path, cot_format: CotFormat) -> PassReport:
        """What `write` kept."""
        kept = json.loads(path.read_text(encoding="utf-8"))
        parts = [PartReport(**part) for part in kept["parts"]]
        return cls(cot_format, parts, kept["history"], kept["seconds"], kept["dropped"], kept["shrunk"])

    def numbers(self) -> dict[str, Any]:
        """Its figures in report.json."""
        losses = [entry for entry in self.history if "loss" in entry]
        return {
            "name": self.cot_format.name,
            "steps": max((entry.get("step", 0) for entry in self.history), default=0),
            "seconds": self.seconds,
            "last": losses[-1] if losses else {},
            "evaluations": [entry for entry in self.history if "eval_loss" in entry],
            "dropped": list(self.dropped),
            "shrunk": self.shrunk,
            "parts": [asdict(part) for part in self.parts],
            "history": list(self.history),
        }


@dataclass(frozen=True)
class RunReport:
    """All that is known of a finished run."""

    recipe: Recipe
    passes: Sequence[PassReport]
    shown: Sequence[ShownAnswers]
    peak_memory_gb: float
    family: str
    data: Mapping[str, Any]
    """What the card tells of it: see `Facts`."""

    def facts(self) -> Facts:
        """What the adapter's card tells of the training."""
        passes = [one.numbers() for one in self.passes]
        return Facts(self.family, {**self.data, "hub": hub_data(self.recipe)}, passes, _device(), self.peak_memory_gb)

    def numbers(self) -> dict[str, Any]:
        """The figures of report.json."""
        return {
            "name": self.recipe.name,
            "base": self.recipe.model.base,
            "format": self.recipe.format.name,
            "seconds": sum(one.seconds for one in self.passes),
            "peak_memory_gb": self.peak_memory_gb,
            "passes": [one.numbers() for one in self.passes],
        }


def _device() -> str:
    import platform

    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"a CPU ({platform.machine()})"


def write_report(report: RunReport, folder: Path) -> None:
    """Write the adapter's card, report.html, and then report.json, which says that the run is finished."""
    write_adapter_card(folder / "adapter", report.facts())
    page = render(
        "run.html",
        title=f"Run {report.recipe.name}",
        numbers=report.numbers(),
        plots=[_plots(one.history, [stage.name for stage in one.cot_format.stages]) for one in report.passes],
        shown=[
            {
                "question": item.sample.last.question,
                "answer": item.sample.last.answer,
                "images": [image_uri(open_image(image, report.recipe.data.max_pixels)) for image in item.sample.images],
                "before": item.before,
                "after": item.after,
                "words": item.words,
            }
            for item in report.shown
        ],
        recipe=dump(report.recipe),
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    replace_text(folder / RUN_REPORT, json.dumps(report.numbers(), indent=2) + "\n")


def _plots(history: Sequence[dict[str, Any]], stages: Sequence[str]) -> list[str]:
    groups = [
        ("Training loss by stage", "loss (nats a token)", "loss"),
        ("Held-out loss by stage", "loss (nats a token)", "eval_loss"),
        ("Token accuracy by stage", "share of tokens", "token_accuracy"),
    ]
    others = sorted({key.partition("/")[2] for entry in history for key in entry if key.startswith("loss/")} - set(stages))
    plots = []
    for title, unit, prefix in groups:
        lines = [_line(history, "all", prefix, "0.2")]
        lines += [_line(history, name, f"{prefix}/{name}", f"C{number}") for number, name in enumerate([*stages, *others])]
        plots.append(line_plot(title, "step", unit, lines))
    quality = [("accuracy", "eval_accuracy", "C0"), ("format validity", "eval_format_validity", "C1")]
    plots.append(line_plot("Held-out questions answered freely", "step", "share", [_line(history, *q) for q in quality]))
    return [plot for plot in plots if plot]


def _line(history: Sequence[dict[str, Any]], name: str, key: str, colour: str) -> Line:
    return Line(name, [(entry["step"], entry[key]) for entry in history if key in entry], colour)
