"""Peak memory beside what `lora-cot plan` says; on a GPU also speed, and which recipes train under a card's cap.

    python benchmarks/memory.py --check docs/memory.md                   # every miniature here, every GPU row with a GPU
    python benchmarks/memory.py --recipe recipes/llava_1_5_7b/four_stage_12gb.yaml --cap-gb 12 [--json]
    python benchmarks/memory.py --layers 2 --recipe …                     # a rehearsal on the CPU

Miniatures are trained for a few steps, with an evaluation, in a process of their own, whose memory is measured. On a GPU
no weights are needed: a model of the published configuration is filled with random numbers, quantised as the recipe says,
and trained for a few steps on the largest batch that the plan assumes. A cap is a hard one on what torch allocates: what
needs more runs out of memory. It leaves out the driver's own context, about half a GB.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import ROOT, command_line, device, now, tell, write_between  # beside this file

from lora_cot.adapters.lora import attach
from lora_cot.backbones import Backbone
from lora_cot.backbones.loading import family_of
from lora_cot.backbones.quantization import bits_and_bytes
from lora_cot.data.collate import batch
from lora_cot.planning.outline import configuration
from lora_cot.planning.workload import rows, workloads
from lora_cot.recipe.load import load_recipe
from lora_cot.training.callbacks import drop_input_gradients
from lora_cot.training.heads import fuse_head

STEPS = 4
FOLDERS = ("llama3_2_vision_11b", "llava_1_5_7b", "llava_onevision_7b", "qwen2_vl_7b", "flan_alpaca_large")
GOALS_GB = {"llama3_2_vision_11b": 12, "llava_1_5_7b": 8, "qwen2_vl_7b": 8, "flan_alpaca_large": 6}
"""Peak memory that is aimed at, batch 1, 1,024 tokens, one image."""
SHORT = ("training.max_steps=8", "training.eval_steps=4", "training.save_strategy=no", "training.load_best_model_at_end=false")


def main() -> None:
    """Measure what was asked for."""
    parser = command_line(__doc__)
    parser.add_argument("--check", type=Path, help="a page, between whose marks the table is written")
    parser.add_argument("--recipe", type=Path, help="only this recipe")
    parser.add_argument("--cap-gb", type=float, help="hard cap on the GPU's memory")
    parser.add_argument("--length", type=int, help="tokens of the sample; the recipe's max_length if not given")
    parser.add_argument("--layers", type=int, help="only so many layers in each tower: a rehearsal, on the CPU too")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    if options.check is None and options.layers is None and not gpu:
        sys.exit("no GPU: every row is 'not run'; --layers 2 rehearses on the CPU, --check measures the miniatures")
    found = [miniature(path) for path in sorted((ROOT / "recipes/mini").glob("*.yaml"))] if options.check else []
    for recipe, cap, length in jobs(options):
        found.append(measured(recipe, cap, length, options.layers) if gpu or options.layers else not_run(recipe, cap, length))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    if options.check:
        write_between(options.check, "memory", [f"On {device()}:", "", *table(found)])
    tell({"device": device(), "rows": found}, options.json, table(found))


def jobs(options: argparse.Namespace) -> list[tuple[Path, float | None, int | None]]:
    """(recipe, cap, length): each shape at 1,024 tokens without a cap, then each recipe as it is under its card's."""
    if options.recipe:
        return [(options.recipe, options.cap_gb, options.length)]
    recipes = [path for folder in FOLDERS for path in sorted((ROOT / "recipes" / folder).glob("*.yaml"))]
    shapes = [path for path in recipes if path.stem in ("four_stage_12gb", "scienceqa_two_stage_6gb")]
    shapes = [path for path in shapes if path.parent.name in GOALS_GB]
    return [(path, None, 1024) for path in shapes] + [
        (path, float(path.stem.split("_")[-1].removesuffix("gb")), None) for path in recipes
    ]


def overrides(cap_gb: float | None, length: int | None) -> list[str]:
    """Of a recipe: as it is under a cap, one sample a batch without."""
    return [f"training.max_length={length}"] * bool(length) + ["training.per_device_train_batch_size=1"] * (cap_gb is None)


def planned(path: Path, changes: list[str], gpu: bool, phase: str | None = None) -> tuple[float, float]:
    """What the plan says, in GB: at least and at most; of the run, or of one phase."""
    cap = ["--vram-gb", "1000"] if gpu else []
    command = [sys.executable, "-m", "lora_cot.cli", "plan", str(path), *changes, *cap, "--json"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout)
    chosen = next(one for one in found["phases"] if one["name"] == phase) if phase else found
    return chosen["low_gb"], chosen["high_gb"]


def miniature(path: Path) -> dict[str, Any]:
    """A few steps of a miniature in a process of its own, and the memory of that process."""
    low, high = planned(path, [], gpu=False)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lora_cot.cli", "train", str(path), "name=check", *SHORT]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peak = json.loads((Path(folder) / "runs/check/report.json").read_text())["peak_memory_gb"]
    row = {"recipe": f"mini/{path.stem}", "device": device(), "low_gb": low, "high_gb": high, "peak_gb": peak}
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def not_run(path: Path, cap_gb: float | None, length: int | None) -> dict[str, Any]:
    """A GPU row without a GPU: only what is planned."""
    low, high = planned(path, overrides(cap_gb, length), gpu=True, phase="training")
    return {"recipe": name_of(path), "cap_gb": cap_gb, "length": length, "low_gb": low, "high_gb": high}


def name_of(path: Path) -> str:
    """A recipe's folder and file."""
    return f"{path.parent.name}/{path.stem}"


