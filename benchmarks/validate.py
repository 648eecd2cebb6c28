"""How long `lora-cot validate` takes: rows of text, and photographs, each as a user would call it.

    python benchmarks/validate.py [--rows 100000] [--photographs 1000] [--base mini/llava] [--json]

Rows hold a question and four stages of about 150 English words in all. Photographs are made here: JPEGs of 1224×816 (one
megapixel, about 300 kB), smooth shapes under camera-like noise. What is timed is the whole command, imports included;
memory is the largest process's. On a machine that others use too, the CPU time tells more than the seconds.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import command_line, processor, tell  # beside this file

TEXT = """the of and a to in is you that it he was for on are as with his they at be this have from or one had by word but
not what all were we when your can said there use an each which she do how their if will up other about out many then them
these so some her would make like him into time has look two more write go see number no way could people my than first water
been call who oil its now find long down day did get come made may part photograph triangle pressure temperature energy
chlorophyll equation diagram therefore because increases decreases approximately measured horizontal vertical population
species carbon dioxide electric current voltage resistance velocity acceleration continent glacier sediment molecule"""
STAGES = {"SUMMARY": 20, "CAPTION": 40, "REASONING": 80, "CONCLUSION": 10}
"""Words of each stage."""
SIZE = (1224, 816)


def main() -> None:
    """Make both data sets, time both commands."""
    parser = command_line(__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--photographs", type=int, default=1000)
    parser.add_argument("--base", default="mini/llava")
    options = parser.parse_args()
    report: dict[str, Any] = {"device": f"{len(os.sched_getaffinity(0))} cores, {processor()}", "base": options.base}
    with tempfile.TemporaryDirectory() as folder:
        for name, count, make in (("text", options.rows, write_text), ("photographs", options.photographs, write_photographs)):
            place = Path(folder) / name
            place.mkdir()
            make(place, count)
            report[name] = {"rows": count, **timed(place, options.base)}
    lines = [f"{report['device']}; {options.base}"]
    for name in ("text", "photographs"):
        found = report[name]
        cost = f"{found['seconds']:.1f} s ({found['cpu_seconds']:.1f} s of CPU time), {found['peak_rss_gb']:.2f} GB"
        lines.append(f"{found['rows']:,} rows, {name}: {cost}, {found['tokens_per_row']:.0f} tokens a row")
    tell(report, options.json, lines)


def write_text(folder: Path, count: int) -> None:
    """Rows of our own plain form without images."""
    rng = random.Random(0)
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(count):
            file.write(json.dumps(row(rng, number)) + "\n")


def row(rng: random.Random, number: int) -> dict[str, Any]:
    """A question of 20 words with its four stages."""
    words = TEXT.split()
    texts = {name: " ".join(rng.choices(words, k=count)) + "." for name, count in STAGES.items()}
    return {"id": str(number), "question": " ".join(rng.choices(words, k=20)) + "?", "stages": texts}


def write_photographs(folder: Path, count: int) -> None:
    """The same rows, each with a photograph of its own."""
    import numpy
    from PIL import Image

    rng, noise = random.Random(0), numpy.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(count):
            blobs = Image.fromarray(noise.integers(0, 256, (17, 25, 3), dtype=numpy.uint8))
            scene = blobs.resize(SIZE, Image.Resampling.BICUBIC)
            grain = noise.normal(0, 8, (SIZE[1], SIZE[0], 1))
            pixels = numpy.clip(numpy.asarray(scene) + grain, 0, 255).astype(numpy.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=85)
            file.write(json.dumps({**row(rng, number), "image": f"{number}.jpg"}) + "\n")


def timed(folder: Path, base: str) -> dict[str, float]:
    """Seconds and peak memory of one `lora-cot validate`."""
    recipe = {
        "name": "benchmark",
        "model": {"base": base},
        "data": {"train": [{"source": "jsonl", "path": str(folder / "rows.jsonl")}]},
        "training": {"max_length": 2048},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # which is YAML too
    begin = time.perf_counter()
    command = [sys.executable, "-m", "lora_cot.cli", "validate", str(path), "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder)
    seconds, used = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    tokens = json.loads(done.stdout)["splits"]["train"]["tokens"]
    return {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
        "peak_rss_gb": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9,
        "tokens_per_row": tokens["mean"],
    }


if __name__ == "__main__":
    main()
