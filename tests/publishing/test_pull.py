"""MODEL may be a hub id: what was pushed opens as it did here, at any commit, and from the cache without a network."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image

from lora_cot.backbones.loading import load_backbone
from lora_cot.cards.card import write_adapter_card
from lora_cot.cards.facts import Facts
from lora_cot.checkpoints.fingerprints import base_print
from lora_cot.checkpoints.folders import write_recipe
from lora_cot.checkpoints.opening import find_adapter, open_model
from lora_cot.checkpoints.pulling import hub_id, pull
from lora_cot.cli import app
from lora_cot.errors import AccessError, BackboneError, DataError, HubError, RunError
from lora_cot.evaluation.run import evaluate
from lora_cot.merging.merge import merge
from lora_cot.publishing.push import push
from lora_cot.recipe import Recipe
from lora_cot.recipe.model import ModelSection
from tests.publishing.conftest import BASE, SHORT

REPO = "somebody/mine"


@pytest.fixture
def hub(hub, make_base):
    """The hub, with the base there."""
    files = {path.name: path.read_bytes() for path in make_base("llava").iterdir() if path.is_file()}
    hub.put(BASE, files, private=False)
    return hub


def logits(model, adapter="default"):
    backbone = open_model(model).backbone if isinstance(model, str) else model
    network = backbone.model
    if isinstance(network, PeftModel):
        network.set_adapter(adapter)
    with torch.no_grad():
        return network(input_ids=torch.tensor([[5, 6, 7, 8]])).logits


def downloaded(cache, repo=REPO):
    folder = Path(cache) / f"models--{repo.replace('/', '--')}" / "snapshots"
    return {path.relative_to(folder).as_posix().partition("/")[2] for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def cache():
    from huggingface_hub import constants

    return constants


def test_a_pushed_adapter_opens_as_it_did_here(hub, adapter, cache):
    """The same logits; what it is, is said; nothing that can run code is downloaded."""
    report = push(adapter, REPO)
    hub.put(REPO, {"adapter_model.bin": b"pickled", "modeling.py": b"import os", "pytorch_model.bin": b"1"})
    opened = open_model(REPO)
    assert opened.said.startswith(f"adapter {REPO} (commit {hub.repos[REPO].commits[-1][0][:7]}) on {BASE}, float32")
    assert torch.equal(logits(opened.backbone), logits(str(adapter)))
    assert not torch.equal(logits(REPO), logits(BASE))
    assert not [name for name in downloaded(cache.HF_HUB_CACHE) if name.endswith((".bin", ".py", ".md"))]
    first = open_model(f"{REPO}@{report.commit}")
    assert f"commit {report.commit[:7]}" in first.said


@pytest.mark.slow
def test_it_is_measured_by_its_id(hub, adapter):
    """`eval REPO` is `eval` of the folder."""
    push(adapter, REPO)
    here, there = (evaluate(model, "shapes", limit=3).to_json() for model in (str(adapter), REPO))
    assert here["totals"].pop("seconds") > 0 < there["totals"].pop("seconds")
    timed = ("model", "seconds_per_question", "seconds", "said")
    assert {k: v for k, v in here.items() if k not in timed} == {k: v for k, v in there.items() if k not in timed}


def test_a_split_formats_adapters(hub, split):
    """Both open, each by its name."""
    push(split, REPO)
    here, there = open_model(str(split)).backbone, open_model(REPO).backbone
    for name in ("rationale", "answer"):
        assert torch.equal(logits(here, name), logits(there, name))
    assert not torch.equal(logits(there, "rationale"), logits(there, "answer"))


@pytest.mark.slow
def test_a_revision(hub, adapter, made):
    """REPO@COMMIT is what was there then."""
    first = push(adapter, REPO)
    before = logits(REPO)
    shutil.copy(made / "split" / "answer" / "adapter_model.safetensors", adapter)
    config = json.loads((made / "split" / "answer" / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    push(adapter, REPO)
    assert torch.equal(logits(f"{REPO}@{first.commit}"), before) and not torch.equal(logits(REPO), before)
    with pytest.raises(RunError, match="this repository has no revision 'none'"):
        open_model(f"{REPO}@none")
    values = {"name": "next", "model": {"base": BASE, "adapter": REPO}}
    assert base_print(Recipe.model_validate(values)) != base_print(
        Recipe.model_validate({"name": "next", "model": {"base": BASE, "adapter": f"{REPO}@{first.commit}"}})
    )


def test_without_a_network_it_opens_from_the_cache(hub, adapter, monkeypatch, cache):
    """Once downloaded, it needs none; what was not is told."""
    push(adapter, REPO)
    before = logits(REPO)
    hub.put("somebody/other", {"config.json": b"{}"})
    monkeypatch.setattr(cache, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.requests)
    assert torch.equal(logits(REPO), before)
    with pytest.raises(BackboneError, match="neither a folder nor a hub id that can be read"):
        open_model("somebody/other")
    assert len(hub.requests) == asked


def test_half_a_download_is_told_and_gone_on_with(hub, adapter, monkeypatch):
    """A stopped download is no model; the same command again finishes it."""
    push(adapter, REPO)
    hub.fault = lambda method, path, n: 404 if path.startswith("/cdn/") else None
    with pytest.raises(RunError, match=f"{REPO} · not all of its files can be had"):
        find_adapter(REPO)
    hub.fault = lambda *_: None
    assert (find_adapter(REPO) / "adapter_model.safetensors").is_file()


def test_a_merged_model_and_a_split_one(hub, merged, split, tmp_path):
    """A repository with a recipe is opened by it: its format, and one model for each pass."""
    push(merged, "somebody/whole")
    opened = open_model("somebody/whole")
    assert opened.recipe.name == "made" and torch.equal(logits(opened.backbone), logits(str(merged)))
    both = tmp_path / "both"
    for name in ("rationale", "answer"):
        shutil.copytree(merged, both / name, ignore=shutil.ignore_patterns("recipe.yaml"))
    write_recipe(Recipe.model_validate({"name": "two", "model": {"base": BASE}, "format": {"name": "two_stage"}}), both)
    push(both, "somebody/both")
    opened = open_model("somebody/both")
    assert set(opened.backbone.merged) == {"rationale", "answer"} and opened.recipe.name == "two"


def test_a_merged_t5_brings_its_vision_encoder(hub, make_base, tmp_path, cache):
    """One that was a folder here is a folder there."""
    folder = shutil.copytree(make_base("t5_vision"), tmp_path / "merged")
    write_recipe(Recipe.model_validate({"name": "t5", "model": {"base": "mini/t5_vit"}}), folder)
    push(folder, "somebody/t5")
    opened = open_model("somebody/t5").backbone
    assert "vision_encoder/model.safetensors" in downloaded(cache.HF_HUB_CACHE, "somebody/t5")
    here = open_model(str(folder)).backbone
    assert all(torch.equal(a, b) for a, b in zip(opened.model.parameters(), here.model.parameters(), strict=True))
    assert opened.processor.features is not None


def test_a_plain_model_is_transformers_own_affair(hub, make_base, cache):
    """As before, and at a revision too."""
    old = hub.repos[BASE].commits[-1][0]
    hub.put(BASE, {"generation_config.json": b"{}"})
    opened = open_model(f"{BASE}@{old}")
    assert (opened.backbone.base, opened.backbone.revision, opened.recipe.name) == (BASE, old, "base")
    assert torch.equal(logits(opened.backbone), logits(str(make_base("llava"))))


def test_merging_by_its_id(hub, adapter, tmp_path, monkeypatch):
    """The model is written here, under the repository's name."""
    push(adapter, REPO)
    monkeypatch.chdir(tmp_path)
    (report,) = merge(REPO, verify=False).reports
    assert report.folder == "mine-merged"
    assert torch.allclose(logits("mine-merged"), logits(str(adapter)), atol=1e-4)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def without_data(hub, adapter):
    """An adapter in a repository, its card written by us; the data that it was trained on are not there."""
    one = {"name": "four_stage", "steps": 1, "seconds": 1.0, "evaluations": [], "parts": [{"trained": 1}], "history": []}
    data = {"train": [{"source": "jsonl", "path": "/home/me/private/rows.jsonl"}]}
    values = {"name": "made", "model": {"base": BASE, "dtype": "float32"}, "data": data, **SHORT}
    write_recipe(Recipe.model_validate(values), adapter)
    write_adapter_card(adapter, Facts("llava", {"sha256": "0", "used": {}}, [one], "a GPU", 1.0))
    push(adapter, REPO)
    shutil.rmtree(adapter)


