"""What all tests share: where the repository is, the files beside it, and how hypothesis runs."""

from pathlib import Path

import pytest
import yaml
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# The same examples on every machine and in every run; slow machines are no failure.
settings.register_profile("lora_cot", derandomize=True, deadline=None, max_examples=150)
settings.load_profile("lora_cot")


@pytest.fixture(scope="session")
def shared_data():
    """Path of a file of the shared data by name; a test that asks for one that is not there is skipped."""

    def find(name):
        path = ROOT.parent / "shared" / "data" / name
        if not path.is_file():
            pytest.skip(f"{path} is not on this machine")
        return path

    return find


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Folder of a random LLaVA of real classes, small enough to train in seconds."""
    from lora_cot.backbones.mini.build import MiniSpec, random_base

    folder = tmp_path_factory.mktemp("bases") / "llava"
    model, processor = random_base(MiniSpec("llava", (), width=64, layers=2))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_base):
    """That base, loaded in float32. Tests that change it load their own."""
    from lora_cot.backbones.loading import load_backbone
    from lora_cot.recipe.schema import ModelSection

    return load_backbone(ModelSection(base=str(tiny_base)))


@pytest.fixture
def make_recipe(tiny_base):
    """A recipe of a run of a few steps on the tiny base; overrides as on the command line."""
    from lora_cot.recipe.load import load_recipe

    def make(tmp_path, *overrides, **sections):
        values = {
            "name": "tiny",
            "model": {"base": str(tiny_base), "dtype": "float32"},
            "data": {
                "train": [{"source": "shapes", "limit": 16}],
                "eval": [{"source": "shapes", "split": "validation", "limit": 4}],
            },
            "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
            "lora": {"r": 4, "lora_alpha": 8},
            "training": {
                "max_steps": 4,
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-2,
                "logging_steps": 1,
                "gradient_checkpointing": False,
                "save_strategy": "no",
                "eval_generations": 2,
            },
            "search": {"stages": {n: {"max_new_tokens": 8} for n in ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")}},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values | sections))
        return load_recipe(path, overrides)

    return make
