"""DPMM-CoT's ablations in miniature: one table, each arm one or two keys of a recipe, over several seeds.

    python benchmarks/dpmm_ablation.py [--arms A …] [--seeds 0 1 …] [--steps N] [--together 2] [--output DIR] [--check]

What every arm starts from, and why that is fair, stands in docs/diffusion.md. What is finished in the output folder is not
done again. Written there: report.json, and report.md with the tables. Intervals are 95 %: over seeds Student's, which tells
of other trainings; over questions the paired bootstrap's, which tells of these.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from dpmm_starts import SIDE, make_starts
from dpmm_table import CAPTIONS, LEARNED, report_of, tables
from measuring import command_line, device, write_report  # beside this file

QUESTIONS = 200
"""Of the test split that each training is measured on; fewer with --check."""
LOOK_AND_ANSWER = [
    {"name": "RATIONALE", "made_of": ["CAPTION"]},
    {"name": "ANSWER", "is_answer": True, "made_of": ["CONCLUSION"]},
]
"""Stages: what is seen, then the answer. A rationale that reasons step by step takes three times the time, none of it for
vision.
"""
DIFFUSION = {"checkpoint": "{starts}/stable", "vae": "full", "unet": "full", "image_size": SIDE, "patch": 4, "steps": 3}
FEATURES = {"diffusion": None, "vision_features": "vit", "vision_encoder": "{starts}/vit"}
ARMS: dict[str, dict[str, Any]] = {
    LEARNED: {},
    "fixed features": FEATURES,
    "fine-tuned features": {**FEATURES, "vision_training": "full"},
    "no noise loss": {"diffusion": {**DIFFUSION, "noise_weight": 0}},
    "text alone": {"diffusion": None, "vision_features": "none"},
    "no cross-attention": {"diffusion": {**DIFFUSION, "cross_attention": False}},
    "frozen VAE": {"diffusion": {**DIFFUSION, "vae": "frozen"}},
    "blank: white": {"diffusion": {**DIFFUSION, "blank": "white"}},
    "scale factor 0.15215": {"diffusion": {**DIFFUSION, "scale_factor": 0.15215}},
    "scale factor 0.20215": {"diffusion": {**DIFFUSION, "scale_factor": 0.20215}},
    "fixed features, taught by labels": {**FEATURES, "vision_encoder": "{starts}/vit-labels"},
    f"{CAPTIONS}{LEARNED}": {},
    f"{CAPTIONS}fixed features": FEATURES,
    f"{CAPTIONS}fine-tuned features": {**FEATURES, "vision_training": "full"},
}
"""What the model section of an arm's recipe says otherwise; those that describe pictures have other rows, too."""
FIRST = set(list(ARMS)[:5])
"""Trained before the others, on all seeds."""
STEPS = (0, 1, 2, 5, 10)
"""Of inference, that the learned arm is measured with beside its own; nothing is trained for them."""


def main() -> None:
    """Train and measure what is missing, a few at once; write the report."""
    parser = command_line(__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="; ".join(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=240, help="of training")
    parser.add_argument("--together", type=int, default=2, help="trainings at once, one thread each")
    parser.add_argument("--output", type=Path, default=Path("runs/dpmm-ablation"))
    parser.add_argument("--check", action="store_true", help="all of it in little, in OUTPUT/check, to see that it works")
    options = parser.parse_args()
    if options.check:
        options.steps, options.seeds, options.output = 2, options.seeds[:2], options.output / "check"
    stdout = os.dup(1)
    os.dup2(2, 1)  # packages write to standard output when they are imported, in each process
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ["LORA_COT_CACHE"] = str((options.output / "cache").resolve())  # what the starts are joined to
    make_starts(options.output / "starts", small=options.check)
    first, rest = ([arm for arm in options.arms if (arm in FIRST) == wanted] for wanted in (True, False))
    jobs = [(arm, seed) for arms in (first, rest) for seed in options.seeds for arm in arms]
    questions = 8 if options.check else QUESTIONS
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.together, context) as pool:
        waiting = [pool.submit(measure, arm, seed, options.steps, questions, options.output) for arm, seed in jobs]
        found = [one.result() for one in waiting]
    report = {"device": device(), "steps": options.steps, "questions": questions, **report_of(found)}
    write_report(report, options.output)
    (options.output / "report.md").write_text("\n".join(tables(report)) + "\n", encoding="utf-8")
    text = json.dumps(report) if options.json else "\n".join(tables(report))
    os.write(stdout, f"{text}\n".encode())


