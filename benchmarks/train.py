"""Training speed beside plain TRL: the same QLoRA job, both sides in turn, on samples of equal and of mixed lengths.

    python benchmarks/train.py [--rounds 5] [--base mini/llava] [--dtype float32] [--json]

Each side trains one epoch over the same files in a process of its own; what is timed is `trainer.train()`. Tokens are
real ones, padding left out, and the same for both sides: the ratio is one of seconds, of each side's best round, since
what else a machine does only ever adds to them. Ours makes steps by length (`train_sampling_strategy`). The other side is
TRL's SFTTrainer with its own collator, as TRL's example for vision models uses it: `messages` and `images`, steps drawn at
random, no worker processes. It trains on every token, prompts included; both adapt the same layers of the same quantised
base.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import command_line, device, tell  # beside this file

SAMPLES, BATCH = 240, 8
WORDS = ["the", "shape", "at", "the", "top", "left", "is", "a", "red", "circle", "and", "so", "that", "makes", "two"]


def main() -> None:
    """Run all sides, print the ratios."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base", default="mini/llava")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision of both sides")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](recipe_of(options.base, options.data, options.dtype), options.data)))
        return
    report: dict[str, Any] = {
        "device": device(),
        "base": options.base,
        "dtype": options.dtype,
        "samples": SAMPLES,
        "batch_size": BATCH,
    }
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("equal", "mixed"):
            data = Path(folder) / kind
            write_data(data, kind)
            report |= compare(kind, data, options)
    lines = [f"{report['device']}; {report['base']}, {SAMPLES} samples in batches of {BATCH}, {options.rounds} rounds"]
    for kind in ("equal", "mixed"):
        ours, trl = (report[f"{side}_tokens_per_s_{kind}"] for side in ("ours", "trl"))
        ratio = report[f"tokens_per_s_ratio_{kind}"]
        lines.append(f"{kind:>6} lengths: ours {ours:,.0f} tokens/s, TRL {trl:,.0f}, ratio {ratio:.2f}")
    tell(report, options.json, lines)


def compare(kind: str, data: Path, options: argparse.Namespace) -> dict[str, float]:
    """Both sides in turn; the best of the rounds."""
    seconds: dict[str, list[float]] = {"ours": [], "trl": []}
    tokens = 0
    for number in range(options.rounds):
        for side in ("ours", "trl") if number % 2 == 0 else ("trl", "ours"):
            command = [
                sys.executable,
                __file__,
                "--side",
                side,
                "--data",
                str(data),
                "--base",
                options.base,
                "--dtype",
                options.dtype,
            ]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
            seconds[side].append(found["seconds"])
            tokens = found.get("tokens", tokens)
            print(f"{kind} {side}: {found['seconds']:.1f} s", file=sys.stderr, flush=True)
    ours, trl = (min(seconds[side]) for side in ("ours", "trl"))
    return {
        f"tokens_per_s_ratio_{kind}": trl / ours,
        f"ours_tokens_per_s_{kind}": tokens / ours,
        f"trl_tokens_per_s_{kind}": tokens / trl,
    }


def write_data(folder: Path, kind: str) -> None:
    """Rows of our own plain form with photographs of 640×480; answers of one length, or of lengths from 30 to 600 words."""
    from PIL import Image

    from lora_cot.data.shapes import make_sample

    folder.mkdir(parents=True)
    rng = random.Random(0)
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(SAMPLES):
            words = 150 if kind == "equal" else min(600, max(30, round(rng.lognormvariate(4.8, 0.8))))
            reasoning = " ".join(WORDS[i % len(WORDS)] for i in range(words))
            stages = {"SUMMARY": "I will look.", "CAPTION": "Shapes.", "REASONING": reasoning, "CONCLUSION": "two"}
            scene = Image.open(io.BytesIO(make_sample(number, "train", 0).images[0])).resize((640, 480))
            scene.save(folder / f"{number}.jpg", quality=90)
            row = {"id": str(number), "image": f"{number}.jpg", "question": "How many shapes are there?", "stages": stages}
            file.write(json.dumps(row) + "\n")


