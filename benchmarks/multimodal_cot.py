"""Multimodal-CoT on a laptop: two stages with vision beside two without, one stage, and answers alone, over several seeds.

    python benchmarks/multimodal_cot.py [--seeds 0 1 2] [--together 2] [--longer] [--output runs/multimodal-cot] [--json]

Every run is a recipe of recipes/mini/ trained and measured by train.py with its own seed for the order of samples, the
adapters' beginning and the training scenes; the 500 test questions are the same for all. Written to the output folder:
report.json with each run's figures, report.html with the table and the convergence with and without vision. Intervals
are 95 %: over seeds Student's, which tells of other trainings; over questions, paired, which tells of these trainings.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measuring import ROOT, bounds, command_line, device, points, spread, tell, write_report  # beside this file

from lora_cot.pages import Line, line_plot, render

ARMS: dict[str, tuple[str, list[str]]] = {
    "two stages": ("t5_vit_two_stage.yaml", []),
    "two stages, without vision": ("t5_vit_two_stage.yaml", ["model.vision_features=none"]),
    "one stage": ("t5_vit_one_stage.yaml", []),
    "answer alone": ("t5_vit_answer_only.yaml", []),
}
"""Recipe and overrides by name."""
TWICE = ["training.max_steps=300", "data.train.0.limit=9600"]
LONGER: dict[str, tuple[str, list[str]]] = {
    "two stages, twice the steps": ("t5_vit_two_stage.yaml", TWICE),
    "one stage, twice the steps": ("t5_vit_one_stage.yaml", TWICE),
}
"""Trained for longer: one stage then takes as many steps as both adapters of the shorter two."""
DIFFERENCES = [("two stages", "two stages, without vision"), ("two stages", "one stage")]
DIFFERENCES += [("two stages", "answer alone"), ("two stages", "one stage, twice the steps")]
DIFFERENCES += [("two stages, twice the steps", "one stage, twice the steps")]
PAPER = {"two stages": "85.31", "two stages, without vision": "78.57", "one stage": "69.32", "answer alone": "81.63"}
"""Accuracy on ScienceQA in the paper (arXiv 2302.00923, tables 2 to 4), base model."""


def main() -> None:
    """Train all, a few at once; write the report."""
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--together", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--output", type=Path, default=Path("runs/multimodal-cot"))
    parser.add_argument("--longer", action="store_true", help="also two stages and one, each trained for twice the steps")
    options = parser.parse_args()
    arms = ARMS | (LONGER if options.longer else {})
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    begin = time.perf_counter()
    resolve_base()
    base_seconds = time.perf_counter() - begin
    jobs = [(arm, seed) for seed in options.seeds for arm in arms]
    with ThreadPoolExecutor(options.together) as pool:
        runs = list(pool.map(lambda job: run(*job, options.output, *arms[job[0]]), jobs))
    report = {
        "device": device(),
        "seconds": time.perf_counter() - begin - base_seconds,
        "base_seconds": base_seconds,
        "arms": {arm: summary([one for one in runs if one["arm"] == arm]) for arm in arms},
        "differences": {f"{a} − {b}": difference(runs, a, b) for a, b in DIFFERENCES if {a, b} <= arms.keys()},
        "runs": runs,
    }
    write_report(report, options.output)
    write_page(report, options.output)
    tell(report, options.json, lines(report))


def resolve_base() -> None:
    """Build the base if it is nowhere yet; it counts for itself."""
    from lora_cot.backbones.loading import resolve_base as resolve

    resolve("mini/t5_vit")


def run(arm: str, seed: int, output: Path, recipe: str, overrides: Sequence[str], scenes: int | None = None) -> dict[str, Any]:
    """Train and measure one recipe with one seed.

    Args:
        arm: what it is called.
        seed: of the run.
        output: its log goes there.
        recipe: a miniature's.
        overrides: keys to change.
        scenes: seed of the training scenes; the run's own if not given.
    """
    name = f"{'-'.join(arm.replace(',', '').split())}-{seed}"
    shutil.rmtree(Path("runs") / name, ignore_errors=True)
    command = [sys.executable, str(ROOT / "train.py"), str(ROOT / "recipes" / "mini" / recipe), f"name={name}"]
    command += [f"training.seed={seed}", f"data.train.0.seed={seed if scenes is None else scenes}", *overrides]
    start = time.perf_counter()
    with (output / f"{name}.log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed, see {output / f'{name}.log'}")
    folder = Path("runs") / name
    measured = json.loads((folder / "evaluation.json").read_text())
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    seconds = time.perf_counter() - start
    print(f"{arm}, seed {seed}: {measured['accuracy']['accuracy']:.1%} in {seconds:.0f} s", file=sys.stderr, flush=True)
    answers = [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
    right = {row["id"]: int(row["right"]) for row in answers}
    keys = ("accuracy", "rouge_l", "unanswered", "failure_modes", "groups")
    return {
        "arm": arm,
        "seed": seed,
        "seconds": seconds,
        "log": entries,
        "right": right,
        **{key: measured[key] for key in keys},
    }


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of one kind of run over its seeds."""
    accuracies = [one["accuracy"]["accuracy"] for one in runs]
    rouge = [one["rouge_l"] for one in runs if one["rouge_l"] is not None]
    return {
        "accuracy": spread(accuracies),
        "several_steps": spread([one["groups"]["more than one step"]["accuracy"] for one in runs]),
        "rouge_l": spread(rouge) if rouge else None,
        "seconds": statistics.mean(one["seconds"] for one in runs),
    }


