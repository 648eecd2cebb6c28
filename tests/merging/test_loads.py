"""The merged folder is the base's own, with other weights: whatever loads the base loads it."""

import fnmatch

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from lora_cot.merging.base import SMALL
from tests.conftest import TRAINED_CHAT
from tests.merging.conftest import layers_of, make_adapter, merge_files

PROCESSOR = [pattern for pattern in SMALL if pattern != "config.json"]


@pytest.mark.parametrize("name", TRAINED_CHAT)
def test_transformers_loads_it_without_us(published, tmp_path, name):
    """By the automatic class: no tensor is missing, left over or of another shape, and the weights are the adapter's."""
    peft = make_adapter(published(name), tmp_path / "adapter", target_modules=layers_of(name))
    folder = merge_files(published(name), tmp_path / "adapter", tmp_path / "merged")
    model, found = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert type(model) is type(peft.get_base_model())
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not [key for key in model.state_dict() if "lora" in key or "base_layer" in key]
    wanted = peft.merge_and_unload().state_dict()
    assert all(torch.allclose(tensor, wanted[key], atol=1e-5) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", TRAINED_CHAT)
def test_its_processor_is_the_bases_own(published, tmp_path, name):
    """Each file of it, byte by byte; and it loads, where the base's does."""
    make_adapter(published(name), tmp_path / "adapter", target_modules=layers_of(name))
    folder = merge_files(published(name), tmp_path / "adapter", tmp_path / "merged")
    files = [p for p in published(name).iterdir() if any(fnmatch.fnmatch(p.name, pattern) for pattern in PROCESSOR)]
    assert {"tokenizer.json", "processor_config.json"} <= {path.name for path in files}
    assert all((folder / path.name).read_bytes() == path.read_bytes() for path in files)
    try:
        own = AutoProcessor.from_pretrained(published(name))
    except (ImportError, OSError, ValueError) as error:
        pytest.skip(f"here the base's own does not load either: {' '.join(str(error).split())[:120]}")
    loaded = AutoProcessor.from_pretrained(folder)
    assert type(loaded) is type(own) and loaded.chat_template == own.chat_template
    assert loaded.tokenizer.get_vocab() == own.tokenizer.get_vocab()
