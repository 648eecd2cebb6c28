"""Several adapters on one base that is loaded once: a request's name decides which one answers, whoever asks beside."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from lora_cot.checkpoints.opening import open_model
from lora_cot.engines.local import LocalEngine
from lora_cot.errors import RunError, SearchError
from lora_cot.formats import FORMATS
from lora_cot.recipe.load import dump
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.run import answer, prepare
from lora_cot.serving.app import make_app
from lora_cot.serving.limits import Limits
from lora_cot.serving.opening import open_models
from lora_cot.serving.service import Service
from lora_cot.types import Exchange, Sample
from tests.merging.conftest import make_adapter
from tests.serving.conftest import chat

SHORT = {"stages": {name: {"max_new_tokens": 6} for name in ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")}}


@pytest.fixture
def folders(make_recipe, tiny_base, tmp_path):
    """Two adapters of one base, and one of two stages."""
    made = {}
    for number, name in enumerate(("first", "second", "pair")):
        keys = {"format": {"name": "two_stage"}, "search": {}} if name == "pair" else {"search": SHORT}
        (tmp_path / name).mkdir()
        recipe = make_recipe(tmp_path / name, quantization=None, **keys)
        for part in ("rationale", "answer") if name == "pair" else ("",):
            folder = tmp_path / name / "adapter" / part
            make_adapter(tiny_base, folder, target_modules=["q_proj", "v_proj"], r=4 + 2 * number + len(part))
        (tmp_path / name / "adapter" / "recipe.yaml").write_text(dump(recipe))
        made[name] = str(tmp_path / name)
    return made


def alone(model):
    """What a model answers by itself, with nothing else loaded."""
    opened = open_model(model)
    cot_format = opened.recipe.format.build()
    config = opened.recipe.search.model_copy(update={"max_search_tokens": 24})
    (found,) = answer(LocalEngine(opened.backbone, cot_format), cot_format, [Sample("a", (Exchange("What is it?"),))], config)
    return found.text


@pytest.mark.parametrize("base_first", [True, False], ids=["beside the base", "beside an adapter"])
def test_each_name_answers_as_it_does_alone(folders, tiny_base, scheduler, base_first, capsys):
    """Adapters, a two-stage run and the bare base, asked for at once."""
    model = str(tiny_base) if base_first else folders["first"]
    names = {"first": "a.b", "second": "a-b"}  # PEFT takes no dot
    others = {names.get(name, name): path for name, path in folders.items() if path != model}
    models = open_models(open_model(model), "main", others, None, scheduler, 0.25)
    assert scheduler.kv_bytes == 2**28 and "0.25 GiB" in capsys.readouterr().err
    assert [served.name for served in models] == ["main", *others]
    for served in models:  # what fails in one is refused in that one
        assert {
            one.engine.local.reader for one in prepare(served.engine(None), served.cot_format, served.search)
        } <= served.readers
        assert not any(served.readers & other.readers for other in models if other is not served)
    expected = {"main": alone(model)} | {name: alone(path) for name, path in others.items()}
    assert len(set(expected.values())) == len(expected)
    with TestClient(make_app(Service(models, Limits(), scheduler))) as client, ThreadPoolExecutor(8) as pool:

        def ask(name):
            body = chat(model=name, include_reasoning=False, search={"max_tokens": 24})
            return client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]

        names = [*expected] * 3
        assert list(pool.map(ask, names)) == [expected[name] for name in names]


def test_what_cannot_be_beside_is_refused(folders, tiny_base, make_recipe, scheduler, tmp_path):
    """A name twice, no adapter, another base."""
    for adapters, told in (({"main": folders["first"]}, "two models"), ({"x": str(tiny_base)}, "holds no adapter")):
        with pytest.raises(RunError, match=told):
            open_models(open_model(folders["second"]), "main", adapters, None, scheduler)
    other = tmp_path / "other" / "adapter"
    other.mkdir(parents=True)
    (other / "adapter_config.json").write_text(json.dumps({}))
    (other / "recipe.yaml").write_text(dump(make_recipe(tmp_path, "model.base=mini/llava")))
    with pytest.raises(RunError, match="was trained on"):
        open_models(open_model(folders["second"]), "main", {"x": str(tmp_path / "other")}, None, scheduler)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"layers": [99]}, r"search\.interleave\.layers · the model has \d+ layers"),
        ({"selector": "os:remove"}, "no installed package declares 'os:remove'"),
    ],
)
def test_a_search_that_a_model_cannot_do_is_refused_at_the_start(make_recipe, tiny_base, scheduler, tmp_path, how, told):
    """And not to each client: layers that it has not, a selector that is not there; of a model beside the first one too."""
    paths = {}
    for name, search in (("good", SHORT), ("bad", {**SHORT, "interleave": how})):
        (tmp_path / name).mkdir()
        make_adapter(tiny_base, tmp_path / name / "adapter", target_modules=["q_proj"], r=4)
        recipe = make_recipe(tmp_path / name, quantization=None, search=search)
        (tmp_path / name / "adapter" / "recipe.yaml").write_text(dump(recipe))
        paths[name] = str(tmp_path / name)
    for model, others in ((paths["bad"], {}), (paths["good"], {"bad": paths["bad"]})):
        with pytest.raises(SearchError, match=rf"^bad · .*{told}"):
            open_models(open_model(model), None if others else "bad", others, None, scheduler, 0.1)


def test_a_model_whose_images_cannot_be_shown_again_is_refused_at_the_start(load_tiny):
    """Such as Llama-3.2-Vision."""
    from lora_cot.serving.opening import _check

    engine = LocalEngine(load_tiny("mllama"), FORMATS["four_stage"])
    search = SearchSection.model_validate({"interleave": "attention"})
    with pytest.raises(SearchError, match=r"^x · .*patches of mllama cannot be shown again"):
        _check("x", engine, FORMATS["four_stage"], search)