def measured(path: Path, cap_gb: float | None, length: int | None, layers: int | None) -> dict[str, Any]:
    """One row: peak memory and speed of a recipe, or that it ran out of memory."""
    recipe = load_recipe(path, overrides(cap_gb, length))
    gpu = torch.cuda.is_available()
    row: dict[str, Any] = {"recipe": name_of(path), "device": device(), "cap_gb": cap_gb, "length": length}
    if layers is None:
        row["low_gb"], row["high_gb"] = planned(path, overrides(cap_gb, length), gpu=True, phase="training")
    try:
        backbone = build(recipe, "cuda" if gpu else "cpu", layers)
        work = workloads(recipe, backbone)[0]
        size = recipe.training.library["per_device_train_batch_size"]
        inputs = batch(rows(backbone, work, size, answered=True), backbone.processor, backbone.family.image_inputs)
        inputs.pop("stage_ids")
        if gpu:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, (cap_gb or 1e4) * 1e9 / total))
            torch.cuda.reset_peak_memory_stats()
        seconds = train(backbone, backbone.place(inputs), recipe)
        peak = torch.cuda.max_memory_reserved() / 1e9 if gpu else None
        return {**row, "peak_gb": peak, "tokens_per_s": int(inputs["attention_mask"].sum()) / seconds}
    except torch.OutOfMemoryError:
        return {**row, "error": "out of memory"}
    except (RuntimeError, ValueError) as error:
        return {**row, "error": " ".join(str(error).split())[:300]}
    finally:
        backbone = inputs = None
        gc.collect()
        if gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()


def build(recipe: Any, device: str, layers: int | None) -> Backbone:
    """A random model of the recipe's configuration, quantised layer by layer, with its adapters."""
    import transformers
    from transformers.integrations import replace_with_bnb_linear

    base = configuration(recipe)
    family = family_of(base)
    config = family.load_config(base, recipe.model)
    config = config if layers is None else cut(config, layers)
    config._attn_implementation = recipe.model.attn_implementation or "sdpa"
    with torch.device(device):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    if recipe.quantization is not None:
        quantization: Any = bits_and_bytes(recipe.quantization, family, torch.bfloat16)
        replace_with_bnb_linear(model, quantization.llm_int8_skip_modules, quantization)
        fill(model, device)
    return attach(Backbone(family, model, family.load_processor(base, recipe.model), base), recipe.lora)


def fill(model: torch.nn.Module, device: str) -> None:
    """Random weights for the layers that were made for quantised ones, one after another."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            weight = torch.randn(layer.weight.shape, dtype=torch.bfloat16) * 0.02
            options = {key: getattr(layer.weight, key) for key in ("quant_type", "compress_statistics", "quant_storage")}
            layer.weight = Params4bit(weight, requires_grad=False, module=layer, **options).to(device)
            if layer.bias is not None:
                layer.bias = torch.nn.Parameter(torch.zeros(layer.bias.shape, dtype=torch.bfloat16, device=device), False)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def cut(config: Any, layers: int) -> Any:
    """The configuration with only so many layers in each tower."""
    if config.model_type == "t5_vision":
        config.num_layers = config.num_decoder_layers = layers
        return config
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    if hasattr(text, "cross_attention_layers"):
        text.cross_attention_layers = [layers - 1]
        vision.num_global_layers, vision.intermediate_layers_indices = 1, [0] * 5
    setattr(vision, "depth" if hasattr(vision, "depth") else "num_hidden_layers", layers)
    return config


def train(backbone: Backbone, inputs: dict[str, torch.Tensor], recipe: Any) -> float:
    """Seconds of a step: TRL's fused head, the recipe's optimizer and checkpointing; the first step is not counted."""
    from transformers import TrainingArguments
    from transformers.trainer import Trainer

    model, keys = backbone.model, recipe.training.library
    fuse_head(backbone)
    if keys.get("gradient_checkpointing"):
        model.gradient_checkpointing_enable(keys.get("gradient_checkpointing_kwargs"))
        drop_input_gradients(model)
    arguments = TrainingArguments(output_dir="unused", optim=keys.get("optim", "adamw_torch"), report_to="none")
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    optimizer = kind([p for p in model.parameters() if p.requires_grad], **options)
    model.train()
    begin = 0.0
    for step in range(STEPS):
        if step == 1:
            begin = now()
        with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.device.type == "cuda"):
            log_probs = model(**inputs, fused_lm_head=True).log_probs
        (-log_probs.sum() / (inputs["labels"] >= 0).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (now() - begin) / (STEPS - 1)


def table(found: list[dict[str, Any]]) -> list[str]:
    """The rows as a table of Markdown."""
    text = ["| recipe | planned GB | measured GB | off by | tokens/s |", "|---|---|---|---|---|"]
    for row in found:
        name = row["recipe"] + (f", {row['length']} tokens, batch 1" if row.get("length") else "")
        name += f", cap {row['cap_gb']:g} GB" if row.get("cap_gb") else ""
        plan = f"{row['low_gb']:.2f} to {row['high_gb']:.2f}" if "low_gb" in row else "–"
        peak = row.get("peak_gb")
        off = f"{abs(peak / ((row['low_gb'] + row['high_gb']) / 2) - 1):.0%}" if peak and "low_gb" in row else "–"
        speed = f"{row['tokens_per_s']:,.0f}" if "tokens_per_s" in row else "–"
        text.append(f"| {name} | {plan} | {row.get('error') or (f'{peak:.2f}' if peak else 'not run')} | {off} | {speed} |")
    return text


if __name__ == "__main__":
    main()