def test_every_snippet_of_a_pulled_card_works(without_data, hub, tmp_path, monkeypatch, capsys):
    """In another folder, from the repository alone: asked in Python and as typed, and merged for a server."""
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(REPO, local_dir=tmp_path / "elsewhere"))
    monkeypatch.chdir(folder)
    Image.new("RGB", (56, 56), "red").save("picture.png")
    card = (folder / "README.md").read_text()
    exec(compile(blocks(card, "python")[0], "snippet", "exec"), {"__name__": "snippet"})
    asked, (_, merged, served) = blocks(card, "sh")[0], blocks(card, "sh")[1].splitlines()
    for line in (asked, merged):
        app(shlex.split(line)[1:], standalone_mode=False)
    assert "answer: " in capsys.readouterr().out
    place = Path(shlex.split(served)[2])
    assert place.resolve().parent == tmp_path and torch.allclose(logits(str(place)), logits("."), atol=1e-4)


@pytest.mark.parametrize("name", [REPO, "."])
def test_a_proof_needs_the_data(without_data, hub, tmp_path, monkeypatch, name):
    """Which are not in a repository: said with what to do instead."""
    from huggingface_hub import snapshot_download

    monkeypatch.chdir(snapshot_download(REPO, local_dir=tmp_path / "elsewhere"))
    with pytest.raises(
        DataError, match=r"rows.jsonl(.|\n)*verified on the data of the training.* · .* --onto full --no-verify"
    ):
        merge(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["mini/llava", "./a/b", "/a/b", "a", "a/b/c", "somebody/mi ne", "a--b/c", ""])
