"""Looking again on the miniatures: do the picked patches hold what the sentence is about, and does it help?

    python benchmarks/icot_shapes.py [--limit 300] [--models NAME=FOLDER ...] [--json]

Two adapters that were taught four stages, on a LLaVA and on a Qwen2-VL, one patch for each cell of a scene; each is trained if
it is not in runs/ yet. Nothing is trained for looking. A caption names a cell and then what is in it, `top left: red circle.`,
and a text looks at its colons: a look hits if one of its patches is the cell that was just named. The control picks patches by
chance, and is measured, not assumed. Differences in accuracy are between the same questions, with the paired bootstrap's 95 %
interval. Looks of one question depend on each other, so that the hits' interval is the bootstrap's over questions; that of the
accuracy is Wilson's. With one patch of four, chance is a quarter.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from measuring import ROOT, command_line, difference, tell, trained  # beside this file

from lora_cot.checkpoints.opening import Opened, open_model
from lora_cot.data import shapes
from lora_cot.engines.local import LocalEngine
from lora_cot.evaluation.metrics import Share
from lora_cot.formats.answers import same
from lora_cot.recipe.load import change_search
from lora_cot.search.run import answer
from lora_cot.search.trace import Completion
from lora_cot.types import Sample

MODELS = {name: ROOT / "recipes" / "mini" / f"{name}_four_stage.yaml" for name in ("llava", "qwen2_vl")}
COLON = {"signal": ":", "cap": None}
ARMS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    **{
        f"{selector}, {insert}, n = {n}, at colons": {"selector": selector, "insert": insert, "n": n, **COLON}
        for insert in ("kv_copy", "input")
        for n in (1, 2)
        for selector in ("attention", "random")
    },
    **{
        f"{selector}, {insert}, n = {n}, after stages": {"selector": selector, "insert": insert, "n": n, "at": "stage"}
        for insert in ("kv_copy", "input")
        for n in (1, 2, 4)
        for selector in ("attention", "random")
        if n < 4 or selector == "attention"
    },
}
"""`search.interleave` of each. All four patches are the same by chance or by attention."""
NAMED = re.compile(f"(?i)({'|'.join(shapes.PLACES)}):$")


def main() -> None:
    """Ask all models in all ways; print a table."""
    parser = command_line(__doc__)
    parser.add_argument("--limit", type=int, default=300, help="test questions")
    parser.add_argument("--models", nargs="+", type=lambda text: text.split("=", 1), metavar="NAME=FOLDER")
    options = parser.parse_args()
    folders = dict(options.models) if options.models else {name: trained(path) for name, path in MODELS.items()}
    samples = list(shapes.iterate("test", options.limit, seed=0))
    report = {name: measured(open_model(str(folder)), samples) for name, folder in folders.items()}
    tell(report, options.json, lines(report))


def measured(opened: Opened, samples: Sequence[Sample]) -> dict[str, Any]:
    """By arm."""
    found: dict[str, Any] = {}
    plain = None
    for name, keys in ARMS.items():
        begin = time.perf_counter()
        completions = asked(opened, samples, {} if keys is None else {"interleave": keys})
        right = np.array([float(same(c.parsed.answer, str(s.last.answer))) for c, s in zip(completions, samples, strict=True)])
        plain = right if plain is None else plain
        hits = [hits_of(*pair) for pair in zip(samples, completions, strict=True)]
        share = Share(float(right.sum()), len(right))
        found[name] = {
            **share.to_json(),
            **difference(right, plain),
            "accuracy_interval": share.interval,
            "valid": sum(c.parsed.outcome == "complete" for c in completions) / len(samples),
            "looks": sum(len(looks(c)) for c in completions) / len(samples),
            "hits": clustered(hits),
            "tokens": sum(c.generated_tokens for c in completions) / len(samples),
            "seconds": (time.perf_counter() - begin) / len(samples),
        }
        print(f"{name}: {share}", file=sys.stderr, flush=True)
    return found


def asked(opened: Opened, samples: Sequence[Sample], search: dict[str, Any]) -> list[Completion]:
    """Greedy answers, 64 questions at once."""
    recipe = opened.recipe
    cot_format = recipe.format.build().spelled(opened.family.tag_style)
    config = change_search(recipe.search, search, recipe.format)
    engine = LocalEngine(opened.backbone, cot_format)
    batches = [samples[begin : begin + 64] for begin in range(0, len(samples), 64)]
    return [one for batch in batches for one in answer(engine, cot_format, batch, config)]


def looks(completion: Completion) -> list[tuple[str, Any]]:
    """Each look with the text before it."""
    chosen = [one for step in completion.trace for one in step.candidates if one.chosen]
    return [(one.text[: look.place], look) for one in chosen for look in one.looks]


def hits_of(sample: Sample, completion: Completion) -> list[bool]:
    """Of each look after the name of a cell with something in it, whether a patch is of that cell."""
    cells = shapes.scene_of(int(sample.id.rsplit("-", 1)[1]), "test", 0)[0].cells
    found = []
    for text, look in looks(completion):
        named = NAMED.search(text)
        cell = shapes.PLACES.index(named[1].lower()) if named else None
        if cell is not None and cells[cell] is not None:
            rows, columns = look.grids[0]
            found.append(cell in [2 * (2 * p.row // rows) + 2 * p.column // columns for p in look.patches])
    return found


def clustered(hits: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """The share of all looks, with the bootstrap's interval over questions."""
    counts = np.array([(sum(one), len(one)) for one in hits if one], float)
    if not len(counts):
        return {"share": None, "looks": 0, "interval": None}
    drawn = counts[np.random.default_rng(0).integers(0, len(counts), (2000, len(counts)))].sum(1)
    interval = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975)).tolist()
    return {"share": float(counts[:, 0].sum() / counts[:, 1].sum()), "looks": int(counts[:, 1].sum()), "interval": interval}


def lines(report: dict[str, Any]) -> list[str]:
    """A Markdown table for each model."""
    told = []
    for model, arms in report.items():
        told += ["", f"| `{model}` | right | points to plain | valid | looks | hits | seconds |", "|---" * 7 + "|"]
        for name, one in arms.items():
            low, high = (100 * bound for bound in one["interval"])
            hits = one["hits"]
            around = ", ".join(f"{100 * bound:.1f}" for bound in hits["interval"] or ())
            hit = f"{100 * hits['share']:.1f} % [{around}] of {hits['looks']}" if hits["looks"] else "·"
            apart = "" if name == "plain" else f"{100 * one['difference']:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")
            shares = f"{100 * one['accuracy']:.1f} % | {apart} | {100 * one['valid']:.1f} %"
            told.append(f"| {name} | {shares} | {one['looks']:.1f} | {hit} | {one['seconds']:.3f} |")
    return told


if __name__ == "__main__":
    main()
