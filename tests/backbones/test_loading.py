"""Bases that cannot be used are refused with the reason and what to do, before their weights are read where that is known."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from lora_cot.backbones.loading import load_backbone
from lora_cot.checkpoints.opening import open_model
from lora_cot.errors import BackboneError, RecipeError
from lora_cot.evaluation.ask import ask
from lora_cot.hub import cached_file
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import QuantizationSection
from lora_cot.training.run import train


@pytest.fixture
def copy_base(make_base, tmp_path):
    """Folder of a copy of a tiny base, without some of its files and with other values in its config.json."""

    def copy(name, without=(), **config):
        folder = shutil.copytree(make_base(name), tmp_path / name, ignore=shutil.ignore_patterns(*without))
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | config))
        return folder

    return copy


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_float16_weights_are_refused_where_they_break(copy_base, name):
    """The reason is given before weights are read: here there are none."""
    folder = copy_base(name, without=["*.safetensors"])
    match = (
        r"model\.dtype · a qwen2_vl model breaks in float16: its activations .* NaN · set model\.dtype to bfloat16 or float32"
    )
    with pytest.raises(BackboneError, match=match):
        load_backbone(ModelSection(base=str(folder), dtype="float16"))


def test_float16_checkpoints_are_loaded_in_bfloat16_where_float16_breaks(copy_base):
    """Where the recipe leaves the precision to the checkpoint, it is one that the family can be computed in."""
    found = {name: load_backbone(ModelSection(base=str(copy_base(name, dtype="float16")))) for name in ("qwen2_vl", "llava")}
    assert {name: base.model.dtype for name, base in found.items()} == {"qwen2_vl": torch.bfloat16, "llava": torch.float16}


def test_a_quantised_float16_checkpoint_computes_in_bfloat16(copy_base):
    """What is quantised computes in its own precision whatever autocast says, and gradients would vanish in float16."""
    quantised = QuantizationSection(load_in_4bit=True)
    found = load_backbone(ModelSection(base=str(copy_base("llava", dtype="float16"))), quantised)
    assert found.part("lm_head").weight.dtype == torch.bfloat16
    asked = load_backbone(ModelSection(base=found.base, dtype="float16"), quantised)
    assert asked.part("lm_head").weight.dtype == torch.float16


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_precision_is_the_checkpoints(copy_base, key):
    """Under its old name too; what the recipe says comes first."""
    folder = copy_base("llava", **{"dtype": None, key: "bfloat16"})
    assert load_backbone(ModelSection(base=str(folder))).model.dtype == torch.bfloat16
    assert load_backbone(ModelSection(base=str(folder), dtype="float32")).model.dtype == torch.float32


def test_a_gpu_without_bfloat16_is_considered(copy_base, monkeypatch):
    """A bfloat16 checkpoint becomes float16 there, and is refused where that breaks, saying that the GPU is the reason."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr("torch.cuda.current_device", lambda: "cpu")
    folder = copy_base("qwen2_vl", without=["*.safetensors"], dtype="bfloat16")
    with pytest.raises(BackboneError, match=r"this GPU has no bfloat16: set model\.dtype: float32"):
        load_backbone(ModelSection(base=str(folder)))
    assert load_backbone(ModelSection(base=str(copy_base("llava", dtype="bfloat16")))).model.dtype == torch.float16


def test_a_processor_without_a_chat_template_is_refused(copy_base, make_recipe, tmp_path):
    """Training and answering name the remedy, and nothing is left that looks like a run."""
    folder = copy_base("llava", without=["chat_template*"])
    match = "LlavaProcessor · the processor has no chat template · use the instruction-tuned checkpoint"
    with pytest.raises(BackboneError, match=match):
        train(make_recipe(tmp_path, f"model.base={folder}"), tmp_path)
    assert not (tmp_path / "tiny" / "adapter").exists() and not (tmp_path / "tiny" / ".owner").exists()
    with pytest.raises(BackboneError, match=match):
        ask(open_model(str(folder)), tmp_path / "none.png", "What is it?")


def hub_error(kind):
    """An error as the hub's client raises it."""
    if kind is LocalEntryNotFoundError:
        return kind("no network")
    return kind("refused: https://hub.invalid", response=SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (
            GatedRepoError,
            "access to this repository is not granted · accept its licence on its hub page, then run `hf auth login`",
        ),
        (RepositoryNotFoundError, "neither a folder nor a hub id that can be read · check the name, the network, or `hf auth"),
        (LocalEntryNotFoundError, "neither a folder nor a hub id that can be read · check the name, the network, or `hf auth"),
    ],
)
def test_a_base_that_the_hub_does_not_give_is_refused(make_recipe, tmp_path, monkeypatch, kind, match):
    """A gated repository, one that is not there, and no network are three sentences, and no folder is left locked."""

    def refuse(*_args, **_keys):
        raise hub_error(kind)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(BackboneError, match=f"model.base meta-llama/gated · {match}") as caught:
        train(make_recipe(tmp_path, "model.base=meta-llama/gated"), tmp_path)
    assert "https://hub.invalid" not in str(caught.value) and len(caught.value.problems) == 1
    assert not (tmp_path / "tiny" / ".owner").exists()


def test_a_file_is_no_base(make_recipe, tmp_path):
    """The hub is not asked for it."""
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(BackboneError, match=r"rows\.jsonl · is a file · name a folder with a checkpoint"):
        train(make_recipe(tmp_path, f"model.base={tmp_path / 'rows.jsonl'}"), tmp_path)


def test_a_head_in_four_bits_is_refused(make_recipe, tmp_path):
    """Losses are computed from its weight: the recipe must name it among the parts that are kept whole."""
    with pytest.raises(RecipeError, match=r"quantization\.skip_parts · .*lm_head must be among them: losses are computed"):
        make_recipe(tmp_path, "quantization.skip_parts=[vision_encoder]")


def test_a_checkpoint_with_a_head_in_four_bits_is_refused(make_base, tmp_path):
    """One that was saved so is refused however it is loaded, with where the fault lies."""
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["model.vision_tower"])
    model = AutoModelForImageTextToText.from_pretrained(make_base("llava"), quantization_config=config)
    folder = shutil.copytree(make_base("llava"), tmp_path / "nf4", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(folder)
    with pytest.raises(BackboneError, match="lm_head · lm_head is quantised, and losses are computed from its weight · "):
        load_backbone(ModelSection(base=str(folder)))


def test_a_file_that_is_not_here_is_none(tmp_path, monkeypatch):
    """Of a folder, of a hub id that was never downloaded, and of a folder that is gone; the network is not asked."""
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("asked"))
    (tmp_path / "LICENSE").write_text("words")
    assert cached_file(str(tmp_path), "LICENSE", None) == tmp_path / "LICENSE"
    for place in (str(tmp_path), "nobody/nothing", str(tmp_path / "gone" / "away")):
        assert cached_file(place, "NOTICE", None) is None
