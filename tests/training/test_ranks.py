"""Two processes train what one does: the same steps, losses and weights, with rows of every kind in the data."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.training.test_run import losses, mixed_data

pytestmark = pytest.mark.slow


def launch(folder, recipe, ranks, *overrides, script="train.py"):
    """Run train.py, or what stands for it, on so many processes; returns the run's folder."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    name = f"ranks-{ranks}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(ROOT / script), str(path), f"name={name}", *overrides],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "runs" / name


@pytest.fixture
def recipe(make_base, tmp_path):
    """A run over rows with and without images, on a tiny base of a kind, evaluated at its end."""

    def make(kind, rows):
        data = mixed_data(tmp_path, rows)
        return {
            "name": "ranks",
            "model": {"base": str(make_base(kind)), "dtype": "float32"},
            "data": data | {"eval": data["train"]},
            "quantization": {"load_in_4bit": True},
            "lora": {"r": 4, "lora_alpha": 8},
            "training": {
                "num_train_epochs": 2,
                "learning_rate": 1,
                "optim": "sgd",
                "max_grad_norm": 0,
                "logging_steps": 1,
                "save_strategy": "no",
                "eval_strategy": "epoch",
                "eval_generations": 2,
            },
            "search": {"stages": {n: {"max_new_tokens": 8} for n in ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")}},
        }

    return make


@pytest.mark.parametrize("kind", ["llava", "t5_vision"])
def test_two_processes_train_as_one(recipe, tmp_path, kind):
    """Two ranks with batches of two are one with batches of four, in training and evaluation."""
    runs = []
    for ranks, size in ((1, 4), (2, 2)):
        sizes = [f"training.per_device_{what}_batch_size={size}" for what in ("train", "eval")]
        runs.append(launch(tmp_path, recipe(kind, 16), ranks, *sizes))
    one, two = ((losses(run), losses(run, "eval_loss"), losses(run, "eval_loss/REASONING")) for run in runs)
    assert len(one[0]) == 8 and len(one[1]) == 2
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert one[0][-1] != pytest.approx(one[0][0], rel=1e-2), "nothing was learned that could differ"
    weights = [load_file(run / "adapter" / "adapter_model.safetensors") for run in runs]
    torch.testing.assert_close(weights[1], weights[0], atol=1e-4, rtol=1e-2)


def test_a_loss_that_a_model_adds_is_that_of_all_ranks(recipe, tmp_path):
    """The noise loss of two ranks is one's, over the images of both, where other steps have none."""
    runs = []
    keys = ("training.learning_rate=1e-2", "training.eval_strategy=no", "model.diffusion.unet=full")
    for ranks, size in ((1, 4), (2, 2)):
        sizes = (f"training.per_device_train_batch_size={size}", *keys)
        runs.append(launch(tmp_path, recipe("t5_diffusion", 16), ranks, *sizes, script="tests/training/drawn.py"))
    one, two = (losses(run, "loss/noise") for run in runs)
    assert len(one) == 4 and one == pytest.approx(two, rel=1e-3)
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-3) and len(losses(runs[0])) == 8
    weights = [load_file(run / "adapter" / "adapter_model.safetensors") for run in runs]
    torch.testing.assert_close(weights[1], weights[0], atol=1e-4, rtol=1e-2)


def test_two_processes_hand_on_what_they_wrote_together(recipe, tmp_path):
    """Each rank writes a share of a split format's texts; both passes are trained, and the texts are one process's."""
    written = []
    short = [
        "format.name=two_stage",
        "training.hand_on=predicted",
        "training.max_steps=2",
        "search.stages={RATIONALE: {max_new_tokens: 4}, ANSWER: {max_new_tokens: 4}}",
    ]
    for ranks in (1, 2):
        size = f"training.per_device_train_batch_size={4 // ranks}"
        run = launch(
            tmp_path, recipe("t5_vision", 9), ranks, size, *short, "training.hand_on=predicted", "training.max_steps=2"
        )
        folder = run / "written" / "rationale"
        rows = {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.iterdir()}
        assert rows.keys() == {"train.jsonl", "eval.jsonl"}
        written.append({name: [row["id"] for row in found] for name, found in rows.items()})
        assert (run / "adapter" / "answer" / "adapter_model.safetensors").is_file()
    assert written[0] == written[1] and len(written[0]["train.jsonl"]) == 9


def test_ranks_that_cannot_share_evenly_do_not_wait(recipe, tmp_path):
    """Seven rows, four of them with an image, on two ranks: every rank computes as often, and the run ends."""
    run = launch(tmp_path, recipe("mllama", 7), 2, "training.per_device_train_batch_size=2")
    report = json.loads((run / "report.json").read_text())
    assert report["passes"][0]["steps"] == 4 and len(losses(run)) == 4
