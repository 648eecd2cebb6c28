"""Accuracy against compute: every strategy with N = 1, 2, 4, 8 candidates, on the miniature that four stages were taught.

    python benchmarks/search_curve.py [--limit 100] [--seeds 0] [--docs docs/search.md] [--json]
    python benchmarks/search_curve.py --arms greedy sample majority best_of_n stage_beam "stage_beam, self-judge" \
        --candidates 4 --limit 300 --seeds 0 1

Two models are asked: the adapter on the base that was taught to judge, and the same recipe's on one that was not. Each is
trained if it is not in runs/ yet (`--models NAME=FOLDER` names others). What is measured is kept in the output folder, one
file for each model, strategy, N and seed: a benchmark that was stopped goes on, and one that is whole is only drawn again.
`--docs` puts the tables between the two marker comments of a Markdown file, and a picture beside it. Tokens are those that
were generated; a judge's verdict is read without generating any, so its prompts are counted for themselves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from curve_report import page_lines, summarise, write_docs  # beside this file
from measuring import ROOT, command_line, processor, tell, trained, write_report

from lora_cot.checkpoints.opening import open_model
from lora_cot.engines.opening import engine_of
from lora_cot.evaluation.benchmarks import find
from lora_cot.evaluation.questions import Wanted
from lora_cot.evaluation.run import evaluate
from lora_cot.recipe.schema import SearchSection

RECIPE = ROOT / "recipes" / "mini" / "llava_four_stage.yaml"
MODELS = {
    "base taught to judge": ["name=mini-llava-four-stage"],
    "base not taught to judge": ["name=mini-nojudge-four-stage", "model.base=mini/llava-nojudge"],
}
"""What is changed of the recipe for each."""
ARMS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {},
    "majority": {},
    "majority, weighted": {"weighted": True},
    "best_of_n": {},
    "best_of_n, self-judge": {"scorer": "self_judge"},
    "sentence_beam": {},
    "stage_beam": {},
    "stage_beam, self-judge": {"scorer": "self_judge"},
    "adaptive": {},
    "swires": {},
}
"""Keys of the search beside strategy, candidates and seed; the scorer is the log-probability where none is named."""
SINGLE = ("greedy", "sample")
SAMPLE_ALONE = ("majority", "majority, weighted", "best_of_n", "best_of_n, self-judge", "adaptive", "stage_beam, self-judge")
"""With one candidate these are `sample`, or the same beam without a judge, draw for draw: not run."""
CALIBRATION = 100
"""Validation questions that tell swires what a reasoning scores."""


@dataclass(frozen=True)
class Cell:
    """One evaluation."""

    model: str
    arm: str
    candidates: int
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        words = f"{self.model} {self.arm} n{self.candidates} seed{self.seed}".replace(",", "").split()
        return "-".join(words) + ".json"


def main() -> None:
    """Measure what is not there yet; draw and print all."""
    options = parsed()
    begin = time.perf_counter()
    folders = options.models or {name: trained(RECIPE, changes) for name, changes in MODELS.items()}
    cells = list(planned(list(folders), options.arms, options.candidates, options.seeds))
    asked = {cell: question(cell, folders[cell.model], options) for cell in cells}
    found = measured(cells, asked, folders, options.output)
    report = summarise([(cell, found[cell]) for cell in cells])
    threads = torch.get_num_threads()
    device = f"{processor()}, {threads} thread" + "s" * (threads > 1)
    report |= {"device": device, "questions": options.limit, "seeds": options.seeds, "seconds": time.perf_counter() - begin}
    write_report(report, options.output)
    if options.docs:
        write_docs(report, options.docs)
    tell(report, options.json, page_lines(report))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--limit", type=int, default=100, help="test questions")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the search; questions and models stay")
    parser.add_argument("--models", nargs="+", type=lambda text: text.split("=", 1), metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, default=Path("runs/search-curve"))
    parser.add_argument("--docs", type=Path, help="Markdown file with the markers")
    options = parser.parse_args()
    options.models = {name: Path(folder) for name, folder in options.models or ()}
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def planned(models: Sequence[str], arms: Sequence[str], counts: Sequence[int], seeds: Sequence[int]) -> Iterator[Cell]:
    """All evaluations that are needed; greedy has no seed, and neither it nor a sample has a number of candidates."""
    for model in models:
        for arm in arms:
            for count in [1] if arm in SINGLE else counts:
                if count == 1 and arm in SAMPLE_ALONE:
                    continue
                yield from (Cell(model, arm, count, seed) for seed in (seeds[:1] if arm == "greedy" else seeds))


def question(cell: Cell, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All that the result of an evaluation depends on."""
    search = {"strategy": cell.arm.split(",")[0], "candidates": cell.candidates, "seed": cell.seed, **ARMS[cell.arm]}
    if cell.arm == "swires":
        search["swires"] = calibrated(cell.model, folder, options.output)
    return {"model": fingerprint(folder), "limit": options.limit, "search": search}


