"""The configurations that come with the package are those of the published bases."""

import json
import socket

import pytest
import torch
import transformers
import yaml
from PIL import Image

from lora_cot.backbones.loading import family_of, load_processor
from lora_cot.data.chat import image_slots
from lora_cot.planning.outline import PUBLISHED, published
from lora_cot.recipe.model import ModelSection
from tests.conftest import ROOT

BILLIONS = {
    "llava-1.5-7b-hf": 7.06,
    "llava-1.5-13b-hf": 13.35,
    "llava-v1.6-mistral-7b-hf": 7.57,
    "llava-onevision-qwen2-7b-ov-hf": 8.03,
    "qwen2-vl-7b-instruct": 8.29,
    "qwen2-vl-2b-instruct": 2.21,
    "qwen2.5-vl-7b-instruct": 8.29,
    "qwen2.5-vl-3b-instruct": 3.75,
    "llama-3.2-11b-vision-instruct": 10.67,
    "llama-3.2-90b-vision-instruct": 88.6,
}
TEXT_BILLIONS = {
    "t5-large": 0.738,
    "unifiedqa-t5-base": 0.223,
    "flan-t5-base": 0.248,
    "flan-t5-large": 0.783,
    "flan-alpaca-base": 0.248,
    "flan-alpaca-large": 0.783,
}
"""Parameters as their pages say."""
IMAGE_TOKENS = {
    "llava-1.5-7b-hf": (576, 576),
    "llava-1.5-13b-hf": (576, 576),
    "llava-v1.6-mistral-7b-hf": (576 + 36 * (48 + 1), 1176),
    "llava-onevision-qwen2-7b-ov-hf": (729 + 54 * (73 + 1), 729 + 27 * (27 + 1)),
    "qwen2-vl-7b-instruct": (37 * 27, 144),
    "qwen2-vl-2b-instruct": (37 * 27, 144),
    "qwen2.5-vl-7b-instruct": (37 * 27, 144),
    "qwen2.5-vl-3b-instruct": (37 * 27, 144),
    "llama-3.2-11b-vision-instruct": (1, 1),
    "llama-3.2-90b-vision-instruct": (1, 1),
}
"""Of an image of 1024×768 and one of 336×336."""
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "mini")


@pytest.fixture
def no_network(monkeypatch):
    """Every connection is an error."""

    def refuse(*_, **__):
        raise AssertionError("this would need the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", BILLIONS)
def test_a_configuration_is_that_of_its_base(name, no_network):
    """As many parameters as published, and as many tokens for an image, which the processor really makes."""
    folder = str(PUBLISHED / name)
    family = family_of(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(transformers.AutoConfig.from_pretrained(folder))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(BILLIONS[name] * 1e9, rel=0.005)
    assert set(family.parts.values()) <= {path for path, _ in model.named_modules()}
    processor = family.load_processor(folder, ModelSection(base=folder))
    sizes = (1024, 768), (336, 336)
    assert tuple(family.image_tokens(processor, [size])[0] for size in sizes) == IMAGE_TOKENS[name]
    (slots,), _ = image_slots(processor, [Image.new("RGB", sizes[0])])
    assert len(slots) == IMAGE_TOKENS[name][0]
    assert model.config.image_token_id == processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    assert model.config.text_config.vocab_size > processor.tokenizer.eos_token_id


@pytest.mark.parametrize("name", TEXT_BILLIONS)
def test_a_t5_is_the_published_one(name, no_network):
    """As many parameters, its head its own or not; what makes an image's features is known without the network."""
    section = ModelSection(base=str(PUBLISHED / name), vision_features="vit")
    family, processor = load_processor(section)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(family.load_config(section.base, section))
    fusion = sum(p.numel() for p in model.encoder.fusion.parameters())
    assert sum(p.numel() for p in model.parameters()) - fusion == pytest.approx(TEXT_BILLIONS[name] * 1e9, rel=0.005)
    assert processor.features.shape == (145, 1024)
    assert processor.tokenizer("x")["input_ids"][-1] == processor.tokenizer.eos_token_id == model.config.eos_token_id


def test_every_folder_is_known():
    """Each has its figures above."""
    assert {folder.name for folder in PUBLISHED.iterdir()} == {*BILLIONS, *TEXT_BILLIONS}


def test_precisions_are_those_of_the_checkpoints():
    """T5's are in float32, LLaVA's in float16, the rest in bfloat16."""
    for folder in PUBLISHED.iterdir():
        dtype = json.loads((folder / "config.json").read_text())["dtype"]
        other = "float16" if folder.name.startswith("llava") else "bfloat16"
        assert dtype == ("float32" if folder.name in TEXT_BILLIONS else other)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_base_of_a_recipe_is_published_here(path):
    """So that it can be planned without the network."""
    assert published(yaml.safe_load(path.read_text())["model"]["base"])


def test_folders_are_found_by_the_name_on_the_hub():
    """Whoever holds the copy, however it is written; and nothing else is."""
    assert published("meta-llama/Llama-3.2-11B-Vision-Instruct") == PUBLISHED / "llama-3.2-11b-vision-instruct"
    assert published("Qwen/Qwen2.5-VL-7B-Instruct") == published("unsloth/Qwen2.5-VL-7B-Instruct")
    assert published("somebody/llava-1.5-7b") is None
    assert published("") is None and published("..") is None and published("x/") is None


def test_they_come_with_the_package():
    """Nothing that the wheel leaves out by its name."""
    files = {file.name for folder in PUBLISHED.iterdir() for file in folder.iterdir()}
    assert files == {"config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
