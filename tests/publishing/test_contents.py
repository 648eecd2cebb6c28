"""What is pushed of a folder: names on a list, whole, and nothing that others should not see."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file, save_file

from lora_cot.errors import RunError
from lora_cot.publishing.contents import gather
from lora_cot.recipe import Recipe, dump
from tests.merging.conftest import PUBLISHED, rewrite
from tests.publishing.conftest import BASE

SECRET = "hf_" + "a1B2" * 8
RUBBISH = {
    "optimizer.pt": "a training state",
    "rng_state_0.pth": "a training state",
    "scheduler.pt": "a training state",
    "trainer_state.json": "a training state",
    "training_args.bin": "a training state",
    "adapter_model.bin": "it is pickled, which can run code",
    "log.jsonl": "a log or a report of this machine",
    "modeling_mine.py": "code",
    ".env": "hidden",
    "token": "not a file that an adapter is opened with",
    "notes.txt": "not a file that an adapter is opened with",
    "model.safetensors": "not a file that an adapter is opened with",
}


def names(contents):
    return {file.name for file in contents.files}


def text(contents, name):
    (file,) = (file for file in contents.files if file.name == name)
    return (file.content if isinstance(file.content, bytes) else file.content.read_bytes()).decode()


def refusal(folder, token=None):
    with pytest.raises(RunError) as error:
        gather(folder, token)
    return [str(problem) for problem in error.value.problems]


@pytest.fixture
def run(adapter, merged, tmp_path):
    """A run full of everything."""
    folder = tmp_path / "run"
    shutil.copytree(adapter, folder / "adapter")
    shutil.copytree(merged, folder / "merged")
    for place in (folder, folder / "adapter", folder / "checkpoints" / "step-4", folder / "adapter" / "runs"):
        place.mkdir(parents=True, exist_ok=True)
        for name in RUBBISH:
            (place / name).write_text(SECRET)
    (folder / "report.json").write_text(f'{{"token": "{SECRET}"}}')
    (folder / "written").mkdir()
    return folder


def test_the_list_holds_for_a_run_full_of_everything(run, adapter):
    """Only what the adapter is opened with is pushed; all else is named with its reason."""
    contents = gather(run)
    assert (contents.kind, contents.folder) == ("adapter", run / "adapter")
    assert names(contents) == {path.name for path in adapter.iterdir()}
    left = dict(contents.left_out)
    assert {*RUBBISH, "checkpoints/", "merged/", "written/", "report.json", "runs/"} <= set(left)
    assert not any(SECRET in text(contents, name) for name in names(contents) if not name.endswith(".safetensors"))
    assert any(f"name {run / 'merged'}" in note for note in contents.notes)


@pytest.mark.parametrize("name", RUBBISH)
def test_each_has_its_reason(adapter, name):
    """In an adapter's own folder."""
    (adapter / name).write_text(SECRET)
    assert dict(gather(adapter).left_out) == {name: RUBBISH[name]}


def test_a_split_formats_adapters_are_one_repository(split):
    """Each in its folder, the recipe beside them; a missing one is refused."""
    (split / "rationale" / "optimizer.pt").write_text("0")
    contents = gather(split)
    assert {"recipe.yaml", "rationale/adapter_config.json", "answer/adapter_model.safetensors"} <= names(contents)
    assert dict(contents.left_out) == {"rationale/optimizer.pt": "a training state"}
    shutil.rmtree(split / "answer")
    assert refusal(split) == [f"{split} · answer/{name} · this file is missing · make the folder anew" for name in (
        "adapter_config.json", "adapter_model.safetensors")]  # fmt: skip


def test_a_merged_model(merged):
    """Its report loses where it was made; weights that are not its own are left out."""
    shutil.copy(merged / "model.safetensors", merged / "model-00001-of-00002.safetensors")
    contents = gather(merged)
    assert contents.kind == "merged" and {"config.json", "model.safetensors", "merge_report.json"} <= names(contents)
    assert json.loads(text(contents, "merge_report.json")) == {"folder": "kept", "base": BASE}
    assert dict(contents.left_out) == {"model-00001-of-00002.safetensors": "not a file that a merged model is opened with"}
    assert contents.notes == ("merge_report.json: only the last part of the path is pushed of folder",)


