"""`make demo`: prints and runs the commands a user would type, and ends with a table of what they gave.

Written to runs/demo/: report.json, a trace of one search, and the evaluations' JSONL files.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from lora_cot.data.shapes import make_sample

QUESTIONS = 600
DEMO = Path("runs/demo")
DIRECT, FOUR_STAGE = Path("runs/demo-direct"), Path("runs/demo-four-stage")


class Demo:
    """Runs commands one after another, watching time and memory."""

    def __init__(self) -> None:
        self.begin, self.peak = time.perf_counter(), 0.0

    def run(self, what: str, about_seconds: int, command: str) -> str:
        """Print a command, run it, return its standard output."""
        print(f"\n── {what} (about {about_seconds} s)\n$ {command}", flush=True)
        start = time.perf_counter()
        process = subprocess.Popen(shlex.split(command), stdout=subprocess.PIPE, text=True)
        watcher = threading.Thread(target=self._watch, args=(process,))
        watcher.start()
        output = process.communicate()[0]
        watcher.join()
        if process.returncode:
            sys.exit(f"the command failed with exit code {process.returncode}")
        print(f"   took {time.perf_counter() - start:.0f} s", flush=True)
        return output

    def _watch(self, process: subprocess.Popen) -> None:
        import psutil

        while process.poll() is None:
            try:
                root = psutil.Process(process.pid)
                family = [root, *root.children(recursive=True)]
                self.peak = max(self.peak, sum(p.memory_info().rss for p in family))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.2)

    def evaluate(self, name: str, about: int, model: Path, options: str) -> dict:
        """One evaluation as its JSON report."""
        command = f"lora-cot eval {model} --benchmark shapes --limit {QUESTIONS} {options} --output {DEMO}/{name}.jsonl --json"
        return json.loads(self.run(f"Evaluate: {name}", about, command))


def main() -> None:
    """The whole demo."""
    for folder in (DEMO, DIRECT, FOUR_STAGE):
        shutil.rmtree(folder, ignore_errors=True)
    DEMO.mkdir(parents=True)
    demo = Demo()
    launch = f"accelerate launch --num_processes 1 --num_cpu_threads_per_process {os.cpu_count()} train.py recipes/mini/llava_"
    demo.run("Train on answers alone", 40, f"{launch}direct.yaml name={DIRECT.name}")
    demo.run("Train on four stages", 150, f"{launch}four_stage.yaml name={FOUR_STAGE.name}")
    demo.run("Merge into the full-precision base", 10, f"python merge.py {FOUR_STAGE}")
    reports = {
        "direct": demo.evaluate("direct", 8, DIRECT, "--strategy greedy"),
        "four_stage": demo.evaluate("four_stage", 18, FOUR_STAGE, "--strategy greedy"),
        "sample": demo.evaluate("sample", 20, FOUR_STAGE, "--strategy sample"),
        "stage_beam": demo.evaluate("stage_beam", 40, FOUR_STAGE, "--strategy stage_beam --candidates 4"),
    }
    sample = make_sample(0, "test", 1)
    (DEMO / "scene.png").write_bytes(sample.images[0])
    question = shlex.quote(sample.last.question)
    ask = f"lora-cot ask {FOUR_STAGE}/merged {DEMO}/scene.png {question} --strategy stage_beam --trace {DEMO}/trace.html"
    print(demo.run("Ask the merged model, with a picture of the search", 6, ask))
    finish(demo, reports)


def finish(demo: Demo, reports: dict[str, dict]) -> None:
    """Write report.json and print the table."""
    merged = json.loads((FOUR_STAGE / "merged" / "merge_report.json").read_text())
    several = "more than one step"
    report = {
        "questions": QUESTIONS,
        **{f"{name}_accuracy": r["accuracy"]["accuracy"] for name, r in reports.items()},
        **{f"{name}_accuracy_{several.replace(' ', '_')}": r["groups"][several]["accuracy"] for name, r in reports.items()},
        "merged_agreement": merged["adapter_vs_merged"]["top1_agreement"],
        "seconds": time.perf_counter() - demo.begin,
        "peak_rss_gb": demo.peak / 1e9,
    }
    (DEMO / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{QUESTIONS} held-out questions      all [95 % interval]       one step   several steps   valid   tokens")
    for name, r in reports.items():
        low, high = r["accuracy"]["interval"]
        one, more = (r["groups"][group]["accuracy"] for group in ("one step", several))
        print(
            f"  {name:<22} {r['accuracy']['accuracy']:>7.1%} [{low:.1%}, {high:.1%}] {one:>10.1%} {more:>14.1%} "
            f"{r['format_validity']['accuracy']:>9.1%} {r['tokens_per_question']:>7.0f}"
        )
    print(
        f"\nmerged = adapter on {report['merged_agreement']:.2%} of tokens · {report['seconds']:.0f} s · "
        f"peak memory {report['peak_rss_gb']:.2f} GB"
    )
    print(f"look at {FOUR_STAGE}/report.html, {DEMO}/trace.html and {DEMO}/report.json")


if __name__ == "__main__":
    main()
