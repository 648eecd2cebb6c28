"""Recipes: those that come along load, and every mistake in another is named at once, with a remedy."""

import pickle
import re

import pytest
import yaml

from lora_cot import errors
from lora_cot.errors import LoraCotError, Problem, RecipeError
from lora_cot.formats import FORMATS
from lora_cot.recipe import dump, load_recipe, load_saved
from lora_cot.recipe.libraries import OWNED, key_model
from lora_cot.recipe.load import LIBRARY_SECTIONS, change_search
from lora_cot.recipe.schema import NOT_LORA, DataSection, ModelSection, SearchSection
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SMALL = {"name": "small", "model": {"base": "mini/llava"}, "data": {"train": [{"source": "shapes"}]}}


@pytest.fixture
def write(tmp_path):
    """Writes a recipe, given as text or as values, and gives back its path."""

    def write(recipe):
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe), encoding="utf-8")
        return path

    return write


def refusal(path, *overrides):
    """{dotted key: "what · remedy"} of the mistakes in a recipe, each checked to begin with the file's name."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    assert all(problem.where.startswith(str(path)) for problem in caught.value.problems)
    return {p.where.removeprefix(f"{path} · "): f"{p.what} · {p.remedy}" for p in caught.value.problems}


def test_recipes_have_names_of_their_own():
    """There are recipes, and no two would run in the same folder."""
    names = [yaml.safe_load(path.read_text(encoding="utf-8"))["name"] for path in RECIPES]
    assert len(set(names)) == len(RECIPES) > 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_loads(path):
    """A recipe that comes along has no mistakes."""
    assert load_recipe(path).data.train


def test_numbers_reach_the_library_as_numbers(write):
    """YAML reads 2e-3 as text, which SFTConfig would keep as it is: a checked recipe holds the number."""
    recipe = load_recipe(write(SMALL), ["training.learning_rate=2e-3"])
    assert recipe.training.library["learning_rate"] == 0.002


def test_all_mistakes_are_reported_together(write):
    """Mistakes of every kind, in sections of ours and of the libraries, come in one error, each with its remedy."""
    path = write("""
