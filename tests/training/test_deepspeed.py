"""Truly DeepSpeed, on two processes without a GPU: every stage trains what plain data parallelism does.

Tolerances, measured on float32 LLaVA over 20 steps: losses of one process, two, ZeRO-2 and ZeRO-3 differ by less than
1e-4 of themselves, weights by less than 1e-4.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lora_cot.data.shapes import make_sample
from tests.conftest import ROOT
from tests.training.test_run import losses, mixed_data

pytestmark = pytest.mark.slow

ENGINE = "DeepSpeedEngine"
NF4 = "quantization.load_in_4bit=true"
TWO_STAGE = (
    "format.name=two_stage",
    "training.hand_on=predicted",
    "search.stages={RATIONALE: {max_new_tokens: 4}, ANSWER: {max_new_tokens: 4}}",
)


def zero(stage):
    """The override that makes a run ZeRO's."""
    return f"training.deepspeed={ROOT / 'ds_configs' / f'zero{stage}.json'}"


@pytest.fixture(scope="module")
def recipe(make_base, tmp_path_factory):
    """Recipe file of a run of a few steps on a tiny base of a kind, over so many rows, every other one with an image."""

    def make(kind, rows=8, images=None):
        folder = tmp_path_factory.mktemp(kind)
        data = mixed_data(folder, rows) if images is None else data_with(folder, rows, images)
        values = {
            "name": "tiny",
            "model": {"base": str(make_base(kind)), "dtype": "float32"},
            "data": data | {"eval": data["train"]},
            "lora": {"r": 4, "lora_alpha": 8},
            "training": {
                "num_train_epochs": 2,
                "per_device_train_batch_size": 2,
                "learning_rate": 1e-2,
                "adam_epsilon": 1e-3,  # else a gradient of nothing but rounding moves a weight as far as any
                "logging_steps": 1,
                "save_strategy": "no",
                "eval_strategy": "epoch",
                "eval_generations": 1,
            },
            "search": {"stages": {n: {"max_new_tokens": 4} for n in ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")}},
        }
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return make


def data_with(folder, rows, images):
    """Rows of which only the first so many have an image."""
    lines = []
    for number in range(rows):
        sample = make_sample(number, "train", 0)
        (folder / f"{number}.png").write_bytes(sample.images[0])
        row = {"id": str(number), "question": sample.last.question, "stages": sample.last.stages}
        lines.append(row | {"image": f"{number}.png"} if number < images else row)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {"train": [{"source": "jsonl", "path": str(folder / "rows.jsonl")}]}


def launch(folder, jobs, timeout=300, ranks=2):
    """Run jobs {name: (recipe, overrides …)} one after another on so many processes; what became of each, by name."""
    path = folder / f"jobs-{ranks}.json"
    path.write_text(json.dumps([[recipe, f"name={name}", *rest] for name, (recipe, *rest) in jobs.items()]))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "tests" / "training" / "sharded_runs.py"), str(path)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    (folder / "stderr").write_text(done.stderr)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(jobs, json.loads(path.with_suffix(".done").read_text()), strict=True)) | {"stderr": done.stderr}


def weights(folder, name, part=""):
    """What a run saved."""
    return load_file(folder / "runs" / name / "adapter" / part / "adapter_model.safetensors")


def assert_same(folder, one, other, part="", atol=1e-4):
    """Two runs saved the same adapter, of which something was learned."""
    ours, theirs = weights(folder, one, part), weights(folder, other, part)
    assert ours.keys() == theirs.keys()
    assert max(tensor.abs().max() for name, tensor in ours.items() if "lora_B" in name) > 1e-3
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-3)


FAMILIES = ("llava", "mllama", "t5_vision")
WEIGHTS = {"float32": (), "bfloat16": ("model.dtype=bfloat16",), "nf4": ("model.dtype=bfloat16", NF4)}
STAGES = {"float32": (1, 2, 3), "bfloat16": (1, 2), "nf4": (1, 3)}
"""ZeRO's stages by kind of weights; the first family has all of each, so that every two of family, weights and stage meet."""
QUIET = ("training.eval_strategy=no", "training.eval_generations=0")


def stages_of(family, kind):
    """Those that are tried."""
    return (1, 2, 3) if family == FAMILIES[0] else STAGES[kind]


@pytest.fixture(scope="module")
def stages(recipe, tmp_path_factory):
    """Stages on every kind of weights of every family: (folder, what became of each, by family, weights and stage).

    Every row has an image, as for `features`: a step of texts leaves Mllama's cross-attention unused.
    """
    folder, jobs = tmp_path_factory.mktemp("stages"), {}
    for family in FAMILIES:
        path = recipe(family, images=8)
        jobs[f"{family}-plain"] = (path, *QUIET)
        for kind, keys in WEIGHTS.items():
            jobs |= {f"{family}-{kind}-{stage}": (path, zero(stage), *QUIET, *keys) for stage in stages_of(family, kind)}
    return folder, launch(folder, jobs, timeout=500)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_stage_is_truly_deepspeed_and_trains_alike(stages, family):
    """The engine and its stage, seen from outside; only ZeRO-3 splits weights; the adapters are those of plain ranks."""
    folder, done = stages
    for kind in WEIGHTS:
        first = losses(folder / "runs" / f"{family}-{kind}-1")
        for stage in stages_of(family, kind):
            found, name = done[f"{family}-{kind}-{stage}"], f"{family}-{kind}-{stage}"
            assert found.get("engines") == [[ENGINE, stage, stage == 3]], found
            assert f"2 processes, DeepSpeed ZeRO-{stage}" in done["stderr"]
            assert losses(folder / "runs" / name) == pytest.approx(first, rel=2e-3)
            assert_same(folder, name, f"{family}-{kind}-1", atol=1e-4 if kind == "float32" else 3e-2)
    assert done[f"{family}-plain"]["engines"][0][0] != ENGINE
    assert_same(folder, f"{family}-float32-3", f"{family}-plain")


