"""A hub that is huggingface_hub's whole world, and folders to push there."""

import json
import shutil
from types import SimpleNamespace

import pytest

from lora_cot.checkpoints.folders import write_recipe
from lora_cot.recipe import Recipe
from tests.merging.conftest import layers_of, make_adapter
from tests.publishing.hub_server import TOKEN, serve

BASE = "somebody/base"
SHORT = {"search": {"stages": {name: {"max_new_tokens": 4} for name in ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")}}}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running hub that the client in this process speaks to, with a token, an empty cache and no waiting."""
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http

    with serve() as running:
        for name, value in {
            "ENDPOINT": running.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": running.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", running.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        no_sleep = SimpleNamespace(sleep=lambda seconds: None)
        monkeypatch.setattr(_http, "time", no_sleep)
        monkeypatch.setattr("lora_cot.publishing.push.time", no_sleep)
        yield running


@pytest.fixture(scope="session")
def made(make_base, tmp_path_factory):
    """Folders of an adapter on BASE, and of a split format's two."""
    base, root = make_base("llava"), tmp_path_factory.mktemp("made")
    values = {"name": "made", "model": {"base": BASE, "dtype": "float32"}}
    for name, places, extra in (("one", [""], SHORT), ("split", ["rationale", "answer"], {"format": {"name": "two_stage"}})):
        for place in places:
            folder = root / name / place
            make_adapter(base, folder, target_modules=layers_of("llava"), r=2 + 2 * (place == "answer"))
            config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": BASE}
            (folder / "adapter_config.json").write_text(json.dumps(config))
            (folder / "README.md").write_text(f"---\nbase_model: {BASE}\n---\n# A card\n")
            for path in base.glob("*"):
                if path.name.startswith(("tokenizer", "processor", "chat")):
                    shutil.copy(path, folder)
            write_recipe(Recipe.model_validate(values | extra), folder)
        write_recipe(Recipe.model_validate(values | extra), root / name)
    for place in ("rationale", "answer"):
        (root / "split" / place / "README.md").unlink()
        (root / "split" / place / "recipe.yaml").unlink()
    return root


@pytest.fixture
def adapter(made, tmp_path):
    """A copy of the adapter, to be changed."""
    return shutil.copytree(made / "one", tmp_path / "adapter")


@pytest.fixture
def split(made, tmp_path):
    """A copy of the two adapters of a split format, to be changed."""
    return shutil.copytree(made / "split", tmp_path / "split")


@pytest.fixture
def merged(make_base, tmp_path):
    """A merged model's folder, as far as pushing goes."""
    folder = shutil.copytree(make_base("llava"), tmp_path / "merged")
    write_recipe(Recipe.model_validate({"name": "made", "model": {"base": BASE}}), folder)
    (folder / "merge_report.json").write_text(json.dumps({"folder": "/home/me/runs/.merged.merging/kept", "base": BASE}))
    return folder
