"""`plan`: will a recipe fit, what would make it fit, and how long will it take."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lora_cot.checkpoints.layout import RUN_REPORT
from lora_cot.planning.changes import Change, cheapest
from lora_cot.planning.estimate import Estimate, Item, Phase, Simulated, estimate, simulate
from lora_cot.planning.sharing import STAGES, Share, shares
from lora_cot.recipe import Recipe

GB = 1e9
SHOWN = 0.0005 * GB
"""Smallest thing that has a line of its own."""
SERVED = 8
"""Texts at once, of the longest sample's length, that the row for serving counts."""


@dataclass(frozen=True)
class Duration:
    """How long training takes."""

    steps: int | None
    """Optimizer steps of all adapters; None if the number of samples is not known."""
    tokens: float | None
    """Real tokens of all steps."""
    tokens_per_second: float | None
    said: str
    """Where the rate comes from."""

    @property
    def hours(self) -> float | None:
        """None if the rate or the tokens are not known."""
        return self.tokens / self.tokens_per_second / 3600 if self.tokens and self.tokens_per_second else None

    def line(self) -> str:
        """For people."""
        steps = f"{self.steps:,} steps" if self.steps else "steps not known, the data cannot be read"
        tokens = f", {self.tokens / 1e6:,.1f} million tokens" if self.tokens else ""
        rate = f"{self.tokens_per_second:,.0f} tokens/s ({self.said})" if self.tokens_per_second else self.said
        hours = f"{self.hours:.1f} hours at " if self.hours else ""
        return f"time: {steps}{tokens}; {hours}{rate}"


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it starts."""

    recipe: Recipe
    estimate: Estimate
    vram_gb: float | None
    fits: str | None
    """yes, perhaps or no; None if nothing was asked."""
    changes: Sequence[Change]
    """What would make it fit."""
    changed: Estimate | None
    """With those changes."""
    shares: Sequence[Share]
    """Of several GPUs."""
    duration: Duration

    def to_json(self) -> dict[str, Any]:
        """All figures; memory in GB of 10⁹ bytes."""
        one = self.estimate
        phases = [
            {
                "name": phase.name,
                "low_gb": phase.low / GB,
                "high_gb": phase.high(one.gpu) / GB,
                "items": [{"what": item.what, "gb": item.size / GB, "detail": item.detail} for item in phase.items],
            }
            for phase in one.phases
        ]
        return {
            "recipe": self.recipe.name,
            "device": "gpu" if one.gpu else "cpu",
            "low_gb": one.low / GB,
            "high_gb": one.high / GB,
            "vram_gb": self.vram_gb,
            "fits": self.fits,
            "phases": phases,
            "parameters": one.made.parameters,
            "trained_parameters": one.made.trained,
            "samples": [asdict(work) for work in one.made.works],
            "cache_per_token_gb": one.made.reader.per_token / GB,
            "cache_per_image_gb": one.made.reader.per_image / GB,
            "changes": [asdict(change) for change in self.changes],
            "high_gb_changed": self.changed.high / GB if self.changed else None,
            "zero": [_in_gb(share) for share in self.shares],
            "time": {**asdict(self.duration), "hours": self.duration.hours},
        }

    def lines(self) -> list[str]:
        """For people, a table."""
        one = self.estimate
        text = [f"{self.recipe.name} on {self.recipe.model.base}, planned for {'a GPU' if one.gpu else 'this CPU'}"]
        text += [f"  {_length(work)}; {work.said}" for work in one.made.works]
        held = sum(item.size for item in one.always)
        text += ["", f"{'memory (GB of 10⁹ bytes)':<46}{'at least':>9}{'at most':>9}"]
        text += [f"{'in all phases':<46}{held / GB:>9.2f}", *(_item(item) for item in one.always if item.size >= SHOWN)]
        text += [line for phase in one.phases for line in _phase(phase, one)]
        reader, longest = one.made.reader, max(work.length for work in one.made.works)
        cache = SERVED * (reader.per_token * longest + reader.per_image)
        image = f", {reader.per_image / 2**20:.0f} MiB an image" if reader.per_image else ""
        size = f"keys and values of {reader.per_token / 1024:.0f} KiB a token{image}"
        text += ["", f"serving: {size}; {SERVED} texts of {longest} tokens at once: {cache / GB:.2f} GB"]
        text += ["", self._verdict(), *self._changes()]
        if self.shares:
            text += ["", *self._zero()]
        return [*text, "", self.duration.line()]

    def _verdict(self) -> str:
        one = self.estimate
        takes = f"{one.low / GB:.1f} to {one.high / GB:.1f} GB"
        said = {"yes": "it fits", "perhaps": "it may not fit", "no": "it does not fit", None: ""}[self.fits]
        return f"needs {takes}" + (f" of {self.vram_gb:g} GB: {said}" if said else "")

    def _changes(self) -> list[str]:
        if not self.changes or self.changed is None or self.vram_gb is None:
            return ["no change that is known of makes it smaller"] if self.fits in ("no", "perhaps") else []
        then = f"{self.changed.low / GB:.1f} to {self.changed.high / GB:.1f} GB"
        enough = self.changed.high <= self.vram_gb * GB
        sections: dict[str, dict[str, Any]] = {}
        for change in self.changes:
            for key, value in change.keys.items():
                section, _, name = key.partition(".")
                sections.setdefault(section, {})[name] = value
        text = [f"{'with these lines it fits' if enough else 'these lines help, but are not enough'} ({then}):", ""]
        text += [f"  {line}" for line in yaml.safe_dump(sections, sort_keys=False, default_flow_style=None).splitlines()]
        return [*text, "", *(f"  {', '.join(change.keys)}: costs {change.cost}" for change in self.changes)]

    def _zero(self) -> list[str]:
        text = [
            "training on several GPUs, GB each (and of the host's memory, for each GPU):",
            f"{'GPUs':<6}" + "".join(f"{name:>20}" for name in STAGES),
        ]
        for gpus in sorted({share.gpus for share in self.shares}):
            cells = [share for share in self.shares if share.gpus == gpus]
            text.append(f"{gpus:<6}" + "".join(f"{_cell(share):>20}" for share in cells))
        return text


def plan(
    recipe: Recipe, vram_gb: float | None = None, tokens_per_second: float | None = None, root: Path = Path("runs")
) -> Plan:
    """Plan a run; nothing is loaded.

    Args:
        recipe: what is to be run.
        vram_gb: memory of the GPU it is to fit, in 10⁹ bytes; without, the run is planned for this machine.
        tokens_per_second: rate of training; without, that of an earlier run of this name.
        root: where earlier runs are.

    Raises:
        BackboneError, AdapterError, RecipeError: what training would stop at before it loads weights.
    """
    import torch

    gpu = vram_gb is not None or torch.cuda.is_available()
    simulated: dict[str, Simulated] = {}

    def estimated(recipe: Recipe) -> Estimate:
        key = recipe.model_dump_json(exclude={"name", "search", "evaluation"})
        if key not in simulated:
            simulated[key] = simulate(recipe, gpu)
        return estimate(recipe, simulated[key], None if gpu else _resident())

    now = estimated(recipe)
    fits, changed = None, None
    changes: list[Change] = []
    if vram_gb is not None:
        limit = vram_gb * GB
        fits = "yes" if now.high <= limit else "no" if now.low > limit else "perhaps"
        if fits != "yes":
            changes, changed = cheapest(recipe, now, limit, estimated)
    return Plan(
        recipe,
        now,
        vram_gb,
        fits,
        changes,
        changed,
        shares(recipe, now) if gpu else [],
        _duration(recipe, now, tokens_per_second, root),
    )


def _in_gb(share: Share) -> dict[str, Any]:
    sizes = {f"{name}_gb": getattr(share, name) / GB for name in ("low", "high", "host")}
    return {"gpus": share.gpus, "stage": share.stage, **sizes}


def _resident() -> float:
    """Bytes of this process with the libraries that training imports."""
    import datasets  # noqa: F401
    import psutil

    import lora_cot.training.run  # noqa: F401

    return float(psutil.Process().memory_info().rss)


def _duration(recipe: Recipe, now: Estimate, rate: float | None, root: Path) -> Duration:
    keys, work = recipe.training.library, now.made.works[0]
    size = int(keys.get("per_device_train_batch_size", 8)) * int(keys.get("gradient_accumulation_steps", 1))
    steps = int(keys.get("max_steps", -1))
    if steps <= 0:
        epochs = float(keys.get("num_train_epochs", 3))
        steps = math.ceil(epochs * math.ceil(work.samples / size)) if work.samples else 0
    passes = len(recipe.format.build().passes)
    lengths = [one.mean_length for one in now.made.works] * (passes if len(now.made.works) < passes else 1)
    tokens = steps * size * sum(lengths) or None
    said = "as stated"
    if rate is None:
        rate, said = _measured_rate(root / recipe.name / RUN_REPORT)
    return Duration(steps * passes or None, tokens, rate, said)


def _measured_rate(report: Path) -> tuple[float | None, str]:
    """Tokens a second of an earlier run."""
    if not report.is_file():
        return None, "no rate is known: state one with --tokens-per-second, or run a few steps first (training.max_steps=20)"
    try:
        passes = json.loads(report.read_text(encoding="utf-8"))["passes"]
        rates = [entry["tokens_per_second"] for one in passes for entry in one["history"] if "tokens_per_second" in entry]
    except (ValueError, KeyError, TypeError, OSError):
        return None, f"{report} holds no rate: state one with --tokens-per-second"
    return (sorted(rates)[len(rates) // 2] if rates else None), f"measured in {report}"


def _length(work: Any) -> str:
    images = ", ".join(f"{width}×{height}" for width, height in work.sizes) or "none"
    return f"longest sample {work.length} tokens, {work.answer} of them trained, mean {work.mean_length:.0f}; images: {images}"


def _phase(phase: Phase, one: Estimate) -> list[str]:
    """A line for the phase, and one for each thing that is not in memory in all of them."""
    mark = "  ← the fullest" if phase.low == one.low else ""
    text = [f"{phase.name:<46}{phase.low / GB:>9.2f}{phase.high(one.gpu) / GB:>9.2f}{mark}"]
    return text + [_item(item) for item in phase.items if item not in one.always and item.size >= SHOWN]


def _item(item: Item) -> str:
    return f"  {item.what:<44}{item.size / GB:>9.3f}  {item.detail}".rstrip()


def _cell(share: Share) -> str:
    host = f" (+{share.host / GB:.1f})" if share.host else ""
    return f"{share.low / GB:.1f}–{share.high / GB:.1f}{host}"
