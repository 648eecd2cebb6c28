"""A merged model is the adapter's model, and nothing is written unless that was measured."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from lora_cot.errors import MergeError, RunError
from lora_cot.merging import measure
from lora_cot.merging.merge import merge
from lora_cot.training.run import train


@pytest.fixture(scope="module")
def run(tiny_base, tmp_path_factory):
    """One trained run; tests copy what they change."""
    from lora_cot.recipe.schema import Recipe

    values = {
        "name": "run",
        "model": {"base": str(tiny_base), "dtype": "float32"},
        "data": {"train": [{"source": "shapes", "limit": 16}], "eval": [{"source": "shapes", "split": "test", "limit": 6}]},
        "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "lora": {"r": 4, "lora_alpha": 16},
        "training": {"max_steps": 6, "learning_rate": 1e-2, "gradient_checkpointing": False, "save_strategy": "no"},
        "search": {"stages": {name: {"max_new_tokens": 4} for name in ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")}},
    }
    return train(Recipe.model_validate(values), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def merged(run):
    """The run, merged; a format of one pass has one report."""
    (report,) = merge(run, onto="full").reports
    return report


def test_the_report_says_what_was_measured(run, merged):
    """Equal to the adapter on the same weights, different from the base, drifted from the quantised base."""
    assert merged.adapter_vs_merged.max_logit_difference < 1e-5
    assert merged.adapter_vs_merged.top1_agreement == 1.0
    assert merged.adapter_vs_merged.tokens > 100
    assert merged.base_vs_merged.max_logit_difference > 1e-2
    drift = merged.trained_vs_merged
    assert drift.kl > 1e3 * merged.adapter_vs_merged.kl and drift.questions == 6  # reported, and no reason to refuse
    assert drift.max_logit_difference > 10 * merged.adapter_vs_merged.max_logit_difference
    assert json.loads((run / "merged" / "merge_report.json").read_text())["base"] == merged.base


def test_it_reloads_without_us(run, merged):
    """transformers alone loads the folder, with no adapter weight left in it."""
    model = AutoModelForImageTextToText.from_pretrained(merged.folder)
    AutoProcessor.from_pretrained(merged.folder)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert not [path for path in (run).iterdir() if path.name.startswith(".merged")]


def test_a_second_merge_does_not_overwrite(run, merged):
    """The folder that is there stays."""
    with pytest.raises(RunError, match="exists already"):
        merge(run)


def copy_adapter(run, tmp_path, change):
    """The adapter with its weights changed."""
    import shutil

    shutil.copytree(run / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: change(name, tensor) for name, tensor in load_file(file).items()}, file)
    return tmp_path / "adapter"


def nothing_written(tmp_path):
    """Only the adapter is there."""
    return [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_that_is_not_finite_is_refused(run, tmp_path):
    """NaN in the weights is found before anything is written."""
    adapter = copy_adapter(run, tmp_path, lambda name, tensor: torch.full_like(tensor, float("nan")))
    with pytest.raises(MergeError, match="not finite"):
        merge(adapter, onto="full")
    assert nothing_written(tmp_path)


def test_an_adapter_that_changes_nothing_is_refused(run, tmp_path):
    """Zero deltas: the merged model would be the base."""
    adapter = copy_adapter(run, tmp_path, lambda name, t: torch.zeros_like(t) if "lora_B" in name else t)
    with pytest.raises(MergeError, match="the adapter changes nothing"):
        merge(adapter, onto="full")
    assert nothing_written(tmp_path)


def test_a_merge_that_went_wrong_is_refused(run, tmp_path, monkeypatch):
    """Were the merged weights not the adapter's model, no folder would appear."""
    adapter = copy_adapter(run, tmp_path, lambda name, tensor: tensor)
    load = measure.load_backbone

    def spoiled(model, quantization=None):
        backbone = load(model, quantization)
        if model.base != str(run) and "adapter-merged" in model.base:
            with torch.no_grad():
                backbone.model.lm_head.weight.mul_(-1)
        return backbone

    monkeypatch.setattr(measure, "load_backbone", spoiled)
    with pytest.raises(MergeError, match=r"agree on .* of \d+ tokens, and must on 99.9%"):
        merge(adapter, onto="full")
    assert not (tmp_path / "adapter-merged").exists()


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    """What is no run and no adapter cannot be merged."""
    with pytest.raises(RunError, match="no adapter to merge here"):
        merge(tmp_path)


@pytest.mark.parametrize(("here", "wanted"), [(".", "merged"), ("adapter", "adapter-merged")])
def test_where_one_stands(run, tmp_path, monkeypatch, here, wanted):
    """`lora-cot merge .` in a run's folder leaves `merged` in it; in an adapter's, a folder beside it."""
    from typer.testing import CliRunner

    from lora_cot.cli import app

    mine = tmp_path / "run"
    mine.mkdir()
    copy_adapter(run, mine, lambda name, tensor: tensor)
    monkeypatch.chdir(mine / here)
    done = CliRunner().invoke(app, ["merge", ".", "--onto", "full", "--no-verify", "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert (mine / wanted / "merge_report.json").is_file()
    assert sorted(path.name for path in mine.iterdir()) == ["adapter", wanted]
    assert (Path.cwd() / json.loads(done.stdout.splitlines()[-1])["folder"]).resolve() == mine / wanted
