"""Every recipe that comes along does what it says, on a tiny base of its family: found by walking the folder."""

import json

import pytest
import yaml

from lora_cot.adapters.lora import target_paths
from lora_cot.backbones.mini.build import MINIS
from lora_cot.checkpoints.layout import pass_folders
from lora_cot.checkpoints.opening import open_model
from lora_cot.data.shapes import make_sample
from lora_cot.evaluation.ask import ask
from lora_cot.formats import FORMATS
from lora_cot.merging.merge import merge
from lora_cot.recipe.load import load_recipe
from lora_cot.training.run import train
from tests import published
from tests.conftest import ROOT
from tests.published import aokvqa_record, problem

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
KINDS = {
    "llama3_2_vision_11b": "mllama",
    "llava_1_5_7b": "llava",
    "llava_onevision_7b": "llava_onevision",
    "qwen2_vl_7b": "qwen2_vl",
    "flan_alpaca_base": "t5_vision",
    "flan_alpaca_large": "t5_vision",
}
"""`model_type` of the base of each folder of recipes."""


def kind_of(path):
    """The `model_type` of a recipe's base."""
    model = yaml.safe_load(path.read_text())["model"]
    base = model["base"]
    if model.get("vision_features") == "diffusion":
        return "t5_diffusion"
    return MINIS[base.removeprefix("mini/")].family if base.startswith("mini/") else KINDS[path.parent.name]


@pytest.fixture(scope="session")
def llava_cot_file(tmp_path_factory):
    """A file in LLaVA-CoT-100k's own form, with images: one row of two exchanges, one without an image."""
    folder = tmp_path_factory.mktemp("llava_cot")
    with (folder / "train.jsonl").open("w") as file:
        for number in range(8):
            sample = make_sample(number, "train", 0)
            written = "".join(text for _, text in FORMATS["four_stage"].write(sample.last.stages))
            turns = [{"from": "human", "value": sample.last.question}, {"from": "gpt", "value": written}]
            row = {"id": str(number), "conversations": turns * (2 if number == 3 else 1)}
            if number != 5:
                row["image"] = f"{number}.png"
                (folder / row["image"]).write_bytes(sample.images[0])
            file.write(json.dumps(row) + "\n")
    return folder / "train.jsonl"


@pytest.fixture(scope="session")
def question_folders(tmp_path_factory):
    """Folders of ScienceQA and A-OKVQA in their original forms, by the name of the source."""
    root, numbers = tmp_path_factory.mktemp("questions"), [str(number) for number in range(6)]
    problems = {number: problem(image="image.png" if int(number) % 2 else None) for number in numbers}
    splits = {"train": numbers[:4], "val": numbers[4:], "test": numbers[4:]}
    records = [aokvqa_record(question_id=f"q{number}") for number in numbers]
    for split in ("train", "val"):
        published.aokvqa(root / "aokvqa", records, split)
    return {"scienceqa": published.scienceqa(root / "scienceqa", problems, splits), "aokvqa": root / "aokvqa"}


def shrunk(path, base, llava_cot_file, question_folders):
    """The recipe on a tiny base, on a few rows, for two steps."""
    values = yaml.safe_load(path.read_text())
    overrides = [f"model.base={base}", "training.max_steps=2", "training.per_device_train_batch_size=2"]
    overrides += ["training.gradient_accumulation_steps=1", "training.eval_steps=1", "training.save_steps=1"]
    overrides += ["training.eval_generations=1", "training.warmup_steps=0"]
    if "checkpoint" in values["model"].get("diffusion", {}):  # the base has its own
        overrides += ["model.diffusion.checkpoint=null", "model.diffusion.image_size=null"]
    overrides += ["data.held_out=2"] if "held_out" in values["data"] else []
    for part in ("train", "eval"):
        for number, source in enumerate(values["data"].get(part, [])):
            overrides += [f"data.{part}.{number}.limit=4"]
            if source["source"] == "llava_cot_100k":
                overrides += [f"data.{part}.{number}.path={llava_cot_file}", f"data.{part}.{number}.limit=8"]
                overrides += [f"data.{part}.{number}.image_root={llava_cot_file.parent}"]
            elif folder := question_folders.get(source["source"]):
                overrides += [f"data.{part}.{number}.path={folder}", f"data.{part}.{number}.image_root=null"]
    stages = [stage.name for stage in load_recipe(path).format.build().stages]
    overrides += [f"search.stages.{stage}.max_new_tokens=4" for stage in stages]
    return load_recipe(path, overrides)


QUICK = ("mini/llava_four_stage",)
"""That of the demo."""


def each_recipe():
    """Every recipe; slow are those that differ from another only in their base, their format or the card they are for."""
    for path in RECIPES:
        name = f"{path.parent.name}/{path.stem}"
        yield pytest.param(path, marks=[] if name in QUICK else [pytest.mark.slow], id=name)


@pytest.mark.parametrize("path", each_recipe())
def test_a_recipe_trains_merges_and_answers(path, make_base, llava_cot_file, question_folders, tmp_path):
    """Two steps, a merged model that is the adapter's, and an answer by the recipe's own strategy."""
    recipe = shrunk(path, make_base(kind_of(path)), llava_cot_file, question_folders)
    run = train(recipe, tmp_path)
    report = json.loads((run / "report.json").read_text())
    assert [one["steps"] for one in report["passes"]] == [2] * len(recipe.format.build().passes)
    assert all(one["adapter_vs_merged"]["top1_agreement"] == 1 for one in map(read_report, merged_folders(run, recipe)))
    image = tmp_path / "scene.png"
    image.write_bytes(make_sample(0, "test", 0).images[0])
    for model in (run, run / "merged"):
        completion = ask(open_model(str(model)), image, "How many shapes are there?")
        assert completion.generated_tokens > 0 and completion.trace


def merged_folders(run, recipe):
    """Where the merged models are."""
    merge(run)
    return pass_folders(run / "merged", recipe).values()


def read_report(folder):
    """What a merge measured."""
    return json.loads((folder / "merge_report.json").read_text())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_names_in_a_recipe_resolve(path, load_tiny):
    """Parts and layers that a recipe adapts exist in its family; no recipe quantises its head."""
    recipe = load_recipe(path)
    assert target_paths(load_tiny(kind_of(path)), recipe.lora)
    assert recipe.quantization is None or "lm_head" in recipe.quantization.skip_parts


def test_every_recipe_is_in_the_list():
    """recipes/README.md has a row for each."""
    text = (ROOT / "recipes" / "README.md").read_text()
    missing = [str(path.relative_to(ROOT / "recipes")) for path in RECIPES]
    assert [name for name in missing if f"`{name}`" not in text] == []