name: a/b
modle: {}
model: {base: mini/llava, dtype: int8}
data: {train: [{source: shapes, limt: 3}]}
lora: {lora_alfa: 3, parts: [vision]}
training: {packing: true, learning_rate: abc, stage_weights: {SUMARY: 2}}
search: {stages: {CAPTION: {candidats: 2}, CONCLUSIONS: {}}}
evaluation: {batch_size: 0}
""")
    expected = {
        "name": "should match pattern",
        "modle": "unknown key · did you mean 'model'? allowed: data, evaluation,",
        "model.dtype": "'auto', 'float32', 'bfloat16' or 'float16' (got 'int8')",
        "data.train.0.limt": "unknown key · did you mean 'limit'? allowed: ",
        "lora.lora_alfa": "unknown key · did you mean 'lora_alpha'? allowed: ",
        "lora.parts.vision": "'vision_encoder', 'projector', 'language_model', 'vae' or 'unet' (got 'vision')",
        "training.packing": "not a recipe's to set: not possible with images · set training.train_sampling",
        "training.learning_rate": "valid number, unable to parse string as a number (got 'abc')",
        "training.stage_weights.SUMARY": "no such stage · did you mean 'SUMMARY'? allowed: CAPTION, CONCLUSION,",
        "search.stages.CAPTION.candidats": "unknown key · did you mean 'candidates'? allowed: candidates, keep",
        "search.stages.CONCLUSIONS": "no such stage · did you mean 'CONCLUSION'? allowed: CAPTION, CONCLUSION,",
        "evaluation.batch_size": "greater than 0 (got 0)",
        "oops": "an override is written key=value · for example",
    }
    found = refusal(path, "oops")
    assert found.keys() == expected.keys()
    assert {key: expected[key] for key in expected if expected[key] not in found[key]} == {}


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        ("a: [", "not YAML"),
        ("", "a recipe is a mapping of sections · allowed: data, evaluation"),
        ("- name: x", "a recipe is a mapping of sections"),
        ("{}", "name · this key is needed"),
        ("name: x", "model · this key is needed"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(write, recipe, match):
    """Text that is not YAML, not a mapping or lacks what is needed is an error that names the file."""
    with pytest.raises(RecipeError, match=match) as caught:
        load_recipe(write(recipe))
    assert "recipe.yaml" in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    """A path that is no file is named, with where to find recipes."""
    with pytest.raises(RecipeError, match=r"none\.yaml · no such recipe file · recipes/README\.md"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("name=other", lambda r: r.name, "other"),
        ("search.strategy=sample", lambda r: r.search.strategy, "sample"),
        ("data.train.0.limit=7", lambda r: r.data.train[0].limit, 7),
        ("data.train.0={source: shapes, limit: 8}", lambda r: r.data.train[0].limit, 8),
        ("lora.parts=[projector]", lambda r: list(r.lora.parts), ["projector"]),
        ("lora.parts={projector: {r: 3}}", lambda r: r.lora.parts["projector"].r, 3),
        ("lora.parts.projector.learning_rate=1e-5", lambda r: r.lora.parts["projector"].learning_rate, 1e-5),
        ("quantization.load_in_4bit=true", lambda r: r.quantization.library["load_in_4bit"], True),
        ("training.run_name=a=b", lambda r: r.training.library["run_name"], "a=b"),
        ("model.revision=", lambda r: r.model.revision, None),
    ],
)
def test_an_override_replaces_one_value(write, override, get, value):
    """Dotted keys reach into sections and lists, and values are YAML."""
    assert get(load_recipe(write(SMALL), [override])) == value


def test_the_last_override_wins(write):
    """Overrides are applied in order."""
    assert load_recipe(write(SMALL), ["name=a", "name=b"]).name == "b"


@pytest.mark.parametrize(
    ("override", "key", "match"),
    [
        ("name", "name", "written key=value"),
        ("=3", "=3", "written key=value"),
        ("name=[", "name", "is not YAML"),
        ("training.max_steps=2024-13-45", "training.max_steps", "2024-13-45"),
        ("name.x=1", "name.x", "'x' is inside a value that holds no keys"),
        ("name.x.y=1", "name.x.y", "'x' is inside a value that holds no keys"),
        ("data.train.9.limit=1", "data.train.9.limit", "'9' is inside a value"),
        ("data.train.-1.limit=1", "data.train.-1.limit", "'-1' is inside a value"),
        ("data.train.².limit=1", "data.train.².limit", "'²' is inside a value"),
        ("data.train.9=1", "data.train.9", "'9' is inside a value"),
        ("a..b=1", "a", "unknown key"),
    ],
)
def test_a_bad_override_is_refused(write, override, key, match):
    """An override that cannot be read or placed is a mistake of the recipe like any other."""
    assert match in refusal(write(SMALL), override)[key]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model=3", "model"),
        ("format=four_stage", "format"),
        ("data.train=3", "data.train"),
        ("training=5", "training"),
        ("training.stage_weights=3", "training.stage_weights"),
        ("search=x", "search"),
        ("search.stages=3", "search.stages"),
        ("search.reward=3", "search.reward"),
        ("quantization=[]", "quantization"),
    ],
)
def test_a_value_in_place_of_a_section_is_refused(write, override, key):
    """Where keys belong, a plain value is one mistake and nothing worse."""
    found = refusal(write(SMALL), override)
    assert found.keys() == {key}
    assert "should be a valid" in found[key]


@pytest.mark.parametrize(
    ("section", "key", "why", "remedy"), [(section, key, *keys[key]) for section, keys in OWNED.items() for key in keys]
)
def test_a_key_of_ours_is_refused_with_its_remedy(write, section, key, why, remedy):
    """A library's key that the project sets itself is refused, saying why, and what to do instead."""
    told = refusal(write(SMALL), f"{section}.{key}=true")[f"{section}.{key}"]
    assert told == f"this key is not a recipe's to set: {why} · {remedy}"