def rewrite_recipe(folder, **sections):
    values = Recipe.model_validate({"name": "made", "model": {"base": BASE}, **sections})
    (folder / "recipe.yaml").write_text(dump(values))


def test_paths_of_this_machine_are_not_told(adapter):
    """Of each the file's name is left, in recipe, configurations and card; a recipe of it can still be read."""
    rows = {"source": "jsonl", "path": "client/acme.jsonl", "image_root": "/data/acme/images", "rationales": "../r.jsonl"}
    hub = {"source": "scienceqa", "path": "derek-thomas/ScienceQA"}
    rewrite_recipe(
        adapter,
        model={"base": BASE, "adapter": "/home/me/runs/before/adapter"},
        data={"train": [rows, hub]},
        evaluation={"data": "/data/acme/test"},
        training={"deepspeed": "C:\\Users\\me\\zero2.json"},
    )
    config = json.loads((adapter / "tokenizer_config.json").read_text()) | {"name_or_path": "/home/me/base", "sep": "/"}
    (adapter / "tokenizer_config.json").write_text(json.dumps(config))
    (adapter / "README.md").write_text(f"Trained in {Path.home()}/secret/run-1, see `{Path.cwd()}/runs/a.html`, and /v1.\n")
    contents = gather(adapter)
    recipe = text(contents, "recipe.yaml")
    for private in ("client", "/data", "../", "/home", "Users", "acme/"):
        assert private not in recipe
    for kept in ("acme.jsonl", "derek-thomas/ScienceQA", "zero2.json", BASE):
        assert kept in recipe
    told = json.loads(text(contents, "tokenizer_config.json"))
    assert (told["name_or_path"], told["sep"]) == ("base", "/")
    assert text(contents, "README.md") == "Trained in run-1, see `a.html`, and /v1.\n"
    notes = "\n".join(contents.notes)
    for key in ("data.train.0.path", "data.train.0.image_root", "model.adapter", "evaluation.data", "training.deepspeed"):
        assert key in notes
    assert "data.train.1.path" not in notes and (adapter / "recipe.yaml").read_text().count("/data/acme")


def test_an_adapter_of_the_hub_is_told(adapter):
    """That a model was trained on from there is no secret, and no path."""
    rewrite_recipe(adapter, model={"base": BASE, "adapter": "org/adapter@v1"})
    contents = gather(adapter)
    assert yaml.safe_load(text(contents, "recipe.yaml"))["model"]["adapter"] == "org/adapter@v1" and not contents.notes


def test_what_the_recipe_hides_is_in_no_other_text(adapter):
    """Its paths, and any absolute one, are shortened in every text that goes along, notes in JSON files among them."""
    rewrite_recipe(adapter, data={"train": [{"source": "jsonl", "path": "client/acme.jsonl", "image_root": "/data/acme"}]})
    told = "rows of client/acme.jsonl in /data/acme, made in /scratch/bob/runs/1 and C:\\Users\\bob\\x"
    for name in ("README.md", "LICENSE", "NOTICE.txt", "USE_POLICY.md"):
        (adapter / name).write_text(f"Words.\n{told}\n")
    (adapter / "card.json").write_text(json.dumps({"device": told, "hub": ["org/data"]}))
    contents = gather(adapter)
    wanted = "rows of acme.jsonl in acme, made in 1 and x"
    for name in ("README.md", "LICENSE", "NOTICE.txt", "USE_POLICY.md"):
        assert text(contents, name) == f"Words.\n{wanted}\n"
    assert json.loads(text(contents, "card.json")) == {"device": wanted, "hub": ["org/data"]}
    notes = "\n".join(contents.notes)
    assert all(name in notes for name in ("README.md", "LICENSE", "NOTICE.txt", "card.json"))


