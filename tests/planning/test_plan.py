"""`lora-cot plan`: what it says, to people and to machines, and what it says of input that is wrong."""

import json
import sys

import pytest
import yaml

from lora_cot import cli
from lora_cot.backbones.mini import build
from lora_cot.planning.plan import plan
from lora_cot.recipe.load import load_recipe
from tests.conftest import ROOT

REAL = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "mini")
MINIS = sorted((ROOT / "recipes" / "mini").glob("*.yaml"))


def run(capsys, *arguments):
    """Exit code, standard output and standard error of the command."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as done:
        patch.setattr(sys, "argv", ["lora-cot", "plan", *map(str, arguments)])
        cli.main()
    out, err = capsys.readouterr()
    return done.value.code or 0, out, err


@pytest.fixture
def recipe_file(make_recipe, tmp_path):
    """A recipe's file on the tiny base."""
    make_recipe(tmp_path)
    return tmp_path / "recipe.yaml"


def test_json_is_one_object_and_nothing_else(recipe_file, capsys):
    """Its figures are those of the plan, memory in GB."""
    code, out, _ = run(capsys, recipe_file, "--vram-gb", "24", "--tokens-per-second", "100", "--json")
    found = json.loads(out)
    expected = plan(load_recipe(recipe_file), 24, 100)
    one = expected.estimate
    assert code == 0 and out.count("\n") == 1
    assert (found["fits"], found["device"], found["vram_gb"], found["changes"]) == ("yes", "gpu", 24, [])
    assert (found["low_gb"], found["high_gb"]) == (one.low / 1e9, one.high / 1e9)
    for phase in found["phases"]:
        assert sum(item["gb"] for item in phase["items"]) == pytest.approx(phase["low_gb"])
    assert found["trained_parameters"] == one.made.trained and found["parameters"] == one.made.parameters
    alone = next(share for share in found["zero"] if (share["gpus"], share["stage"]) == (1, "none"))
    training = next(phase for phase in found["phases"] if phase["name"] == "training")
    assert alone["low_gb"] == pytest.approx(training["low_gb"]) and alone["host_gb"] == 0
    assert found["time"]["hours"] == pytest.approx(found["time"]["tokens"] / 100 / 3600)
    assert found["samples"][0]["length"] == one.made.works[0].length


def test_the_table_can_be_read(recipe_file, capsys):
    """Phases, items, the verdict, several GPUs and the time; each figure where its column is."""
    code, out, _ = run(capsys, recipe_file, "training.eval_strategy=steps", "--vram-gb", "24")
    text = out.splitlines()
    assert code == 0 and max(map(len, text[2:-1])) < 130
    starts = ["loading", "training", "evaluating", "answering"]
    phases = [line for line in text if line.split("  ")[0] in starts]
    assert [line.split()[0] for line in phases] == starts
    assert sum("← the fullest" in line for line in phases) == 1
    assert all(float(line[46:55]) < float(line[55:64]) for line in phases)
    assert any("of 24 GB: it fits" in line for line in text) and "serving: " in out
    table = text[text.index(next(line for line in text if line.startswith("GPUs"))) :][:5]
    assert [line.split()[0] for line in table] == ["GPUs", "1", "2", "4", "8"]
    assert text[-1].startswith("time: 4 steps") and "--tokens-per-second" in text[-1]


def test_without_a_card_this_machine_is_planned_for(recipe_file):
    """Here, without a GPU: a process, no verdict, no table of GPUs."""
    found = plan(load_recipe(recipe_file))
    text = "\n".join(found.lines())
    assert not found.estimate.gpu and found.fits is None and not found.shares
    assert "planned for this CPU" in text and "fits" not in text and "process" in text


@pytest.mark.parametrize(
    ("options", "steps", "rows"),
    [
        (["training.max_steps=7"], 7, 4),
        (["training.max_steps=-1", "training.num_train_epochs=2"], 2 * 4, 4),
        (["training.max_steps=-1", "training.num_train_epochs=2", "training.gradient_accumulation_steps=3"], 4, 12),
        (["training.max_steps=-1", "training.num_train_epochs=2.5", "training.per_device_train_batch_size=16"], 3, 16),
        (["training.max_steps=3", "format.name=two_stage", "search.stages={}"], 2 * 3, 4),
    ],
)
def test_time_is_steps_times_tokens(make_recipe, tmp_path, options, steps, rows):
    """Steps as the trainer counts them; tokens of all their samples; hours by a rate that is stated."""
    found = plan(make_recipe(tmp_path, *options), tokens_per_second=50)
    time, works = found.duration, found.estimate.made.works
    assert time.steps == steps
    assert time.tokens == pytest.approx(steps / len(works) * rows * sum(work.mean_length for work in works))
    assert time.hours == pytest.approx(time.tokens / 50 / 3600) and "as stated" in found.lines()[-1]