def test_keys_that_a_remedy_names_are_a_recipes():
    """Each can be set: it is one of ours, or of a library's and not refused too."""
    sections = {**LIBRARY_SECTIONS, "model": ModelSection, "data": DataSection}
    for keys in OWNED.values():
        for _, remedy in keys.values():
            for section, key in re.findall(r"\b(model|data|training|lora|quantization)\.(\w+)", remedy):
                fields = sections[section].model_fields
                assert key in fields or key in key_model(section).model_fields, remedy


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("training.learning_rate=abc", "valid number"),
        ("training.max_steps=many", "valid integer"),
        ("training.learning_rate={}", "valid number"),
        ("training.leraning_rate=1", "did you mean 'learning_rate'?"),
        ("training.stage_weight={}", "did you mean 'stage_weights'?"),
        ("lora.r=x", "valid integer"),
        ("lora.lora_dropuot=0.1", "did you mean 'lora_dropout'?"),
        ("quantization.load_in_4bit=maybe", "valid boolean"),
        ("quantization.load_in_4bits=true", "did you mean 'load_in_4bit'?"),
    ],
)
def test_keys_of_the_libraries_are_checked(write, override, match):
    """Names and types of passed-through keys are those of the installed library's class."""
    assert match in refusal(write(SMALL), override)[override.split("=")[0]]


def test_keys_of_another_source_are_not_offered(write):
    """The keys allowed in a source are that source's own."""
    assert "path" not in refusal(write(SMALL), "data.train.0.path=x")["data.train.0.path"]


@pytest.mark.parametrize("key", ["training.stage_weights.CAPTION=1", "search.stages.CAPTION.candidates=2"])
def test_named_stages_are_those_of_the_format(write, key):
    """A stage named in training or search is looked up in the recipe's format, built-in or declared."""
    own = "format={name: own, stages: [{name: CAPTIONS}, {name: B, is_answer: true}]}"
    load_recipe(write(SMALL), [key])
    for chosen, allowed in (("format.name=direct", "allowed: ANSWER"), (own, "did you mean 'CAPTIONS'? allowed: B, C")):
        found = refusal(write(SMALL), key, chosen)
        assert [allowed in text for text in found.values()] == [True]


@pytest.mark.parametrize(
    ("override", "key", "match"),
    [
        ("format.name=four_stages", "format.name", "no format 'four_stages' · did you mean 'four_stage'? allowed: "),
        ("format.stages=[]", "format.stages", "no stages"),
        ("format.stages=[{name: A}]", "format.stages", "exactly one stage must be the answer"),
        ("format={name: own, split: true, stages: [{name: A, is_answer: true}]}", "format.stages", "split format needs a cue"),
        ("format.stages=[{name: A, is_answr: true}]", "format.stages.0.is_answr", "did you mean 'is_answer'?"),
    ],
)
def test_a_format_that_does_not_exist_is_refused(write, override, key, match):
    """An unknown format, and declared stages that contradict themselves, are mistakes of the recipe."""
    assert match in refusal(write(SMALL), override)[key]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.adapter=runs/a", "quantization.load_in_4bit=true", "versions.torch=2.13.0"],
        ["data.eval=[{source: jsonl, path: rows.jsonl}, {source: messages, path: a/b, split: test, weight: 0.5}]"],
        ["format={name: own, stages: [{name: é, is_answer: true}]}", "training.stage_weights.é=2"],
        ["training.max_length=null"],
        ["lora.parts={projector: {r: 2, learning_rate: 1e-5}}", "lora.init_lora_weights=pissa_niter_4", "lora.use_dora=true"],
        ["format={name: own, split: true, stages: [{name: A, cue: 'A:'}, {name: B, cue: 'B:', is_answer: true}]}"],
    ],
)
def test_a_dumped_recipe_is_the_same_recipe(write, tmp_path, overrides):
    """What a run writes next to its weights reads back equal, keys set to null included."""
    recipe = load_recipe(write(SMALL), overrides)
    saved = tmp_path / "saved.yaml"
    saved.write_text(dump(recipe), encoding="utf-8")
    assert load_saved(saved) == recipe


def test_a_saved_recipe_is_not_held_against_the_libraries(write):
    """A run's own recipe loads after a library has dropped a key, and still has to be a recipe."""
    assert load_saved(write(SMALL | {"training": {"gone": 1}})).training.library == {"gone": 1}
    with pytest.raises(RecipeError, match=r"recipe\.yaml · name · this key is needed"):
        load_saved(write({"model": {"base": "x"}}))