def fingerprint(folder: Path) -> str:
    """Of a run's adapter."""
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]


def calibrated(model: str, folder: Path, output: Path) -> dict[str, float]:
    """What reasonings of the model score, measured once, on questions that are not asked later."""
    from lora_cot.search.swires import calibrate

    place = output / f"{'-'.join(model.split())}-calibration.json"
    kept = read(place)
    if kept.get("model") == fingerprint(folder):
        return kept["swires"]
    opened = open_model(str(folder))
    cot_format = opened.recipe.format.build().spelled(opened.family.tag_style)
    samples = find("shapes").load(Wanted("validation", CALIBRATION)).samples
    config = SearchSection(stages=opened.recipe.search.stages)
    made = calibrate(engine_of(opened, cot_format), cot_format, samples, None, config)
    write(place, {"model": fingerprint(folder), "swires": {"mean": made.mean, "std": made.std}})
    return read(place)["swires"]


def measured(
    cells: Sequence[Cell], asked: Mapping[Cell, dict[str, Any]], folders: Mapping[str, Path], output: Path
) -> dict[Cell, dict[str, Any]]:
    """What each evaluation gave; those whose file answers the same question are not run again."""
    found = {cell: kept for cell in cells if (kept := read(output / cell.name)).get("asked") == asked[cell]}
    missing = [cell for cell in cells if cell not in found]
    print(f"{len(found)} evaluations are there, {len(missing)} to run", file=sys.stderr, flush=True)
    begin, done, all_texts = time.perf_counter(), 0, sum(cell.candidates for cell in missing)
    for number, cell in enumerate(missing, 1):
        found[cell] = {"asked": asked[cell], **one(cell, asked[cell], folders[cell.model], output)}
        write(output / cell.name, found[cell])
        done += cell.candidates
        left = (time.perf_counter() - begin) * (all_texts - done) / done
        told = f"{cell.model} · {cell.arm} · N = {cell.candidates} · seed {cell.seed}"
        accuracy = found[cell]["report"]["accuracy"]["accuracy"]
        print(f"[{number}/{len(missing)}] {told}: {accuracy:.1%}, about {left:.0f} s left", file=sys.stderr, flush=True)
    return found


def one(cell: Cell, asked: Mapping[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    """Report and verdicts of one evaluation."""
    answers = output / "answers.jsonl"
    answers.unlink(missing_ok=True)  # of an evaluation that was stopped: it may be another one's
    report = evaluate(str(folder), "shapes", "test", asked["limit"], asked["search"], answers)
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    answers.unlink()
    return {**vars(cell), "report": report.to_json(), "right": {row["id"]: int(row["right"]) for row in rows}}


def read(path: Path) -> dict[str, Any]:
    """A file that was written whole; nothing if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    staged = path.with_suffix(".tmp")
    staged.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    staged.replace(path)


if __name__ == "__main__":
    main()