def test_what_sees_and_is_trained_in_full_trains_under_zero_2(recipe, tmp_path):
    """VAE and UNet, or a ViT, on two processes: the weights of plain ranks, by the same noise."""
    cases = {"unet": ("t5_diffusion",), "vision_encoder": ("t5_vision", "model.vision_training=full")}
    jobs = {}
    for part, (kind, *keys) in cases.items():
        keys = (recipe(kind, images=8), *keys, "training.eval_strategy=no")
        jobs |= {f"{part}-plain": keys, f"{part}-zero": (*keys, zero(2))}
    done = launch(tmp_path, jobs)
    for part in cases:
        names = [f"{part}-plain", f"{part}-zero"]
        assert done[names[1]]["engines"] == [[ENGINE, 2, False]]
        for key in ("loss", "loss/noise") if part == "unet" else ("loss",):
            found = [losses(tmp_path / "runs" / name, key) for name in names]
            assert len(found[0]) == 4 and found[1] == pytest.approx(found[0], rel=2e-3)
        ours, theirs = (weights(tmp_path, name) for name in names)
        assert any(part in name for name in ours)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-2)


def test_losses_agree_for_twenty_steps(recipe, tmp_path):
    """One process, two, ZeRO-2 and ZeRO-3 with the same global batch: SGD tells a wrong scale, clipping a wrong norm."""
    path = recipe("llava", rows=16)
    steps = ("training.max_steps=20", *QUIET)
    sgd = (*steps, "training.optim=sgd", "training.learning_rate=1", "training.max_grad_norm=0")
    adam = (*steps, "training.optim=adamw_torch", "training.max_grad_norm=0.1")
    halves = ("training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=2")
    jobs = {}
    for name, keys in (("sgd", (*sgd, *halves)), ("adam", adam)):
        jobs |= {f"{name}-two": (path, *keys)}
        jobs |= {f"{name}-{stage}": (path, *keys, zero(stage)) for stage in (2, 3)}
    done = launch(tmp_path, jobs)
    alone = {
        f"{name}-one": (path, *keys, "training.per_device_train_batch_size=4") for name, keys in (("sgd", sgd), ("adam", adam))
    }
    launch(tmp_path, alone, ranks=1)
    for name in ("sgd", "adam"):
        curve = losses(tmp_path / "runs" / f"{name}-one")
        assert len(curve) == 20 and curve[-1] < curve[0] - 0.1
        for other in ("two", "2", "3"):
            if other != "two":
                assert done[f"{name}-{other}"]["engines"] == [[ENGINE, int(other), other == "3"]]
            assert losses(tmp_path / "runs" / f"{name}-{other}") == pytest.approx(curve, rel=1e-4), (name, other)
            assert_same(tmp_path, f"{name}-{other}", f"{name}-one")


UNTRIED = "training.eval_strategy=no"
"""For what is about training alone."""
FEATURES = {
    "dora": ("lora.use_dora=true", UNTRIED),
    "saved": ("lora.modules_to_save=[multi_modal_projector]", NF4, UNTRIED),
    "rates": ("lora.loraplus_lr_ratio=2", "lora.parts={language_model: {learning_rate: 0.01}, vision_encoder: {}}", UNTRIED),
    "rslora": ("lora.use_rslora=true", UNTRIED),
    "best": (
        "training.load_best_model_at_end=true",
        "training.save_strategy=epoch",
        "training.metric_for_best_model=loss",
        "training.num_train_epochs=3",
        "training.greater_is_better=true",  # the first, which is not what training ends with
    ),
}


