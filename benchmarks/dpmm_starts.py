"""What every arm of `dpmm_ablation.py` starts from: made once, each part alone, and none of it for one arm.

A T5 that has learned its language from text and has seen nothing; and encoders that have seen the same pictures as often and
read nothing: a VAE with its UNet (they paint again, and find noise), a ViT that paints again too, and one that was told what
is in each cell, as published ones were.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_cot.backbones.mini import t5_diffusion, t5_vision
from lora_cot.backbones.mini.build import MiniSpec, random_base
from lora_cot.backbones.mini.teaching import Phase, teach
from lora_cot.data import shapes

SIDE = t5_diffusion.SETTINGS["image_size"]
LAST_STEP = 500
TEXT = {"reasoning": 0.6, "bracket_words": 0.4}


def make_starts(folder: Path, small: bool) -> None:
    """Write all of it into a folder, unless it is there. An empty folder is filled.

    Args:
        folder: gets t5, stable, vit and vit-labels, and the rows that all arms are trained on.
        small: hardly taught, to see that all works.
    """
    if folder.is_dir() and any(folder.iterdir()):
        return
    staging = folder.with_name(f".{folder.name}-{os.getpid()}")
    staging.mkdir(parents=True)
    torch.manual_seed(0)
    _write_t5(staging / "t5", 2 if small else 400)
    pixels = t5_diffusion.scenes(150 if small else 2000, SIDE)
    _write_stable(staging / "stable", pixels, *((2, 2) if small else (300, 400)))
    _write_vit(staging / "vit", 2 if small else 400)
    _write_labelled_vit(staging / "vit-labels", 2 if small else 400)
    _write_text(staging, 40 if small else 800)
    _write_captions(staging, 40 if small else 3000)
    staging.rename(folder)


def _write_t5(folder: Path, steps: int) -> None:
    """A plain T5 that has read, and written what it read on its way to an answer."""
    from transformers import T5Config, T5ForConditionalGeneration

    model, processor = random_base(MiniSpec("t5_vision", (), width=64, layers=2))
    teach(model, processor, (Phase(steps, 32, TEXT, 3e-3),), "T5")
    keys = {key: value for key, value in model.config.to_dict().items() if not key.startswith(("vision_", "image_"))}
    plain = T5ForConditionalGeneration(T5Config(**{k: v for k, v in keys.items() if k not in ("model_type", "architectures")}))
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if not name.startswith("encoder.fusion.")})
    plain.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)


def _write_stable(folder: Path, pixels: torch.Tensor, paints: int, cleans: int) -> None:
    """VAE, UNet and schedule in diffusers' layout."""
    import diffusers

    vae = t5_diffusion.teach_to_paint(pixels, paints)
    unet = diffusers.UNet2DConditionModel.from_config(t5_diffusion.unet_config())
    t5_diffusion.teach_to_clean(unet, t5_diffusion.latents_of(vae, pixels), LAST_STEP, cleans)
    vae.save_pretrained(folder / "vae")
    unet.save_pretrained(folder / "unet")
    diffusers.DDIMScheduler(**t5_diffusion.scheduler_config()).save_pretrained(folder / "scheduler")


def _write_vit(folder: Path, steps: int, scenes: int = 2000) -> None:
    """A ViT whose patches paint themselves again, small: as many numbers for a cell as the VAE's latents have."""
    read = t5_vision.make_image_processor()
    images = [t5_vision.labelled_scene(number)[0] for number in range(min(scenes, 100 * steps))]
    pixels = torch.cat([read(images=image, return_tensors="pt")["pixel_values"] for image in images])
    encoder = t5_vision.make_vision_encoder()
    paint = nn.Linear(t5_vision.VISION_WIDTH, 3 * 14 * 14)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *paint.parameters()], lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.2)
    for _ in range(steps):
        given = pixels[torch.randint(0, len(pixels), (32,))]
        painted = paint(encoder(pixel_values=given).last_hidden_state[:, 1:])
        wanted = nn.functional.unfold(nn.functional.avg_pool2d(given, 2), 14, stride=14).transpose(1, 2)
        (painted - wanted).square().mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    encoder.save_pretrained(folder)
    read.save_pretrained(folder)


def _write_labelled_vit(folder: Path, steps: int) -> None:
    processor: Any = t5_vision.make_processor(t5_vision.make_tokenizer(640), "")
    t5_vision.teach_to_see(processor, scenes=min(2000, 100 * steps), steps=steps)
    processor.features.save(folder)
    (folder / "vision_encoder").rename(folder.with_name("kept"))
    folder.rmdir()
    folder.with_name("kept").rename(folder)


def _write_text(folder: Path, count: int) -> None:
    """Questions about scenes that are told in words, without a picture: training rows, and rows to measure on."""
    for name, split, seed, rows in (("text", "train", 7, count), ("text-test", "test", 0, count // 4)):
        lines = []
        for number in range(rows):
            scene, rng = shapes.scene_of(number, split, seed)
            task = shapes.random_task(scene, rng)
            question = f"{scene.caption()} {task.question}"
            lines.append({"id": f"{name} {number}", "question": question, "stages": shapes.stages(scene, task)})
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def _write_captions(folder: Path, count: int) -> None:
    """Pictures to describe."""
    (folder / "pictures").mkdir()
    for name, split, seed, rows in (("captions", "train", 3, count), ("captions-test", "test", 0, count // 10)):
        lines = []
        for number in range(rows):
            scene, rng = shapes.scene_of(number, split, seed)
            image = f"pictures/{split}-{number}.png"
            (folder / image).write_bytes(shapes.draw(scene, rng))
            row = {"id": f"{name} {number}", "question": "Describe the image.", "answer": scene.caption(), "image": image}
            lines.append(row)
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
