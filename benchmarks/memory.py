"""Peak memory and speed of training the published shapes with random weights, on a GPU; and which recipes fit a card.

    python benchmarks/memory.py [--json] [--output docs/memory.json]     # every shape, then every recipe under its cap
    python benchmarks/memory.py --recipe recipes/llava_1_5_7b/four_stage_12gb.yaml --cap-gb 12
    python benchmarks/memory.py --layers 2 --recipe …                     # a rehearsal on the CPU

No weights are needed: a model of the published configuration is filled with random numbers, its language model is
quantised as the recipe says, and a recipe's own adapters, optimizer and checkpointing train it for a few steps on one
image and as many tokens as the recipe allows. The cap is a hard one on what torch allocates: what needs more runs out of
memory. It leaves out the driver's own context and what a paged optimizer moves to the host, about half a GB.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_cot.adapters.lora import attach
from lora_cot.backbones import FAMILIES, Backbone, part_of
from lora_cot.recipe.load import load_recipe
from lora_cot.training.callbacks import drop_input_gradients

ROOT = Path(__file__).resolve().parents[1]
STEPS = 4
GOALS_GB = {"llama3_2_vision_11b": 12, "llava_1_5_7b": 8, "qwen2_vl_7b": 8}
"""Peak memory that is aimed at, batch 1, 1,024 tokens, one image."""


@dataclass(frozen=True)
class Shape:
    """A published configuration, and what a processor makes of one image for it."""

    config: Callable[[], Any]
    image: Callable[[Any], dict[str, torch.Tensor]]
    """The configuration to the model's inputs for one image, but for the text."""
    image_tokens: int
    """Slots of that image in the text."""


def mllama() -> Any:
    """Llama-3.2-11B-Vision-Instruct."""
    from transformers import MllamaConfig

    return MllamaConfig(vision_config={"image_size": 560}, text_config={})


def mllama_image(config: Any) -> dict[str, torch.Tensor]:
    """Four tiles."""
    size = config.vision_config.image_size
    return {
        "pixel_values": torch.randn(1, 1, 4, 3, size, size),
        "aspect_ratio_ids": torch.tensor([[6]]),
        "aspect_ratio_mask": torch.ones(1, 1, 4, dtype=torch.long),
    }


def llava() -> Any:
    """LLaVA-1.5-7B."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14
    )
    return LlavaConfig(vision_config=vision, text_config=LlamaConfig(vocab_size=32064), image_token_index=32000)


def llava_image(config: Any) -> dict[str, torch.Tensor]:
    """One picture of 336 pixels."""
    size = config.vision_config.image_size
    return {"pixel_values": torch.randn(1, 3, size, size)}


def onevision() -> Any:
    """LLaVA-OneVision-7B."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=26,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
        vision_use_head=False,
    )
    return LlavaOnevisionConfig(vision_config=vision, text_config=Qwen2Config(vocab_size=152000, **QWEN2_7B))


def onevision_image(config: Any) -> dict[str, torch.Tensor]:
    """One picture of 768×384: as a whole, and in two tiles."""
    return {"pixel_values": torch.randn(1, 3, 3, 384, 384), "image_sizes": torch.tensor([[384, 768]])}


def qwen2_vl() -> Any:
    """Qwen2-VL-7B."""
    from transformers import Qwen2VLConfig

    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    return Qwen2VLConfig(vision_config={}, text_config={"vocab_size": 152064, "rope_parameters": rope, **QWEN2_7B})


def qwen2_vl_image(config: Any) -> dict[str, torch.Tensor]:
    """One picture of 756×756: 729 tokens."""
    width = 3 * config.vision_config.temporal_patch_size * config.vision_config.patch_size**2
    return {"pixel_values": torch.randn(54 * 54, width), "image_grid_thw": torch.tensor([[1, 54, 54]])}


QWEN2_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
SHAPES = {
    "llama3_2_vision_11b": Shape(mllama, mllama_image, 1),
    "llava_1_5_7b": Shape(llava, llava_image, 576),
    "llava_onevision_7b": Shape(onevision, onevision_image, 729 + 27 * 55),
    "qwen2_vl_7b": Shape(qwen2_vl, qwen2_vl_image, 729),
}
"""By the folder of its recipes."""


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, help="only this recipe")
    parser.add_argument("--cap-gb", type=float, help="hard cap on the GPU's memory")
    parser.add_argument("--length", type=int, help="tokens of the sample; the recipe's max_length if not given")
    parser.add_argument("--layers", type=int, help="only so many layers in each tower: a rehearsal, on the CPU too")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--output", type=Path, help="write the rows there, one after another")
    options = parser.parse_args()
    if options.layers is None and not torch.cuda.is_available():
        sys.exit("no GPU: every row is 'not run'; --layers 2 rehearses on the CPU")
    rows = []
    for recipe, cap, length in jobs(options):
        rows.append(measured(recipe, cap, length, options.layers))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        if options.output:
            options.output.write_text(json.dumps(rows, indent=2) + "\n")
    if options.json:
        print(json.dumps({"rows": rows}))
        return
    for row in rows:
        figures = row.get("error") or f"{row['peak_gb'] or float('nan'):.2f} GB, {row['tokens_per_s']:.0f} tokens/s"
        print(f"{row['recipe']:<48} {row['tokens']:>6} tokens  cap {row['cap_gb'] or '-':>4}  {figures}")


