"""Runs whose adapters do not all learn are stopped, and no others."""

import json
from types import SimpleNamespace

import pytest

from lora_cot.data.images import open_image
from lora_cot.data.shapes import make_sample
from lora_cot.errors import TrainingError
from lora_cot.training.callbacks import LIVENESS_STEPS, RunLog
from lora_cot.training.run import train

EVERYWHERE = "lora.parts=[vision_encoder, projector, language_model]"


@pytest.fixture
def rows(tmp_path):
    """The recipe's data section with so many rows without an image, and so many shorter ones with one."""

    def write(without, having):
        lines = []
        for number in range(without + having):
            sample = make_sample(number, "train", 0)
            row = {"id": str(number), "question": sample.last.question, "stages": dict(sample.last.stages)}
            if number < without:
                row["question"] += " Tell me all that you know of it." * 4
            else:
                row["image"] = f"{number}.png"
                open_image(sample.images[0]).save(tmp_path / row["image"])
            lines.append(json.dumps(row) + "\n")
        (tmp_path / "rows.jsonl").write_text("".join(lines))
        return {"train": [{"source": "jsonl", "path": str(tmp_path / "rows.jsonl")}]}

    return write


def entries(folder):
    """The log's entries."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_text_alone_does_not_train_what_sees(make_recipe, tmp_path, rows):
    """Without an image the adapters of vision encoder and projector are dead: the run ends after a few steps, naming them."""
    recipe = make_recipe(tmp_path, EVERYWHERE, "training.max_steps=50", data=rows(16, 0))
    with pytest.raises(TrainingError, match=r"trained tensors got no gradient: .*vision_tower.* · take those layers out of"):
        train(recipe, tmp_path)
    assert [row["step"] for row in entries(tmp_path / "tiny") if "loss" in row] == list(range(1, LIVENESS_STEPS))
    assert not (tmp_path / "tiny" / "adapter").exists()


@pytest.mark.parametrize("base", ["mllama", *(pytest.param(base, marks=pytest.mark.slow) for base in ("llava", "qwen2_vl"))])
def test_batches_without_an_image_are_no_false_alarm(make_recipe, make_base, tmp_path, rows, base):
    """Text may come first: what sees is judged when an image has come, and the run goes to its end."""
    options = (EVERYWHERE, "training.max_steps=6", f"model.base={make_base(base)}")
    folder = train(make_recipe(tmp_path, *options, data=rows(20, 3), quantization=None), tmp_path)
    assert (folder / "adapter" / "adapter_config.json").exists()
    assert max(row["step"] for row in entries(folder)) == 6


def test_what_is_dead_beside_images_is_found_when_one_came(make_recipe, tmp_path, rows, monkeypatch):
    """Waiting for an image is no excuse: once one was seen, adapters that it gave no gradient stop the run."""
    from transformers.models.llava.modeling_llava import LlavaModel

    features = LlavaModel.get_image_features

    def cut(self, *args, **keys):
        found = features(self, *args, **keys)
        found.pooler_output = [image.detach() for image in found.pooler_output]
        return found

    monkeypatch.setattr(LlavaModel, "get_image_features", cut)
    recipe = make_recipe(tmp_path, EVERYWHERE, "training.max_steps=9", data=rows(20, 3), quantization=None)
    with pytest.raises(TrainingError, match=r"trained tensors got no gradient: .*(vision_tower|multi_modal_projector)"):
        train(recipe, tmp_path)
    assert [row["step"] for row in entries(tmp_path / "tiny") if "loss" in row] == [1, 2, 3, 4, 5]


def test_the_text_of_a_mixture_learns_without_what_sees(make_recipe, tmp_path, rows):
    """Adapters in the language model alone need no image: they are judged after the first steps."""
    folder = train(make_recipe(tmp_path, "training.max_steps=4", data=rows(16, 0)), tmp_path)
    assert (folder / "adapter" / "adapter_config.json").exists()


@pytest.mark.parametrize("name", [None, "rationale"])
def test_every_entry_is_a_line(tmp_path, capsys, name):
    """With its step and, of a split format, its pass; people are shown the losses and the time left."""

    class State:
        is_world_process_zero, global_step, max_steps = True, 2, 4

    class Arguments:
        disable_tqdm = True

    log = RunLog(tmp_path / "log.jsonl", name)
    log.on_train_begin(Arguments, State, None)
    log.on_log(Arguments, State, None, {"loss": 1.5, "loss/SUMMARY": 2.0, "grad_norm": 3.0})
    log.on_log(Arguments, State, None, {"eval_accuracy": 0.5})
    log.on_log(Arguments, State, None, None)
    State.is_world_process_zero = False
    log.on_log(Arguments, State, None, {"loss": 9.0})
    mark = {"pass": name} if name else {}
    assert entries(tmp_path) == [
        {**mark, "step": 2, "loss": 1.5, "loss/SUMMARY": 2.0, "grad_norm": 3.0},
        {**mark, "step": 2, "eval_accuracy": 0.5},
    ]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("step 2/4  loss 1.5  loss/SUMMARY 2  (") and first.endswith(" s left)")
    assert "grad_norm" not in first and "eval_accuracy 0.5" in second


def test_the_time_left_counts_only_the_steps_since_the_restart(tmp_path, capsys, monkeypatch):
    """Of a run that goes on at step 900 of 1000 and has taken 10 steps in 20 seconds, 180 seconds are left."""
    state = SimpleNamespace(is_world_process_zero=True, global_step=900, max_steps=1000)
    arguments = SimpleNamespace(disable_tqdm=True)
    clock = iter((0.0, 100.0, 120.0))
    monkeypatch.setattr("lora_cot.training.callbacks.time.perf_counter", lambda: next(clock))
    log = RunLog(tmp_path / "log.jsonl")
    log.on_train_begin(arguments, state, None)
    state.global_step = 910
    log.on_log(arguments, state, None, {"loss": 1.5})
    assert "(180 s left)" in capsys.readouterr().err
