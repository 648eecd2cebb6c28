"""What others may have of a model depends on its base's licence and on its merge's proof: told before anything is sent."""

import json
import shutil

import pytest

from lora_cot.checkpoints.folders import write_recipe
from lora_cot.cli import app
from lora_cot.errors import RunError
from lora_cot.publishing.push import check_ready, push
from lora_cot.recipe import Recipe

LLAMA = "meta-llama/Llama-3.2-11B-Vision-Instruct"
REPO = "somebody/mine"
NAME = "wants the name of a model made of it to begin with 'Llama'; '{}' does not · name it so, or push without --public"
PROOF = "the merge was not verified · merge again without --no-verify, or push without --public: the card tells it"


def on(folder, base):
    """The adapter, as if trained on another base."""
    write_recipe(Recipe.model_validate({"name": "made", "model": {"base": base, "dtype": "float32"}}), folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    return folder


def verified(folder, value):
    (folder / "merge_report.json").write_text(json.dumps({"base": "somebody/base", "verified": value}))
    return folder


def test_a_name_that_the_licence_forbids(hub, adapter, capsys):
    """Open it is refused, and nothing is asked of the hub; private it is pushed, with a warning before it is sent."""
    on(adapter, LLAMA)
    with pytest.raises(RunError) as error:
        push(adapter, REPO, public=True)
    assert NAME.format(REPO) in str(error.value) and hub.requests == []
    hub.fault = lambda method, path, number: 500
    with pytest.raises(Exception, match="500"):
        push(adapter, REPO)
    assert f"warning: {REPO} · the Llama 3.2 Community License {NAME.format(REPO)}" in capsys.readouterr().err
    hub.fault = lambda *_: None
    report = push(adapter, REPO)
    assert any("'Llama'" in note for note in report.contents.notes)
    push(adapter, "somebody/Llama-mine", public=True)
    assert "warning" not in capsys.readouterr().err.partition("Llama-mine")[2]


def test_an_unproven_merge(hub, merged, capsys):
    """The same: refused where everybody would find it, and a warning else; one that tells nothing is unproven too."""
    for value in (False, None, "yes"):
        with pytest.raises(RunError, match=PROOF):
            push(verified(merged, value), REPO, public=True)
    assert hub.requests == []
    assert push(merged, REPO).new_commit and f"warning: {REPO} · {PROOF}" in capsys.readouterr().err
    push(verified(merged, True), "somebody/proven", public=True)
    assert "warning" not in capsys.readouterr().err


def test_a_split_models_passes_are_all_proven(hub, merged, tmp_path):
    """One that is not is enough."""
    both = tmp_path / "both"
    for name in ("rationale", "answer"):
        shutil.copytree(verified(merged, name == "answer"), both / name, ignore=shutil.ignore_patterns("recipe.yaml"))
    two = {"name": "two", "model": {"base": "somebody/base"}, "format": {"name": "two_stage"}}
    write_recipe(Recipe.model_validate(two), both)
    with pytest.raises(RunError, match=PROOF):
        push(both, REPO, public=True)


def test_a_dry_run_tells_the_refusal(hub, adapter):
    """With that of the hub."""
    hub.put(REPO, {"a": b""}, private=True)
    refused = push(on(adapter, LLAMA), REPO, public=True, dry_run=True).refused
    assert ["'Llama'" in refused[0].what, "the repository is private" in refused[1].what] == [True, True]
    assert push(adapter, REPO, dry_run=True).refused == ()


def test_before_long_work(hub, adapter, capsys):
    """The same of what is only to be made."""
    recipe = Recipe.model_validate({"name": "made", "model": {"base": LLAMA}})
    for kind in ("adapter", "merged"):
        with pytest.raises(RunError, match="'Llama'"):
            check_ready(REPO, True, kind, recipe)
        check_ready(REPO, False, kind, recipe)
        assert "warning: somebody/mine · the Llama 3.2" in capsys.readouterr().err
    with pytest.raises(RunError, match=PROOF):
        check_ready(REPO, True, "merged", None, verified=False)
    local = Recipe.model_validate({"name": "made", "model": {"base": "/models/mine"}})
    check_ready(REPO, True, "merged", local)  # a merged model is opened without its base


def test_before_long_work_as_typed(hub, adapter, tmp_path, monkeypatch):
    """`merge` knows its recipe from the adapter, and `train` has it; --public opens no repository if there is no push."""
    monkeypatch.chdir(tmp_path)
    on(adapter, LLAMA)
    (tmp_path / "llama.yaml").write_text(f"name: run\nmodel: {{base: {LLAMA}}}\ndata: {{train: [{{source: shapes}}]}}\n")
    typed = {
        "'Llama'": (["merge", "adapter"], ["train", "llama.yaml"]),
        "the merge was not verified": (["merge", "adapter", "--no-verify"],),
    }
    for what, lines in typed.items():
        for line in lines:
            with pytest.raises(RunError, match=what):
                app([*line, "--push", REPO, "--public"], standalone_mode=False)
    for line in (["merge", "adapter"], ["train", "llama.yaml"]):
        with pytest.raises(RunError, match=r"--public · there is no push .* · add --push REPO"):
            app([*line, "--public"], standalone_mode=False)
    assert hub.requests == [] and not (tmp_path / "runs").exists()