def test_what_is_no_hub_id_is_not_looked_for(hub, name):
    """Or finds nothing there."""
    assert pull(name) is None
    assert all(name in path for _, path in hub.requests)


def test_a_folder_comes_before_the_hub(hub, adapter, tmp_path, monkeypatch):
    """Of the same name; an @ in it is only a letter."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(adapter, tmp_path / "somebody" / "mine@1")
    assert hub_id("somebody/mine@1") == ("somebody/mine@1", None)
    assert find_adapter("somebody/mine@1") == Path("somebody/mine@1") and hub.requests == []


def test_no_access(hub, adapter, monkeypatch, tmp_path):
    """A gated one says so; one that is not there, or not for this user, is both; a token that is wrong is none of them."""
    push(adapter, REPO)
    hub.repos[REPO].gated = True
    with pytest.raises(AccessError, match="access to this repository is not granted"):
        open_model(REPO)
    missing = "somebody/none · no such folder, and no such repository on the hub, or a private one that {} "
    missing += "· check the name; for a private one "
    with pytest.raises(RunError, match=missing.format("this token may not read") + "take a token that may read it"):
        merge("somebody/none")
    with pytest.raises(RunError, match="no such repository on the hub"):
        merge("somebody/none@")
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrongwrongwrong0000")
    with pytest.raises(AccessError, match="the hub does not take this token · run `hf auth login`"):
        open_model(BASE)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    hub.repos[REPO].gated = False
    with pytest.raises(RunError, match=missing.replace("none", "mine").format("wants a token") + "run `hf auth login`"):
        open_model(REPO)


def test_a_hub_that_is_down_is_no_missing_model(hub, adapter):
    """It is told as what it is, with exit code 1; what is in the cache opens all the same."""
    for status, remedy in ((500, "try again later"), (429, "try again later"), (400, "check the name")):
        hub.fault = lambda method, path, number, status=status: status
        with pytest.raises(HubError, match=f"{REPO} · the hub answered {status} · {remedy}") as error:
            open_model(REPO)
        assert error.value.exit_code == 1
    hub.fault = lambda method, path, number: 403
    with pytest.raises(AccessError, match="access to this repository is not granted"):
        open_model(REPO)
    hub.fault = lambda *_: None
    push(adapter, REPO)
    before, folder = logits(load_backbone(ModelSection(base=BASE))), pull(REPO)
    hub.fault = lambda method, path, number: 500
    assert pull(REPO) == folder and torch.equal(logits(BASE), before)


def test_a_mistyped_run_is_looked_for_here(hub, adapter, tmp_path, monkeypatch):
    """Where models of ours lie, the next name is meant; a repository of that name is reached by its revision."""
    monkeypatch.chdir(tmp_path)
    for name in ("mini-llava", "other"):
        shutil.copytree(adapter, tmp_path / "runs" / name / "adapter")
    (tmp_path / "runs" / "notes").mkdir()
    asked = len(hub.requests)
    for typed in ("runs/mini-lava", "./runs/mini-lava", str(tmp_path / "runs" / "mini-lava")):
        with pytest.raises(RunError) as error:
            find_adapter(typed)
        told = f"{typed} · no such folder · did you mean 'mini-llava'? allowed: mini-llava, other"
        assert str(error.value).startswith(told) and len(hub.requests) == asked
    assert str(error.value) == told
    with pytest.raises(RunError, match="a repository of the hub is runs/mini-lava@main"):
        open_model("runs/mini-lava")
    with pytest.raises(RunError, match="no such repository on the hub"):
        open_model("runs/mini-lava@main")
    assert len(hub.requests) > asked
    (tmp_path / "somebody" / "notes").mkdir(parents=True)  # a folder that holds nothing of ours hides no repository
    push(adapter, REPO)
    assert find_adapter(REPO)