def test_a_path_inside_what_the_model_is_run_with_is_refused(adapter):
    """To change a prompt would change the model; file and line are named."""
    stages = [{"name": "A", "cue": "Look in client/rows.jsonl:"}, {"name": "B", "cue": "B:", "is_answer": True}]
    data = {"train": [{"source": "jsonl", "path": "client/rows.jsonl"}]}
    rewrite_recipe(adapter, format={"name": "own", "stages": stages}, data=data)
    with (adapter / "chat_template.jinja").open("a") as file:
        file.write("{# from /scratch/bob/template #}")
    lines = refusal(adapter)
    assert len(lines) == 2 and all("a path of this machine stands here · take it out" in line for line in lines)
    assert "chat_template.jinja line " in lines[0] and "recipe.yaml line " in lines[1] and "client" not in "".join(lines)


def test_what_needs_no_change_is_pushed_as_it_lies(adapter):
    """Byte for byte, by its path."""
    assert all(file.content == adapter / file.name for file in gather(adapter).files)


@pytest.mark.parametrize("name", ["README.md", "recipe.yaml", "adapter_config.json", "chat_template.jinja"])
def test_a_token_is_refused(adapter, name):
    """Wherever it stands, without showing it; this user's own whatever it looks like."""
    with (adapter / name).open("a") as file:
        file.write(f"\n# {SECRET}\n" if not name.endswith(".json") else " ")
    if name.endswith(".json"):
        (adapter / name).write_text(json.dumps(json.loads((adapter / name).read_text()) | {"revision": SECRET}))
    (line,) = refusal(adapter)
    assert "this looks like an access token" in line and name in line and SECRET not in line
    (adapter / name).write_text((adapter / name).read_text().replace(SECRET, "my-own-odd-key"))
    assert "access token" in refusal(adapter, "my-own-odd-key")[0]


def test_a_secret_in_the_recipe_is_refused(adapter):
    """Keys that hold tokens are known by their names."""
    rewrite_recipe(adapter, training={"hub_token": "odd"})
    (line,) = refusal(adapter)
    assert "recipe.yaml · training.hub_token · a secret stands here" in line


@pytest.mark.parametrize(
    ("base", "ok"), [(BASE, True), ("mini/llava", True), ("/models/mine", False), ("./mine", False), ("here/mine", False)]
)
def test_the_base_must_be_there_for_others(adapter, base, ok, tmp_path, monkeypatch):
    """A hub id or a miniature; a folder, also one that is named like a hub id, is refused with what to do."""
    monkeypatch.chdir(tmp_path)
    Path("here/mine").mkdir(parents=True)
    rewrite_recipe(adapter, model={"base": base})
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": base}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    Path("mini/llava").mkdir(parents=True)  # a miniature comes before a folder of its name
    if ok:
        assert f"base: {base}\n" in text(gather(adapter), "recipe.yaml")
        return
    (line,) = refusal(adapter)
    assert line.endswith("'mine' is on this machine only · push the merged model instead, or train on a base of the hub")


def test_where_its_features_come_from_must_be_there_for_others_too(adapter):
    """The checkpoint of diffusion features, as the vision encoder."""
    rewrite_recipe(adapter, model={"base": BASE, "vision_features": "diffusion", "diffusion": {"checkpoint": "/models/mine"}})
    assert "recipe.yaml · model.diffusion.checkpoint · 'mine' is on this machine only" in refusal(adapter)[0]


def test_a_merged_model_of_a_local_base_is_pushed(merged):
    """It is opened without; the recipe keeps the base's name alone."""
    rewrite_recipe(merged, model={"base": "models/acme/mine"})
    (merged / "README.md").write_text("On models/acme/mine.")
    contents = gather(merged)
    assert text(contents, "README.md") == "On mine."
    assert "base: mine\n" in text(contents, "recipe.yaml") and any("model.base" in note for note in contents.notes)


def test_adapter_and_recipe_name_the_same_base(adapter):
    """An adapter of another base is a mistake."""
    rewrite_recipe(adapter, model={"base": "somebody/other"})
    assert "it names another base than recipe.yaml" in refusal(adapter)[0]


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def drop(part):
    def change(path):
        tensors = load_file(path)
        gone = next(name for name in tensors if part in name)
        save_file({name: tensor for name, tensor in tensors.items() if name != gone}, path)

    return change