@pytest.fixture(scope="module")
def features(recipe, tmp_path_factory):
    """(folder, what became of each run) of one launch.

    Every row of most has an image: what a step leaves unused has no gradient on plain ranks and one of zero under ZeRO, so
    that AdamW's momentum carries it on.
    """
    folder, path = tmp_path_factory.mktemp("features"), recipe("llava", images=8)
    jobs = {name: (path, *keys) for name, keys in FEATURES.items()}
    jobs |= {f"{name}-{stage}": (path, *keys, zero(stage)) for name, keys in FEATURES.items() for stage in (2, 3)}
    jobs |= {"plain": (path,), "plain-2_offload": (path, zero("2_offload")), "plain-3_offload": (path, zero("3_offload"))}
    only = {
        "pissa": ("lora.init_lora_weights=pissa",),
        "tokens": ("lora.trainable_token_indices=[3,4]",),
        "int8": ("quantization.load_in_8bit=true",),
        "doraq": (NF4, "lora.use_dora=true"),
    }
    for name, keys in only.items():  # refused under ZeRO-3
        jobs |= {name: (path, UNTRIED, *keys), f"{name}-2": (path, UNTRIED, *keys, zero(2))}
    unused = (  # ZeRO-3 itself would take the gradients of the step before for what a step of texts does not use
        recipe("llava"),
        *QUIET,
        "lora.parts=[language_model,vision_encoder,projector]",
        "training.optim=sgd",
        "training.learning_rate=1",
        "training.max_grad_norm=0",
    )
    jobs |= {"unused": unused} | {f"unused-{stage}": (*unused, zero(stage)) for stage in ("2", "3", "3_offload")}
    jobs |= {"more-3": (path, zero(3), f"model.adapter={folder}/runs/plain/adapter", NF4)}
    for kind in ("llava", "mllama"):
        jobs |= {
            f"{kind}_one-3": (recipe(kind, rows=7, images=1), zero(3)),
            f"{kind}_mixed-3": (recipe(kind, rows=7), zero(3)),
        }
    text = recipe("llava", images=0)
    jobs |= {f"dead-{stage}": (text, zero(stage), "lora.parts=[language_model,vision_encoder]") for stage in (1, 2, 3)}
    return folder, launch(folder, jobs, timeout=400)


def test_what_else_a_recipe_asks_for_works_when_sharded(features):
    """PEFT's methods, parts' learning rates, the best checkpoint, offload, going on; the adapters are those of plain ranks."""
    folder, done = features
    for name in done:
        plain, _, stage = name.partition("-")
        if stage and plain != "dead":
            assert done[name].get("engines") == [[ENGINE, int(stage[0]), stage[0] == "3"]], (name, done[name])
            if plain in done:
                assert_same(folder, name, plain, atol=1e-6 if plain == "unused" else 1e-4)
    evaluated = losses(folder / "runs" / "best", "eval_loss")
    assert evaluated[0] > evaluated[-1] + 1e-2, "the best is the last, which needs no loading"
    assert losses(folder / "runs" / "more-3")[0] < losses(folder / "runs" / "plain")[0] - 0.05


@pytest.mark.parametrize("kind", ["llava", "mllama"])
def test_no_rank_waits_for_an_image_that_another_has(features, kind):
    """One row of seven has an image: one rank would get none. And rows that cannot be shared evenly. Every run ends."""
    folder, done = features
    for rows in ("one", "mixed"):
        assert done[f"{kind}_{rows}-3"].get("engines") == [[ENGINE, 3, True]]
        assert len(losses(folder / "runs" / f"{kind}_{rows}-3")) >= 4


def test_an_adapter_that_does_not_learn_stops_the_run(features):
    """DeepSpeed takes gradients away from where they are looked for; a dead adapter is found all the same."""
    for stage in (1, 2, 3):
        error = features[1][f"dead-{stage}"]["error"]
        assert "trained tensors got no gradient" in error and "vision" in error


def test_both_passes_of_a_split_format_are_sharded(recipe, tmp_path):
    """An engine for each, on one base; the texts between, of which each rank writes a share, are those of plain ranks."""
    paths = {kind: recipe(kind, rows=9) for kind in ("t5_vision", "llava")}
    cases = {"plain": (), "2": (zero(2),), "3": (zero(3),)}
    jobs = {f"{kind}-{case}": (path, *keys, *TWO_STAGE) for kind, path in paths.items() for case, keys in cases.items()}
    jobs["llava-3nf4"] = (paths["llava"], zero(3), NF4, *TWO_STAGE)
    done = launch(tmp_path, jobs)
    assert done["llava-3nf4"].get("engines") == [[ENGINE, 3, True]] * 2, done["llava-3nf4"]
    for kind in paths:
        for case in ("2", "3"):
            found = done[f"{kind}-{case}"]
            assert found.get("engines") == [[ENGINE, int(case), case == "3"]] * 2, found
            texts = [
                (tmp_path / "runs" / f"{kind}-{name}" / "written" / "rationale" / "train.jsonl").read_text()
                for name in ("plain", case)
            ]
            assert texts[0] == texts[1] and texts[0].count("\n") == 9
            for part in ("rationale", "answer"):
                assert_same(tmp_path, f"{kind}-{case}", f"{kind}-plain", part)


def test_accelerate_launches_it_too(recipe, tmp_path):
    """The documented command: the configuration named on the command line, the recipe as it is."""
    options = ["--num_processes", "2", "--use_deepspeed", "--deepspeed_config_file", str(ROOT / "ds_configs" / "zero3.json")]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "--main_process_port", "0"]
    done = subprocess.run(
        [*command, str(ROOT / "train.py"), recipe("llava"), "training.max_steps=2", NF4],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("2 processes, DeepSpeed ZeRO-3, computed in float32") == 1
    assert (tmp_path / "runs" / "tiny" / "adapter" / "adapter_model.safetensors").is_file()
