"""What a training step costs by the kind of vision features, all kinds in turn in one run.

    python benchmarks/dpmm_cost.py [--shapes mini|sd14] [--kinds KIND …] [--rows 8] [--rounds 3] [--steps 5] [--json]

Random weights: `mini` has the miniature's shapes, on the CPU in float32; `sd14` those of T5-base, ViT-L/32 at 384 pixels and
Stable Diffusion 1.4 in bfloat16, what is trained in float32, on a GPU if there is one. A CPU is given one thread. A batch of
questions of 64 tokens about images, with answers of 64. Each kind has a process of its own in each round. Memory is what the
process has taken at its peak since all packages were there (CPU), or what torch has allocated (GPU). Of frozen encoders
features are there already.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from measuring import command_line, device, now, processor, tell  # beside this file

TOKENS = 64
KINDS: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "vit-frozen": ("`vit`, frozen", "t5_vision", {}, ()),
    "vit-lora": ("`vit`, `vision_training: lora`", "t5_vision_tuned", {"vision_training": "lora"}, ("vision_encoder",)),
    "vit-full": ("`vit`, `vision_training: full`", "t5_vision_tuned", {"vision_training": "full"}, ()),
    "diffusion-lora": (
        "`diffusion`, VAE frozen, UNet by LoRA",
        "t5_diffusion",
        {"diffusion": {"vae": "frozen", "unet": "lora"}},
        ("unet",),
    ),
    "diffusion-full": ("`diffusion`, both in full", "t5_diffusion", {"diffusion": {"vae": "full", "unet": "full"}}, ()),
}
"""By name: the title of its row, the model's type, its settings, and the parts beside T5 that get adapters."""


def main() -> None:
    """Measure each kind in each round; print a table."""
    parser = command_line(__doc__)
    parser.add_argument("--shapes", choices=["mini", "sd14"], default="mini")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--rows", type=int, default=8, help="of a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="that count; one before them does not")
    options = parser.parse_args()
    context, found = multiprocessing.get_context("spawn"), {name: [] for name in options.kinds}
    for _ in range(options.rounds):
        for name in options.kinds:
            with ProcessPoolExecutor(1, context) as pool:
                found[name].append(pool.submit(measure, name, options.shapes, options.rows, options.steps).result())
    made = {name: {key: statistics.median(one[key] for one in runs) for key in runs[0]} for name, runs in found.items()}
    where = device() if place_of(options.shapes) == "cuda" else f"one thread, {processor()}"
    lines = [f"| {where} | parameters of vision in the model | trained | seconds a step | CPU seconds a step | peak memory |"]
    lines.append("|---|---|---|---|---|---|")
    for name, one in made.items():
        sizes = f"{one['vision'] / 1e6:.2f} M | {one['trained'] / 1e6:.2f} M"
        costs = f"{one['seconds']:.3f} | {one['cpu_seconds']:.3f} | {one['peak_mb']:,.0f} MB"
        lines.append(f"| {KINDS[name][0]} | {sizes} | {costs} |")
    tell({"device": where, "shapes": options.shapes, "rows": options.rows, "kinds": made}, options.json, lines)


def place_of(shapes: str) -> str:
    """Where a model of these shapes is measured."""
    import torch

    return "cuda" if shapes == "sd14" and torch.cuda.is_available() else "cpu"