@pytest.mark.parametrize("kind", [LoraCotError, *LoraCotError.__subclasses__()])
def test_errors_travel_between_processes(kind):
    """An error raised in a data worker arrives with its class, text and problems."""
    error = kind([Problem("row 3", "no answer", "give it one"), Problem("", "no image")])
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is kind
    assert str(arrived) == str(error) == "row 3 · no answer · give it one\nno image"
    assert arrived.problems == error.problems


def test_every_error_is_one_of_ours_and_a_built_in():
    """Errors are caught by the project's root and by the built-in type a caller expects; bad input exits with 2."""
    assert issubclass(errors.RecipeError, ValueError)
    assert issubclass(errors.RunError, RuntimeError)
    assert (errors.DataError.exit_code, errors.TrainingError.exit_code) == (2, 1)
    assert all(issubclass(kind, ValueError | RuntimeError) for kind in LoraCotError.__subclasses__())


@pytest.mark.parametrize(
    "override",
    [
        "lora.r=0",
        "lora.lora_dropout=7",
        "lora.parts=[]",
        "lora.parts={projector: {r: 0}}",
        "lora.parts={projector: {learning_rate: .inf}}",
        "lora.loraplus_lr_ratio=0",
        "lora.init_lora_weights=pissa_niter_x",
        "lora.eva_config={}",
        "lora.task_type=CAUSAL_LM",
        "quantization.bnb_4bit_quant_type=nf5",
        "training.loss_type=dft",
        "training.pad_to_multiple_of=8",
    ],
)
def test_values_that_would_train_another_model_are_refused(override):
    """Values out of range, initialisations that rewrite the base, and keys that our loss ignores."""
    with pytest.raises(RecipeError, match=re.escape(override.split("=")[0])):
        load_recipe(ROOT / "recipes/mini/llava_four_stage.yaml", [override])


@pytest.mark.parametrize("name", FORMATS)
def test_a_built_in_format_is_split_or_not(write, name):
    """`split` says something of declared stages alone, and is not taken in silence elsewhere."""
    found = refusal(write(SMALL), f"format={{name: {name}, split: true}}")
    assert "split belongs to stages declared here" in found["format"]


@pytest.mark.parametrize(
    ("value", "rewrites"),
    [("true", False), ("false", False), ("gaussian", False), ("pissa", True), ("pissa_niter_4", True), ("olora", True)],
)
def test_initialisations_that_can_be_undone_are_allowed(write, value, rewrites):
    """Those that change the base's weights are known as such."""
    recipe = load_recipe(write(SMALL), [f"lora.init_lora_weights={value}"])
    assert recipe.lora.rewrites_base == rewrites
    assert str(recipe.lora.library["init_lora_weights"]).lower() == value


@pytest.mark.parametrize("value", NOT_LORA)
def test_initialisations_that_cannot_are_refused_with_the_reason(write, value):
    """What needs the data, or another base, is refused saying so."""
    found = refusal(write(SMALL), f"lora.init_lora_weights={value}")
    assert f"{value} is not possible: {NOT_LORA[value]}; allowed: true, false, gaussian" in found["lora.init_lora_weights"]


def test_parts_are_a_list_or_a_mapping(write):
    """A list of parts is a mapping without settings of their own, and both are written the same way."""
    listed, mapped = (
        load_recipe(write(SMALL), [f"lora.parts={parts}"])
        for parts in ("[projector, language_model]", "{projector: {}, language_model: {}}")
    )
    assert listed == mapped
    assert dump(listed) == dump(mapped)


@pytest.mark.parametrize(
    ("parts", "key", "match"),
    [
        ("[vision]", "lora.parts.vision", "'vision_encoder', 'projector', 'language_model', 'vae' or 'unet' (got 'vision')"),
        ("[lm_head]", "lora.parts.lm_head", "'vision_encoder', 'projector', 'language_model', 'vae' or 'unet'"),
        ("{vision: {}}", "lora.parts.vision", "'vision_encoder', 'projector', 'language_model', 'vae' or 'unet'"),
        ("{projector: {rank: 3}}", "lora.parts.projector.rank", "unknown key · "),
        ("{projector: {r: x}}", "lora.parts.projector.r", "valid integer"),
        ("{projector: 3}", "lora.parts.projector", "should be a valid dictionary"),
        ("projector", "lora.parts", "should be a valid dictionary"),
        ("[]", "lora.parts", "an adapter must go somewhere"),
    ],
)
def test_a_wrong_part_is_named(write, parts, key, match):
    """The error leads to the part and to the setting that is wrong."""
    assert match in refusal(write(SMALL), f"lora.parts={parts}")[key]