def drop_layer(path):
    tensors = load_file(path)
    layer = next(name for name in tensors if "lora_A" in name).partition(".lora_A")[0]
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith(layer)}, path)


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("adapter_model.safetensors", cut, "the file is cut off or damaged"),
        ("adapter_model.safetensors", lambda path: path.write_bytes(path.read_bytes() + b"0"), "cut off or damaged"),
        ("adapter_model.safetensors", Path.unlink, "this file is missing"),
        ("adapter_model.safetensors", drop("lora_B"), "1 weights are missing, the other half of "),
        ("adapter_config.json", cut, "it cannot be read"),
        ("tokenizer.json", cut, "it cannot be read"),
        ("tokenizer_config.json", lambda path: path.write_bytes(b"\xff"), "it cannot be read"),
        ("recipe.yaml", Path.unlink, "no recipe.yaml in this folder"),
    ],
)
def test_what_is_torn_is_refused(adapter, name, change, what):
    """Before anything is sent, naming the file."""
    change(adapter / name)
    assert any(what in line and name in line for line in refusal(adapter))


def test_a_layer_that_is_listed_and_missing(adapter):
    """Both halves of a layer are gone, so only the configuration tells."""
    path = adapter / "adapter_config.json"
    layers = [name.removeprefix("base_model.model.").partition(".lora_A")[0]
              for name in load_file(adapter / "adapter_model.safetensors") if "lora_A" in name]  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": layers}))
    gather(adapter)
    drop_layer(adapter / "adapter_model.safetensors")
    assert "1 weights are missing" in refusal(adapter)[0]


def test_a_merged_model_that_is_not_whole(merged, make_base, tmp_path):
    """A shard that is missing or torn, a tensor that no shard holds, an adapter's weight left in it."""
    cut(merged / "model.safetensors")
    assert "cut off or damaged" in refusal(merged)[0]
    folder = rewrite(make_base("llava"), tmp_path / "shards", PUBLISHED["llava"])
    shutil.copy(merged / "recipe.yaml", folder)
    assert len([name for name in names(gather(folder)) if name.startswith("model-")]) == 3
    tensors = load_file(folder / "model-00002-of-00003.safetensors")
    first = next(iter(tensors))
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, folder / "model-00002-of-00003.safetensors")
    assert f"1 tensors of its index are missing, {first} among them" in refusal(folder)[0]
    save_file(tensors | {"a.lora_A.weight": tensors[first]}, folder / "model-00002-of-00003.safetensors")
    assert "a.lora_A.weight is an adapter's weight" in refusal(folder)[0]
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors · this file is missing" in refusal(folder)[0]


def test_links_are_not_followed(adapter, tmp_path):
    """One to somewhere else would push what it points to."""
    (tmp_path / "key").write_text("secret")
    os.symlink(tmp_path / "key", adapter / "LICENSE")
    os.symlink(tmp_path / "key", adapter / "other")
    assert refusal(adapter) == [f"{adapter} · LICENSE · a link is not followed · put the file itself there"]
    (adapter / "LICENSE").unlink()
    assert dict(gather(adapter).left_out) == {"other": "a link"}


@pytest.mark.parametrize("made", ["none", "empty", "unfinished", "base"])
def test_anything_else_is_refused(make_base, tmp_path, made):
    """With what is allowed; a run that is not finished is told from a folder of something else."""
    folder = tmp_path / "it"
    if made == "base":
        folder = make_base("llava")
    elif made != "none":
        folder.mkdir()
    if made == "unfinished":
        (folder / "checkpoints").mkdir()
    expected = {
        "none": "no such folder · name a run, an adapter folder or a merged folder",
        "empty": "there is neither an adapter nor a model in this folder · name a run",
        "unfinished": "this run has no adapter yet · train it to its end",
        "base": "no recipe.yaml in this folder · name a run",
    }
    (line,) = refusal(folder)
    assert expected[made] in line