def measure(name: str, shapes: str, rows: int, steps: int) -> dict[str, float]:
    """Median time of a step with its backward and its optimiser, and the peak of memory."""
    import torch

    from lora_cot.adapters.lora import attach
    from lora_cot.backbones import FAMILIES, Backbone
    from lora_cot.backbones.diffusion import library
    from lora_cot.recipe.schema import LoraSection

    torch.set_num_threads(1)
    torch.manual_seed(0)
    (_, kind, settings, parts), place = KINDS[name], place_of(shapes)
    library()  # it is imported for all kinds
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    family = FAMILIES[kind]
    model = new_model(kind, settings, shapes)
    for module in family.new_modules(model).values():
        module.float()
    adapters = LoraSection(r=32, lora_alpha=64, parts={part: {} for part in ("language_model", *parts)})
    backbone = attach(Backbone(family, model, None, ""), adapters)
    backbone.model.train()
    inputs = {key: value.to(backbone.device) for key, value in batch_of(model.config, rows).items()}
    labels = inputs.pop("labels")
    trained = [parameter for parameter in backbone.model.parameters() if parameter.requires_grad]
    optimizer, taken = torch.optim.AdamW(trained, lr=1e-5), []
    for _ in range(steps + 1):
        begin, began = now(), time.process_time()
        with torch.autocast(place, torch.bfloat16, enabled=shapes == "sd14"):
            states, further = backbone.base_model.decoded(labels, **inputs)
            logits = backbone.base_model.lm_head(states)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        (loss + sum((further or {}).values()) / rows).backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append((now() - begin, time.process_time() - began))
    seconds, cpu = (statistics.median(column) for column in zip(*taken[1:], strict=True))
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    peak = torch.cuda.max_memory_allocated() if place == "cuda" else grown
    inside = [part for key in ("diffusion", "vision_encoder") if (part := getattr(backbone.base_model.encoder, key, None))]
    extra = ("lora_", "modules_to_save")
    vision = sum(p.numel() for part in inside for key, p in part.named_parameters() if not any(mark in key for mark in extra))
    counts = {"vision": vision, "trained": sum(p.numel() for p in trained)}
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak / 1e6, **counts}


def new_model(kind: str, settings: dict[str, Any], shapes: str) -> Any:
    """A random model of a kind."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from lora_cot.backbones.t5_diffusion import fit_patches

    is_real = shapes == "sd14"
    made = real_shapes() if is_real else mini_shapes()
    encoder, learned = made["encoder"], kind == "t5_diffusion"
    patches = (encoder.image_size // encoder.patch_size) ** 2 + 1
    values = {"vision_features": "vit", "image_width": encoder.hidden_size, "image_patches": patches, **settings}
    if kind == "t5_vision_tuned":
        values["encoder_layout"] = encoder.to_dict()
    if learned:
        values |= {"vision_features": "diffusion", **{f"{part}_config": made[part] for part in ("vae", "unet", "scheduler")}}
        values["diffusion"] = {"image_size": made["side"], "patch": made["patch"], **settings["diffusion"]}
    config = AutoConfig.for_model(kind, **made["t5"], **values)
    if learned:
        fit_patches(config)
    with torch.device(place_of(shapes)):
        return AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16 if is_real else torch.float32)


def mini_shapes() -> dict[str, Any]:
    """The miniature's."""
    from lora_cot.backbones.mini import t5_diffusion, t5_vision

    t5 = t5_vision.t5_values(t5_vision.make_tokenizer(640), 64, 2)
    parts = {"vae": t5_diffusion.vae_config(), "unet": t5_diffusion.unet_config()}
    parts |= {"scheduler": t5_diffusion.scheduler_config(), "encoder": t5_vision.make_vision_encoder().config}
    return {"t5": t5, "side": t5_diffusion.SETTINGS["image_size"], "patch": t5_diffusion.SETTINGS["patch"], **parts}


def real_shapes() -> dict[str, Any]:
    """Those of T5-base, of the ViT of Multimodal-CoT, and of Stable Diffusion 1.4."""
    from transformers import ViTConfig

    from lora_cot.backbones.joined_diffusion import KNOWN

    sizes = {"d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 2048, "num_layers": 12, "vocab_size": 32128}
    t5 = {**sizes, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    return {"t5": t5, "encoder": ViTConfig(**large, image_size=384, patch_size=32), "side": 256, "patch": 2, **KNOWN}


def batch_of(config: Any, rows: int) -> dict[str, Any]:
    """Questions about random images, as a processor gives them to a model of that kind."""
    import torch

    tokens = {name: torch.randint(2, config.vocab_size, (rows, TOKENS)) for name in ("input_ids", "labels")}
    tokens["attention_mask"] = torch.ones_like(tokens["input_ids"])
    if config.model_type == "t5_vision":
        return tokens | {"vision_features": torch.randn(rows, config.image_patches, config.image_width)}
    if config.model_type == "t5_vision_tuned":
        side = config.encoder_layout["image_size"]
        return tokens | {"vision_features": torch.randn(rows, 3, side, side)}
    pixels = (3, config.setting("image_size"), config.setting("image_size"))
    shape = config.latent_shape if config.setting("vae") == "frozen" else pixels
    return tokens | {"vision_features": torch.randn(rows, *shape), "image_seed": torch.arange(rows)}


if __name__ == "__main__":
    main()