def difference(runs: Sequence[dict[str, Any]], first: str, second: str) -> dict[str, Any]:
    """How far two kinds are apart: seed by seed, and question by question with the seeds' mean of each."""
    found = {(one["arm"], one["seed"]): one for one in runs}
    seeds = sorted({seed for _, seed in found})
    pairs = [(found[first, seed], found[second, seed]) for seed in seeds]
    apart = [a["accuracy"]["accuracy"] - b["accuracy"]["accuracy"] for a, b in pairs]
    questions = [statistics.mean(a["right"][q] - b["right"][q] for a, b in pairs) for q in pairs[0][0]["right"]]
    half = 1.96 * statistics.stdev(questions) / math.sqrt(len(questions))
    mean = statistics.mean(questions)
    return {**spread(apart), "interval_over_questions": [mean - half, mean + half]}


def apart(value: dict[str, Any]) -> str:
    """A difference with both of its intervals."""
    return f"{points(value)} points over seeds; {bounds(value['interval_over_questions'])} over questions"


def table(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each kind of run."""
    rows: list[tuple[str, ...]] = [("500 test questions", "accuracy", "several steps", "ROUGE-L", "seconds", "paper")]
    for arm, made in report["arms"].items():
        rouge = points(made["rouge_l"]) if made["rouge_l"] else "·"
        row = (points(made["accuracy"]), points(made["several_steps"]), rouge, f"{made['seconds']:.0f}", PAPER.get(arm, "·"))
        rows.append((arm, *row))
    return rows


def notes(report: dict[str, Any]) -> list[str]:
    """What stands below the table."""
    found = [f"{name}: {apart(value)}" for name, value in report["differences"].items()]
    return [*found, f"{report['seconds']:.0f} s in all, the base {report['base_seconds']:.0f} s before; {report['device']}"]


def lines(report: dict[str, Any]) -> list[str]:
    """Both for the terminal."""
    rows = table(report)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [*text, *notes(report)]


def write_page(report: dict[str, Any], output: Path) -> None:
    """The table, and how fast it is learned with vision and without."""
    colours = {"two stages": "C0", "two stages, without vision": "C1"}
    plots = []
    for title, y, name, key in (
        ("Rationales while they are learned", "held-out loss (nats a token)", "rationale", "eval_loss"),
        ("Answers while they are learned", "held-out accuracy", "answer", "eval_accuracy"),
    ):
        curves = [
            Line(f"{one['arm']}, seed {one['seed']}", curve(one["log"], name, key), colours[one["arm"]])
            for one in report["runs"]
            if one["arm"] in colours
        ]
        plots.append(line_plot(title, "step", y, curves))
    page = render(
        "figures.html", title="Multimodal-CoT in miniature", tables=[("Runs", table(report))], notes=notes(report), plots=plots
    )
    (output / "report.html").write_text(page, encoding="utf-8")


def curve(log: Sequence[dict[str, Any]], name: str, key: str) -> list[tuple[float, float]]:
    """Points of one figure over the steps of a pass."""
    return [(entry["step"], entry[key]) for entry in log if entry.get("pass") == name and key in entry]


if __name__ == "__main__":
    main()