def jobs(options: argparse.Namespace) -> list[tuple[Path, float | None, int | None]]:
    """(recipe, cap, length): each shape at 1,024 tokens without a cap, then each recipe as it is under its card's."""
    if options.recipe:
        return [(options.recipe, options.cap_gb, options.length)]
    recipes = [path for folder in SHAPES for path in sorted((ROOT / "recipes" / folder).glob("*.yaml"))]
    shapes = [path for path in recipes if path.stem == "four_stage_12gb" and path.parent.name in GOALS_GB]
    return [(path, None, 1024) for path in shapes] + [
        (path, float(path.stem.split("_")[-1].removesuffix("gb")), None) for path in recipes
    ]


def measured(path: Path, cap_gb: float | None, length: int | None, layers: int | None) -> dict[str, Any]:
    """One row: peak memory and speed of a recipe, or that it ran out of memory."""
    recipe = load_recipe(path)
    keys = recipe.training.library
    length = length or keys["max_length"]
    batch = 1 if cap_gb is None else keys["per_device_train_batch_size"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    row = {"recipe": f"{path.parent.name}/{path.stem}", "tokens": batch * length, "cap_gb": cap_gb, "device": device_name()}
    try:
        backbone, inputs = build(path.parent.name, recipe, batch, length, device, layers)
        if device == "cuda":
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, (cap_gb or 1e4) * 1e9 / total))
            torch.cuda.reset_peak_memory_stats()
        weights = torch.cuda.memory_allocated() / 1e9 if device == "cuda" else None
        seconds = train(attach(backbone, recipe.lora), inputs, recipe)
        peak = torch.cuda.max_memory_reserved() / 1e9 if device == "cuda" else None
        return {**row, "weights_gb": weights, "peak_gb": peak, "tokens_per_s": batch * length / seconds}
    except torch.OutOfMemoryError:
        return {**row, "error": "out of memory"}
    except (RuntimeError, ValueError) as error:
        return {**row, "error": " ".join(str(error).split())[:300]}
    finally:
        backbone = inputs = None
        gc.collect()
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()


def build(
    folder: str, recipe: Any, batch: int, length: int, device: str, layers: int | None
) -> tuple[Backbone, dict[str, torch.Tensor]]:
    """A random model of the shape, quantised layer by layer, and a batch for it."""
    from transformers import AutoModelForImageTextToText

    shape = SHAPES[folder]
    config = shape.config() if layers is None else cut(shape.config(), layers)
    config._attn_implementation = recipe.model.attn_implementation or "sdpa"
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    (family,) = (family for family in FAMILIES.values() if config.model_type in family.model_types)
    quantize(model, family, recipe)
    image_token = config.image_token_id if hasattr(config, "image_token_id") else config.image_token_index
    ids = torch.randint(1000, 30000, (batch, length))
    ids[:, 8 : 8 + shape.image_tokens] = image_token
    labels = ids.masked_fill(torch.arange(length) < length // 2, -100).masked_fill(ids == image_token, -100)
    images = {name: value.repeat(batch, *[1] * (value.dim() - 1)) for name, value in shape.image(config).items()}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, **images}
    if folder == "qwen2_vl_7b":
        inputs["mm_token_type_ids"] = (ids == image_token).int()
    if folder == "llama3_2_vision_11b":
        inputs["cross_attention_mask"] = (torch.arange(length) >= 8).long()[None, :, None, None].expand(batch, -1, 1, 4)
    backbone = Backbone(family, model, None, folder)
    return backbone, backbone.place(inputs)


def cut(config: Any, layers: int) -> Any:
    """The configuration with only so many layers in each tower."""
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    if hasattr(text, "cross_attention_layers"):
        text.cross_attention_layers = [layers - 1]
        vision.num_global_layers, vision.intermediate_layers_indices = 1, [0] * 5
    setattr(vision, "depth" if hasattr(vision, "depth") else "num_hidden_layers", layers)
    return config


def quantize(model: torch.nn.Module, family: Any, recipe: Any) -> None:
    """Replace the layers that the recipe quantises, one at a time, as a loaded checkpoint would have them."""
    from bitsandbytes.nn import Linear4bit

    section = recipe.quantization
    for name, module in list(model.named_modules()):
        part = part_of(family, name)
        if type(module) is not torch.nn.Linear or part is None or part in section.skip_parts:
            continue
        parent, _, leaf = name.rpartition(".")
        layer = Linear4bit(
            module.in_features,
            module.out_features,
            module.bias is not None,
            compute_dtype=torch.bfloat16,
            compress_statistics=bool(section.library.get("bnb_4bit_use_double_quant")),
            quant_type=section.bnb_4bit_quant_type,
            device="meta",
        )
        weight, bias = module.weight.data, module.bias
        layer.weight = type(layer.weight)(
            weight.cpu(), False, quant_type=section.bnb_4bit_quant_type, compress_statistics=layer.weight.compress_statistics
        )
        layer.bias = bias
        setattr(model.get_submodule(parent), leaf, layer.to(weight.device))
        module.weight = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def train(backbone: Backbone, inputs: dict[str, torch.Tensor], recipe: Any) -> float:
    """Seconds of a step: TRL's fused head, the recipe's optimizer and checkpointing; the first step is not counted."""
    from transformers import TrainingArguments
    from transformers.trainer import Trainer
    from trl.trainer.utils import add_fused_lm_head

    model, keys = backbone.model, recipe.training.library
    add_fused_lm_head(backbone.base_model, outputs=("log_probs", "entropy", "is_top1"))
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
            log_probs = model(**inputs, use_cache=False, fused_lm_head=True).log_probs
        (-log_probs.sum() / (inputs["labels"] >= 0).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (now() - begin) / (STEPS - 1)


def now() -> float:
    """The time after all that was started is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def device_name() -> str:
    """What this runs on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


if __name__ == "__main__":
    main()