def test_a_rate_is_that_of_an_earlier_run(make_recipe, tmp_path):
    """The middle one of its log; a stated rate comes first; another run's does not count."""
    history = [{"loss": 1.0, "tokens_per_second": rate} for rate in (5.0, 900.0, 20.0)]
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "report.json").write_text(json.dumps({"passes": [{"history": [*history, {"eval_loss": 1}]}]}))
    recipe = make_recipe(tmp_path)
    found = plan(recipe, root=tmp_path).duration
    assert found.tokens_per_second == 20 and "report.json" in found.said
    assert plan(recipe, tokens_per_second=7, root=tmp_path).duration.tokens_per_second == 7
    other = plan(make_recipe(tmp_path, "name=other"), root=tmp_path).duration
    assert other.tokens_per_second is None and other.hours is None and other.steps == 4


def test_a_torn_report_gives_no_rate(make_recipe, tmp_path):
    """It is named, and the rest is planned."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "report.json").write_text('{"passes": [')
    found = plan(make_recipe(tmp_path), root=tmp_path).duration
    assert found.tokens_per_second is None and "holds no rate" in found.said and found.steps == 4


def test_unreadable_data_is_planned_all_the_same(recipe_file, capsys):
    """With the reason; steps that follow from the rows are not known."""
    values = yaml.safe_load(recipe_file.read_text())
    values["data"] = {"train": [{"source": "jsonl", "path": "nowhere.jsonl"}]}
    values["training"] |= {"max_length": 200, "max_steps": -1}
    recipe_file.write_text(yaml.safe_dump(values))
    code, out, _ = run(capsys, recipe_file, "--vram-gb", "24")
    assert code == 0 and "nowhere.jsonl" in out and "longest sample 200 tokens" in out
    assert "steps not known" in out


def folder_with(tmp_path, files):
    """A folder of files by name."""
    (tmp_path / "base").mkdir(exist_ok=True)
    for name, text in files.items():
        (tmp_path / "base" / name).write_text(text)
    return tmp_path / "base"


CONFIG = ROOT / "lora_cot" / "planning" / "published" / "llava-1.5-7b-hf" / "config.json"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": '{"model_type": "bert"}'}, ["'bert'", "allowed: llava, "]),
        ({"config.json": CONFIG.read_text()}, ["its configuration or its processor cannot be read"]),
        ({}, ["the folder holds no config.json"]),
    ],
    ids=["unknown family", "no tokenizer", "nothing"],
)
def test_a_base_that_cannot_be_planned_is_named(recipe_file, tmp_path, capsys, files, said):
    """With the reason, on standard error, without a traceback; the exit code is that of wrong input."""
    base = folder_with(tmp_path, files)
    code, out, err = run(capsys, recipe_file, f"model.base={base}", "--vram-gb", "24", "--json")
    assert (code, out) == (2, "")
    message = next(line for line in err.splitlines() if line.startswith("error: "))
    assert f"model.base {base}" in message and all(part in message for part in said)


def test_wrong_recipes_and_options_are_refused(recipe_file, capsys):
    """As everywhere else."""
    assert run(capsys, recipe_file, "lora.rr=3")[0] == 2
    assert run(capsys, recipe_file.parent / "none.yaml")[0] == 2
    assert run(capsys, recipe_file, "--vram-gb", "0")[0] == 2
    assert run(capsys, recipe_file, "--tokens-per-second", "-1")[0] == 2


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.stem in ("llava_two_stage", "t5_vit_two_stage") else pytest.mark.slow)
        for path in MINIS
    ],
    ids=lambda path: path.stem,
)
def test_miniatures_are_planned_without_being_taught(path, tmp_path, monkeypatch):
    """Where no base was built yet, none is: planning takes seconds, not minutes."""

    def refuse(*_):
        raise AssertionError("a base is being trained")

    monkeypatch.setenv("LORA_COT_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "teach", refuse)
    found = plan(load_recipe(path, ["data.train.0.limit=20"]))
    assert 0.2e9 < found.estimate.low < 4e9 and found.duration.steps
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("path", REAL, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes_fit_the_card_in_their_name(path, monkeypatch, tmp_path):
    """With what the allocator and the driver may add, wherever the data are."""
    monkeypatch.chdir(tmp_path)
    card = float(path.stem.split("_")[-1].removesuffix("gb"))
    found = plan(load_recipe(path), vram_gb=card)
    assert found.fits == "yes", found.lines()