@pytest.mark.parametrize("text", ["no", "off", "on", "yes"])
def test_words_are_texts(text):
    """`eval_strategy: no` is a text in the libraries; switches of ours take on and off as well."""
    recipe = load_recipe(
        ROOT / "recipes/mini/llava_four_stage.yaml", [f"search.judge_adapter={text}", "training.eval_strategy=no"]
    )
    assert recipe.training.library["eval_strategy"] == "no"
    assert recipe.search.judge_adapter == (text in ("on", "yes"))


@pytest.mark.parametrize("name", ["selfjudge", "os.system", "a b:c", ":c", "a:b:c"])
def test_a_scorer_is_one_of_ours_or_a_function(name):
    """Anything else is refused in one line, with the nearest name."""
    with pytest.raises(RecipeError, match=r"search\.scorer · .*no scorer '.*allowed: logprob, reward, self_judge, or package"):
        load_recipe(ROOT / "recipes/mini/llava_four_stage.yaml", [f"search.scorer='{name}'"])
    assert load_recipe(ROOT / "recipes/mini/llava_four_stage.yaml", ["search.scorer=a.b:c"]).search.scorer == "a.b:c"


SEARCHES = {
    "no server": ("scorer: reward", "search.reward.url", "has no server · name its address"),
    "no cutoff": (
        "{strategy: swires, swires: {mean: 1}}",
        "search.swires",
        "what lora_cot.calibrate measures",
    ),
    "no score": (
        "{strategy: swires, faithful: true, scorer: self_judge}",
        "search.scorer",
        "gives no score · use logprob",
    ),
}


@pytest.mark.parametrize(("search", "key", "told"), SEARCHES.values(), ids=SEARCHES)
def test_a_search_that_is_not_defined_is_refused(write, search, key, told):
    """With its key, before a model is trained for it."""
    found = refusal(write({**SMALL, "search": yaml.safe_load(search)}))
    assert found.keys() == {key} and re.search(told.replace(" · ", ".* · "), found[key])


@pytest.mark.parametrize(
    "model",
    [{"base": "mini/t5_vit"}, {"base": "x/y", "vision_features": "vit"}, {"base": "x/y", "vision_features": "none"}],
)
def test_a_recipe_of_an_encoder_decoder_has_no_judge(write, model):
    """As far as the recipe tells what the base is."""
    recipe = {**SMALL, "search": {"scorer": "self_judge"}}
    found = refusal(write({**recipe, "model": model}))
    assert found == {
        "search.scorer": "an encoder-decoder answers nothing but what it was trained on: it cannot judge · use "
        "logprob or reward"
    }
    assert load_recipe(write(recipe)).search.scorer == "self_judge"


def test_candidates_go_for_every_stage():
    """A number given over a recipe's is meant for all of its search; other settings of its stages stay."""
    section = SearchSection(strategy="stage_beam", candidates=4, stages={"CAPTION": {"candidates": 9, "max_new_tokens": 7}})
    assert change_search(section, {"seed": 1}).stages["CAPTION"].candidates == 9 == section.most_candidates
    changed = change_search(section, {"candidates": 1})
    assert changed.most_candidates == 1 and changed.stages["CAPTION"].max_new_tokens == 7
    own = change_search(section, {"candidates": 1, "stages.CAPTION.candidates": 2})
    assert own.stages["CAPTION"].candidates == 2


def test_a_stages_budget_is_the_recipes_or_the_formats_own():
    """Where the recipe names the stage for another reason, too."""
    search = SearchSection.model_validate({"stages": {"SUMMARY": {"max_new_tokens": 7}, "CAPTION": {"keep": 1}}})
    summary, caption, *_ = FORMATS["four_stage"].stages
    assert (search.budget(summary), search.budget(caption)) == (7, caption.max_new_tokens)
