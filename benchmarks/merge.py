"""Merging beside PEFT's load, merge_and_unload and save: memory and time, both sides in turn, each in a process of its own.

    python benchmarks/merge.py [--size-gb 2] [--rounds 3] [--json]

The base is a LLaVA in bfloat16 of real layer shapes (Llama's width of 4096 and 14336, as many layers as the size asks for) and
values drawn at random, in shards of 500 MB; the adapter is a LoRA of rank 16 on every linear layer of the language model.
Memory is the most anonymous memory a process held above what its imports take (RssAnon, read every few milliseconds from
outside): pages of mapped files are the system's to take back, and counting them would count the base itself. Time begins
after the imports, with the base in the page cache, and ends when all is written; `ours_on_disk_seconds` is when all of it
is on the disk too, which the other side does not wait for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from measuring import ROOT, command_line, device, tell  # beside this file

SHARD = 500_000_000
WIDTH, FEED_FORWARD, VOCABULARY = 4096, 14336, 40960


def main() -> None:
    """Make the base, run both sides in turn, print the ratios."""
    parser = command_line(__doc__)
    parser.add_argument("--size-gb", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        SIDES[options.side](options.folder, options.size_gb)
        return
    with tempfile.TemporaryDirectory(prefix="merge-benchmark-") as name:
        folder = Path(name)
        run_side("make", folder, options.size_gb)
        shards = [path.stat().st_size for path in (folder / "base").glob("*.safetensors")]
        adapter = (folder / "adapter" / "adapter_model.safetensors").stat().st_size
        runs: dict[str, list[tuple[int, float, float]]] = {"ours": [], "peft": []}
        for _ in range(options.rounds):
            for side, found in runs.items():
                found.append(run_side(side, folder, options.size_gb))
                shutil.rmtree(folder / "merged")
                print(f"{side}: {found[-1][0] / 1e6:.0f} MB, {found[-1][1]:.2f} s", file=sys.stderr)
    peak = {side: max(memory for memory, _, _ in found) for side, found in runs.items()}
    ratios = [ours[1] / theirs[1] for ours, theirs in zip(runs["ours"], runs["peft"], strict=True)]
    report = {
        "device": device(),
        "base_gb": sum(shards) / 1e9,
        "shards": len(shards),
        "largest_shard_mb": max(shards) / 1e6,
        "adapter_mb": adapter / 1e6,
        "rounds": options.rounds,
        **{f"{side}_peak_mb": size / 1e6 for side, size in peak.items()},
        **{f"{side}_seconds": statistics.median(seconds for _, seconds, _ in found) for side, found in runs.items()},
        "ours_on_disk_seconds": statistics.median(seconds for _, _, seconds in runs["ours"]),
        "peak_over_shard_plus_adapter": peak["ours"] / (max(shards) + adapter),
        "wall_ratio": statistics.median(ratios),
    }
    tell(report, options.json)


def run_side(side: str, folder: Path, size_gb: float) -> tuple[int, float, float]:
    """Of a side in a process of its own: peak of anonymous bytes above the imports, seconds, and seconds to the disk."""
    os.sync()  # what was written before is none of its business
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--size-gb", str(size_gb)]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}  # every core
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"the side {side} failed: {' '.join(command)}")
    baseline, seen, begin = anonymous(process.pid), [0], time.perf_counter()

    def watch() -> None:
        while process.poll() is None:
            seen.append(anonymous(process.pid))
            time.sleep(0.004)

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.stdout.readline()  # "done"
    seconds = time.perf_counter() - begin
    process.stdout.readline()  # "on disk"
    on_disk = time.perf_counter() - begin
    if process.wait():
        raise SystemExit(f"the side {side} failed: {' '.join(command)}")
    watcher.join()
    return max(seen) - baseline, seconds, on_disk


def anonymous(process: int) -> int:
    """Bytes of a process that no file stands behind; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def make(folder: Path, size_gb: float) -> None:
    """The base and the adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    print("ready", flush=True)
    layer = 2 * (2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // 4 + 3 * WIDTH * FEED_FORWARD)
    layers = max(1, round((size_gb * 1e9 - 2 * 2 * VOCABULARY * WIDTH) / layer))
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    vision = CLIPVisionConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text)).to(torch.bfloat16)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    tile = torch.randn(1 << 22).mul_(0.02).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for begin in range(0, len(flat), len(tile)):
                flat[begin : begin + len(tile)] = tile[: len(flat) - begin]
    model.save_pretrained(folder / "base", max_shard_size=SHARD)
    targets = r".*language_model.*_proj"
    peft = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    peft.save_pretrained(folder / "adapter")
    print("done", flush=True)


def ours(folder: Path, size_gb: float) -> None:
    """The streaming merge, without the verification that loads both models."""
    import peft
    import transformers.models.llava.modeling_llava  # noqa: F401

    from lora_cot.checkpoints.store import make_durable
    from lora_cot.merging.onto import make_ready, write_model
    from lora_cot.recipe import Recipe
    from lora_cot.recipe.model import ModelSection

    assert peft.LoraConfig and peft.get_peft_model
    recipe = Recipe(name="benchmark", model=ModelSection(base=str(folder / "base")))
    print("ready", flush=True)
    write_model(make_ready(recipe, folder / "adapter", "full"), recipe, folder / "merged")
    print("done", flush=True)
    make_durable(folder / "merged")
    print("on disk", flush=True)


def theirs(folder: Path, size_gb: float) -> None:
    """What PEFT's documentation shows."""
    import transformers.models.llava.modeling_llava  # noqa: F401
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    print("ready", flush=True)
    base = AutoModelForImageTextToText.from_pretrained(folder / "base", dtype="auto")
    merged = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    merged.save_pretrained(folder / "merged", max_shard_size=SHARD)
    print("done", flush=True)


SIDES = {"make": make, "ours": ours, "peft": theirs}

if __name__ == "__main__":
    main()
