"""What all tests share: where the repository is, the files beside it, and how hypothesis runs."""

import copy
import gc
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# The same examples on every machine and in every run; slow machines are no failure.
settings.register_profile("lora_cot", derandomize=True, deadline=None, max_examples=150)
settings.load_profile("lora_cot")


def pytest_configure():
    """Thousands of tests and what they import are no garbage: looking for some among them is a tenth of the time."""
    gc.disable()


LONG = (
    "training/test_deepspeed.py",
    "training/test_resume_ranks.py",
    "test_recipes.py",
    "serving/test_fuzz.py",
    "training/test_resume.py",
)
"""Files whose slow tests take minutes: begun last, one of them would leave the other process without work."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Long files come first. Of a `crossed` test, all is slow that differs from its first case in more than one parameter."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))
    for item in items:
        if item.get_closest_marker("crossed") and sum(place > 0 for place in item.callspec.indices.values()) > 1:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """From here on only what tests make is looked through."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data():
    """Path of a file of the shared data by name; a test that asks for one that is not there is skipped."""

    def find(name):
        path = ROOT.parent / "shared" / "data" / name
        if not path.is_file():
            pytest.skip(f"{path} is not on this machine")
        return path

    return find


TRAINED_CHAT = ("llava", "llava_next", "llava_onevision", "mllama", "qwen2_vl", "qwen2_5_vl")
"""Every `model_type` that goes on from its prompt and can be trained."""
TRAINED = (*TRAINED_CHAT, "t5_vision")
"""Every `model_type` that can be trained, but t5_diffusion: a T5 like the other one in all that tests of each look at."""
CHAT = (*TRAINED_CHAT, "chameleon")
"""Every `model_type` that goes on from its prompt."""


def plain_processor(processor):
    """A copy that adds nothing to a text: Chameleon's puts a separator after any, wherever its template has them."""
    plain = copy.deepcopy(processor)
    if type(processor).__name__ == "ChameleonProcessor":
        plain.tokenizer.sep_token = ""
    return plain


def slots_in(processor, ids):
    """Number of tokens that stand for images."""
    return sum(token in processor.image_token_ids for token in ids)


@pytest.fixture(scope="session")
def make_base(tmp_path_factory):
    """Folder of a random base of real classes by its `model_type`, small enough to train in seconds."""
    from lora_cot.backbones import FAMILIES
    from lora_cot.backbones.mini.build import MiniSpec, random_base

    made = {}

    def make(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("bases") / name
            model, processor = random_base(MiniSpec(name, (), width=64, layers=2))
            model.save_pretrained(made[name])
            processor.save_pretrained(made[name])
            family = next(family for family in FAMILIES.values() if name in family.model_types)
            family.save_whole(processor, made[name])
        return made[name]

    return make


@pytest.fixture(scope="session")
def tiny_base(make_base):
    """Folder of a tiny LLaVA-1.5."""
    return make_base("llava")


@pytest.fixture(scope="session")
def load_tiny(make_base):
    """A tiny base of a `model_type`, loaded in float32; the same object each time. Tests that change it load their own."""
    from lora_cot.backbones.loading import load_backbone
    from lora_cot.recipe.model import ModelSection

    loaded = {}

    def load(name):
        if name not in loaded:
            loaded[name] = load_backbone(ModelSection(base=str(make_base(name))))
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def tiny(load_tiny):
    """The tiny LLaVA-1.5, loaded."""
    return load_tiny("llava")


@pytest.fixture(params=TRAINED)
def each_base(request, make_base):
    """Folder of a tiny base that can be trained, one test for each kind."""
    return make_base(request.param)


@pytest.fixture(params=(*CHAT, "t5_vision"))
def each_tiny(request, load_tiny):
    """A tiny base, loaded, one test for each kind."""
    return load_tiny(request.param)


@pytest.fixture(params=CHAT)
def each_chat_base(request, make_base):
    """Folder of a tiny base that goes on from its prompt, one test for each kind."""
    return make_base(request.param)


@pytest.fixture(params=CHAT)
def each_chat(request, load_tiny):
    """A tiny base that goes on from its prompt, loaded, one test for each kind."""
    return load_tiny(request.param)


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory):
    """Folder of a tiny checkpoint in Stable Diffusion 1.4's layout, its VAE's attention named as there."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from safetensors.torch import load_file, save_file

    from lora_cot.backbones.joined_diffusion import OLD_NAMES
    from lora_cot.backbones.mini.t5_diffusion import scheduler_config, unet_config, vae_config

    folder = tmp_path_factory.mktemp("stable")
    torch.manual_seed(1)
    AutoencoderKL(**vae_config()).save_pretrained(folder / "vae")
    UNet2DConditionModel(**unet_config()).save_pretrained(folder / "unet")
    DDIMScheduler(**scheduler_config()).save_pretrained(folder / "scheduler")
    path, tensors = folder / "vae" / "diffusion_pytorch_model.safetensors", {}
    for name, tensor in load_file(path).items():
        for old, new in OLD_NAMES.items():
            name = name.replace(new, old)
        tensors[name] = tensor
    save_file(tensors, path, {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def plain_t5(make_base, tmp_path_factory):
    """Folder of a tiny plain T5, without eyes, by the width of its text."""
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    made = {}

    def make(width=64):
        if width not in made:
            made[width] = tmp_path_factory.mktemp("plain")
            tokenizer = AutoTokenizer.from_pretrained(make_base("t5_vision"))
            torch.manual_seed(0)
            sizes = {"d_model": width, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2}
            config = T5Config(**sizes, vocab_size=len(tokenizer), decoder_start_token_id=0, dropout_rate=0.0)
            T5ForConditionalGeneration(config).save_pretrained(made[width])
            tokenizer.save_pretrained(made[width])
        return made[width]

    return make


@pytest.fixture
def diffusion_cache(tmp_path_factory, monkeypatch):
    """Where joined checkpoints and latents are kept meanwhile."""
    monkeypatch.setenv("LORA_COT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


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