def measure(arm: str, seed: int, steps: int, questions: int, output: Path) -> dict[str, Any]:
    """One training and what it answers, or what is kept of it.

    Args:
        arm: name in `ARMS`.
        seed: of the order, of what is new to the model, and of the scenes it is trained on.
        steps: of training.
        questions: that it is asked.
        output: folder of all.
    """
    import torch

    from lora_cot.checkpoints.opening import open_model
    from lora_cot.recipe.schema import Recipe
    from lora_cot.training.run import train

    torch.set_num_threads(1)
    name = f"{'-'.join(arm.replace(',', '').replace(':', '').split())}-{seed}-{steps}-{questions}"
    kept = output / "measured" / f"{name}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    shutil.rmtree(output / name, ignore_errors=True)
    begin, began = time.perf_counter(), time.process_time()
    run = train(Recipe.model_validate(recipe_of(arm, seed, steps, output) | {"name": name}), output)
    spent = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - began}
    opened = open_model(str(run))
    found = {"arm": arm, "seed": seed, **spent, "parameters": parameters(opened.backbone), "sets": {}}
    for title, samples in sets_of(arm, questions, output).items():
        found["sets"][title] = answered_right(opened, samples)
    if arm == LEARNED:
        (samples, *_) = sets_of(arm, questions, output).values()
        for count in STEPS:
            config = opened.backbone.base_model.encoder.config
            config.diffusion = {**config.diffusion, "steps": count}
            found["sets"][f"{count} steps"] = answered_right(opened, samples)
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(found))
    shutil.rmtree(run)
    share = {title: f"{sum(one['right'].values()) / len(one['right']):.1%}" for title, one in found["sets"].items()}
    print(f"{arm}, seed {seed}: {share} in {spent['seconds']:.0f} s", file=sys.stderr, flush=True)
    return found


def recipe_of(arm: str, seed: int, steps: int, output: Path) -> dict[str, Any]:
    """The recipe of an arm: T5 by LoRA, the fusion in full, VAE and UNet as the arm says."""
    starts = (output / "starts").resolve()
    model = {"base": "{starts}/t5", "dtype": "float32", "vision_features": "diffusion", "diffusion": DIFFUSION, **ARMS[arm]}
    describes = arm.startswith(CAPTIONS)
    rows = [{"source": "shapes", "limit": 4000, "seed": seed}, {"source": "jsonl", "path": "{starts}/text.jsonl"}]
    values = {
        "model": {key: value for key, value in model.items() if value is not None},
        "format": {"name": "direct"} if describes else {"name": "look_and_answer", "stages": LOOK_AND_ANSWER},
        "data": {"train": [{"source": "jsonl", "path": "{starts}/captions.jsonl"}] if describes else rows},
        "lora": {"r": 32, "lora_alpha": 64, "parts": {"language_model": {"learning_rate": 3e-3}}},
        "training": {
            "max_steps": steps,
            "per_device_train_batch_size": 16,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 20,
            "logging_steps": 50,
            "save_strategy": "no",
            "gradient_checkpointing": False,
            "eval_generations": 0,
            "seed": seed,
        },
        "search": {
            "stages": {name: {"max_new_tokens": 32} for name in (["ANSWER"] if describes else ["RATIONALE", "ANSWER"])}
        },
        "evaluation": {"batch_size": 200},
    }
    return json.loads(json.dumps(values).replace("{starts}", str(starts)))


def parameters(backbone: Any) -> dict[str, int]:
    """Of what an image goes through, and of all that was trained."""
    model = backbone.base_model.encoder
    inside = [part for name in ("diffusion", "vision_encoder") if (part := getattr(model, name, None)) is not None]
    adapters = sum(p.numel() for name, p in backbone.model.named_parameters() if "lora_" in name or "modules_to_save" in name)
    copies = sum(p.numel() for part in inside for name, p in part.named_parameters() if "modules_to_save" in name)
    vision = sum(p.numel() for part in inside for p in part.parameters()) - copies
    return {"vision": vision, "trained": adapters}


def sets_of(arm: str, questions: int, output: Path) -> dict[str, list[Any]]:
    """What an arm is measured on, by title: the same for all seeds."""
    from lora_cot.data.jsonl import rows
    from lora_cot.data.shapes import iterate
    from lora_cot.formats import FORMATS
    from lora_cot.recipe.sources import JsonlSource

    def read(name: str) -> list[Any]:
        source = JsonlSource(source="jsonl", path=output / "starts" / f"{name}.jsonl")
        return [row() for _, row in rows(source, FORMATS["direct"])][:questions]

    if arm.startswith(CAPTIONS):
        return {"pictures": read("captions-test")}
    return {"questions": list(iterate("test", questions, 0)), "in words": read("text-test")}


def answered_right(opened: Any, samples: Sequence[Any]) -> dict[str, Any]:
    """Whether each sample was answered as it should be, and how near its text came."""
    from lora_cot.evaluation.answered import answered
    from lora_cot.evaluation.asking import answers
    from lora_cot.evaluation.metrics import rouge_l

    cot_format = opened.recipe.format.build().spelled(opened.family.tag_style)
    right, near, captions = {}, [], []
    for sample, completion in answers(opened, cot_format, samples, opened.recipe.search):
        said, gold = (
            answered(sample, completion).parsed,
            " ".join((sample.last.answer or sample.last.stages["CONCLUSION"]).split()),
        )
        right[sample.id] = int(" ".join((said.answer or "").split()) == gold)
        near.append(rouge_l(gold, said.answer or ""))
        captions.append(sample.meta.get("caption", gold) in " ".join(completion.text.split()))
    return {"right": right, "rouge_l": sum(near) / len(near), "captions": sum(captions) / len(captions)}


if __name__ == "__main__":
    main()
