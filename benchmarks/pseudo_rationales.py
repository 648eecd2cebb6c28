"""Rationales that a teacher wrote beside annotated ones: Multimodal-CoT's question, on the miniature.

    python benchmarks/pseudo_rationales.py [--seeds 0 1 2] [--output runs/pseudo-rationales] [--json]

The teacher is another model, mini/llava fine-tuned to four stages by recipes/mini/llava_four_stage.yaml, behind a server of
chat completions on this machine. `lora-cot annotate --all` asks it for the rationale of every training row and keeps what
agrees with the gold answer; then recipes/mini/t5_vit_two_stage.yaml is trained on those and, with the same seeds, on the
annotated rationales of the same rows. The paper: 90.45 annotated, 87.76 generated (arXiv 2302.00923, table 8; large model,
other teachers).
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from measuring import ROOT, command_line, points, spread, tell, trained, write_report  # beside this file
from multimodal_cot import apart, difference, run

QUESTIONS_AT_ONCE = 64
RECIPES = ROOT / "recipes" / "mini"
ANNOTATED, GENERATED = "annotated rationales", "generated rationales"


class Teacher:
    """A run that answers requests, many at once."""

    def __init__(self, model: Path):
        from lora_cot.checkpoints.opening import open_model
        from lora_cot.engines.local import LocalEngine

        opened = open_model(str(model))
        self._format, self._search = opened.recipe.format.build(), opened.recipe.search
        self._engine = LocalEngine(opened.backbone, self._format)
        self._waiting: queue.Queue[tuple[Any, Future[str]]] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def answer(self, body: dict[str, Any]) -> str:
        """The stages that the request asks for, written from the teacher's own."""
        from lora_cot.types import Exchange, Sample

        content = body["messages"][-1]["content"]
        image = base64.b64decode(content[0]["image_url"]["url"].partition(",")[2])
        question = content[-1]["text"].partition("\n\nWrite these parts")[0]
        future: Future[str] = Future()
        self._waiting.put((Sample(question, (Exchange(question),), (image,)), future))
        return future.result()

    def _work(self) -> None:
        from lora_cot.search.run import answer

        while True:
            jobs = [self._waiting.get()]
            while len(jobs) < QUESTIONS_AT_ONCE:
                try:
                    jobs.append(self._waiting.get(timeout=0.05))
                except queue.Empty:
                    break
            try:
                completions = answer(self._engine, self._format, [sample for sample, _ in jobs], self._search)
            except Exception as error:  # whoever waits must hear of it
                for _, future in jobs:
                    future.set_exception(error)
                continue
            for (_, future), done in zip(jobs, completions, strict=True):
                stages = [stage.text for stage in done.parsed.stages if stage.name != "CONCLUSION"]
                future.set_result(
                    f"<RATIONALE> {' '.join(stages)} </RATIONALE>\n<ANSWER> {done.parsed.answer or ''} </ANSWER>"
                )


def serve(teacher: Teacher) -> ThreadingHTTPServer:
    """The teacher's server, on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send({"data": [{"id": "teacher"}]})

        def do_POST(self) -> None:
            text = teacher.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"role": "assistant", "content": text}
            self._send({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

        def _send(self, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 2 * QUESTIONS_AT_ONCE

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    """Teach the teacher, ask it, train on both."""
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/pseudo-rationales"))
    options = parser.parse_args()
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    server = serve(Teacher(trained(RECIPES / "llava_four_stage.yaml", ["name=pseudo-rationales-teacher"])))
    url, written = f"http://127.0.0.1:{server.server_address[1]}/v1", options.output / "rationales.jsonl"
    asking = ["--teacher", url, "--model", "teacher", "--output", written, "--all", "--concurrency", str(QUESTIONS_AT_ONCE)]
    annotated = annotate(RECIPES / "t5_vit_two_stage.yaml", *asking)
    server.shutdown()
    files = {ANNOTATED: annotated_of(written, options.output / "annotated.jsonl"), GENERATED: written}
    arms = {arm: ["data.train.0.bad_rows=drop", f"data.train.0.rationales={file}"] for arm, file in files.items()}
    recipe, jobs = "t5_vit_two_stage.yaml", [(arm, seed) for seed in options.seeds for arm in arms]
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda job: run(*job, options.output, recipe, arms[job[0]], scenes=0), jobs))
    report = {
        "annotate": annotated,
        "arms": {arm: spread([one["accuracy"]["accuracy"] for one in runs if one["arm"] == arm]) for arm in arms},
        "difference": difference(runs, ANNOTATED, GENERATED),
        "runs": runs,
    }
    write_report(report, options.output)
    rows = [f"{arm}: {points(made)} %" for arm, made in report["arms"].items()]
    tell(report, options.json, [*rows, f"difference: {apart(report['difference'])}"])


def annotated_of(written: Path, path: Path) -> Path:
    """The gold rationales of exactly the rows that a file has rationales of."""
    from lora_cot.data.shapes import make_sample

    ids = [json.loads(line)["id"] for line in written.read_text().splitlines()]
    golds = {number: make_sample(int(number.rsplit("-", 1)[-1]), "train", 0).meta["rationales"] for number in ids}
    rows = [json.dumps({"id": number, "output": " ".join(texts)}) for number, texts in golds.items()]
    path.write_text("\n".join(rows) + "\n")
    return path


def annotate(*arguments: Any) -> dict[str, Any]:
    """What `lora-cot annotate` reports."""
    command = [sys.executable, "-m", "lora_cot.cli", "annotate", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