def recipe_of(base: str, data: Path, dtype: str) -> Any:
    """The job as a recipe."""
    import torch

    from lora_cot.recipe.schema import Recipe

    return Recipe.model_validate(
        {
            "name": "benchmark",
            "model": {"base": base, "dtype": dtype},
            "data": {"train": [{"source": "jsonl", "path": str(data / "rows.jsonl")}]},
            "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
            "lora": {"r": 16, "lora_alpha": 32},
            "training": {
                "num_train_epochs": 1,
                "train_sampling_strategy": "group_by_length",
                "per_device_train_batch_size": BATCH,
                "learning_rate": 1e-3,
                "save_strategy": "no",
                "logging_steps": 10,
                "bf16": dtype == "bfloat16",
                "use_cpu": not torch.cuda.is_available(),
            },
        }
    )


def train_ours(recipe: Any, data: Path) -> dict[str, float]:
    """Our trainer, as `train` builds it."""
    from lora_cot.adapters.lora import attach
    from lora_cot.backbones.loading import load_backbone
    from lora_cot.data.lengths import keep_fitting
    from lora_cot.data.sources import load_data
    from lora_cot.training import run
    from lora_cot.training.arguments import sft_config
    from lora_cot.training.loop import Keeping

    cot_format = recipe.format.build()
    samples, _ = load_data(recipe.data, cot_format)
    backbone = attach(load_backbone(recipe.model, recipe.quantization), recipe.lora)
    collator = run.make_collator(recipe, backbone, cot_format)
    with tempfile.TemporaryDirectory() as folder:
        arguments = sft_config(recipe, Path(folder), backbone.family, cot_format)
        kept = keep_fitting(samples, collator.limit, "data.train")
        none = keep_fitting([], collator.limit, "data.eval")
        keeping = Keeping(Path(folder), Path(folder) / "checkpoints", {}, None, recipe.training.hang_after)
        trainer = run.make_trainer(recipe, arguments, backbone, cot_format, collator, (kept, none), [], keeping)
        return {"seconds": timed(trainer), "tokens": sum(kept.lengths)}


def train_trl(recipe: Any, data: Path) -> dict[str, float]:
    """TRL's own trainer and collator on the same rows, base and layers."""
    from datasets import Dataset, Features, Image, Sequence, Value
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from lora_cot.adapters.lora import target_paths
    from lora_cot.backbones.loading import load_backbone
    from lora_cot.formats import FORMATS

    backbone = load_backbone(recipe.model, recipe.quantization)
    rows: dict[str, list[Any]] = {"messages": [], "images": []}
    for row in map(json.loads, (data / "rows.jsonl").read_text().splitlines()):
        answer = "".join(text for _, text in FORMATS["four_stage"].write(row["stages"]))
        question = [{"type": "image", "text": None}, {"type": "text", "text": row["question"]}]
        reply = [{"type": "text", "text": answer}]
        rows["messages"].append([{"role": "user", "content": question}, {"role": "assistant", "content": reply}])
        rows["images"].append([str(data / row["image"])])
    part = {"type": Value("string"), "text": Value("string")}
    features = Features({"messages": [{"role": Value("string"), "content": [part]}], "images": Sequence(Image())})
    with tempfile.TemporaryDirectory() as folder:
        keys = recipe.training.library
        config = SFTConfig(output_dir=folder, max_length=None, report_to="none", disable_tqdm=True, **keys)
        lora = LoraConfig(r=16, lora_alpha=32, target_modules=target_paths(backbone, recipe.lora), task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            model=backbone.model,
            args=config,
            train_dataset=Dataset.from_dict(rows, features=features),
            processing_class=backbone.processor,
            peft_config=lora,
        )
        return {"seconds": timed(trainer)}


def timed(trainer: Any) -> float:
    """Seconds of the training."""
    begin = time.perf_counter()
    trainer.train()
    return time.perf_counter() - begin


SIDES = {"ours": train_ours, "trl": train_trl}

if __name__ == "__main__":
    main()
