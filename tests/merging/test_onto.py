"""What an adapter is merged onto: the base's own weights, or what the 4-bit weights stood for that it was trained on."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from transformers import AutoModelForImageTextToText

from lora_cot.adapters.lora import load_adapter
from lora_cot.backbones.loading import family_of, load_backbone
from lora_cot.backbones.quantization import is_quantized, quantize_layers, quantized_layers
from lora_cot.checkpoints.folders import write_recipe
from lora_cot.errors import MergeError, RunError
from lora_cot.merging import arithmetic, measure
from lora_cot.merging.arithmetic import FourBit
from lora_cot.merging.checkpoint import open_file
from lora_cot.merging.merge import merge
from lora_cot.merging.plan import Step
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import DataSection, QuantizationSection
from tests.conftest import TRAINED
from tests.merging.conftest import layers_of, make_adapter, merge_files, recipe_of, state_of

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


def section(**keys):
    return QuantizationSection.model_validate({**NF4, **keys})


@pytest.mark.parametrize("skip", [["lm_head"], ["vision_encoder", "projector", "lm_head"]])
@pytest.mark.parametrize("name", TRAINED)
def test_the_layers_are_those_that_loading_quantises(make_base, name, skip):
    """Worked out without weights, they are those of a model that was really loaded."""
    quantization = section(skip_parts=skip)
    loaded = load_backbone(ModelSection(base=str(make_base(name))), quantization)
    family = family_of(str(make_base(name)))
    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(loaded.model.config)
    wanted = {name for name, module in loaded.model.named_modules() if is_quantized(module)}
    quantize_layers(empty, family, quantization, torch.float32)
    assert wanted and quantized_layers(empty) == wanted


def inputs_of(name):
    ids = torch.arange(3, 40)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": ids[:, :9]} if name == "t5_vision" else {})


@pytest.mark.crossed
@pytest.mark.parametrize("keys", [{}, {"bnb_4bit_use_double_quant": False}, {"bnb_4bit_quant_type": "fp4"}])
@pytest.mark.parametrize("name", ["llava", "mllama", "qwen2_vl", "t5_vision"])
def test_dequantised_it_is_the_adapters_own_model(published, tmp_path, monkeypatch, name, keys):
    """Logits on the 4-bit base and of the merged model are the same to 1e-5, whatever pieces it was done in."""
    base, quantization = published(name), section(**keys)
    extra = {"modules_to_save": ["encoder.fusion"]} if name == "t5_vision" else {}
    make_adapter(base, tmp_path / "adapter", target_modules=layers_of(name), use_dora=name == "mllama", **extra)
    trained = load_adapter(load_backbone(ModelSection(base=str(base)), quantization), tmp_path / "adapter")
    with torch.no_grad():
        wanted = trained.model(**inputs_of(name)).logits
    monkeypatch.setattr(arithmetic, "BLOCK", 64 * 64)
    folder = merge_files(base, tmp_path / "adapter", tmp_path / "merged", "dequantized", quantization=quantization)
    merged = load_backbone(ModelSection(base=str(folder)))
    with torch.no_grad():
        assert (merged.model(**inputs_of(name)).logits - wanted).abs().max() < 1e-5
    full = load_backbone(ModelSection(base=str(merge_files(base, tmp_path / "adapter", tmp_path / "full"))))
    with torch.no_grad():
        assert (full.model(**inputs_of(name)).logits - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_without_adapters_are_dequantised_too(make_base, tmp_path, dtype):
    """Each quantised layer is, bit for bit, what bitsandbytes makes of it; all others stay."""
    base, quantization = make_base("llava"), section()
    make_adapter(base, tmp_path / "adapter", target_modules=r".*layers\.0.*q_proj")
    sections = {"model": {"dtype": dtype}, "quantization": quantization}
    found = state_of(merge_files(base, tmp_path / "adapter", tmp_path / "merged", "dequantized", **sections))
    loaded = load_backbone(ModelSection(base=str(base), dtype=dtype), quantization).model
    old = state_of(base)
    checked = 0
    for name, module in loaded.named_modules():
        if is_quantized(module) and "layers.0" not in name:
            made = dequantize_4bit(module.weight, module.weight.quant_state)
            assert torch.equal(found[f"{name}.weight"], made.float())
            checked += 1
    assert checked > 5
    assert torch.equal(found["lm_head.weight"], old["lm_head.weight"])


@pytest.mark.parametrize("double_quant", [False, True])
def test_pieces_end_where_blocks_of_values_end(double_quant):
    """Of rows whose width is no multiple of bitsandbytes' blocks, too."""
    weight = torch.randn(300, 24)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=double_quant)
    with ThreadPoolExecutor(1) as pool:
        made = FourBit("nf4", double_quant, torch.float32).quantize(weight, 64, pool)
    found = torch.cat([made.rows(begin, min(begin + 64, 300)) for begin in range(0, 300, 64)])
    assert torch.equal(found, dequantize_4bit(packed, state))


def test_rows_of_a_piece_are_a_multiple_of_64(published, monkeypatch):
    """So that pieces do."""
    (file, *_) = [open_file(path) for path in sorted(published("llava").glob("*.safetensors"))]
    name = next(name for name, entry in file.entries.items() if len(entry.shape) == 2 and entry.shape[0] > 64)
    step = Step(name, "F32", file.entries[name].shape, file, name, None, True)
    monkeypatch.setattr(arithmetic, "BLOCK", 100)
    with ThreadPoolExecutor(1) as pool:
        assert arithmetic.prepare(step, file, FourBit("nf4", True, torch.float32), pool).many == 64


def run_of(base, tmp_path, **sections):
    """An adapter with its recipe, as training leaves it."""
    data = {"train": [{"source": "shapes", "limit": 4}], "eval": [{"source": "shapes", "split": "test", "limit": 3}]}
    recipe = recipe_of(base, data=DataSection.model_validate(data), **sections)
    make_adapter(base, tmp_path / "adapter", target_modules=layers_of("llava"))
    write_recipe(recipe, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("better", [pytest.param("full", marks=pytest.mark.slow), "dequantized"])
def test_auto_keeps_the_lower_loss(make_base, tmp_path, monkeypatch, better):
    """Whichever is better on the gold answers; both losses are told, and only one folder is left."""
    adapter = run_of(make_base("llava"), tmp_path, quantization=section())
    taken = measure.record

    def record(backbone, *arguments, **keys):
        found = taken(backbone, *arguments, **keys)
        return replace(found, loss=1.0) if f"/{better}" in backbone.base else found

    monkeypatch.setattr(measure, "record", record)
    (report,) = merge(adapter).reports
    assert (report.onto, report.losses[better]) == (better, 1.0)
    assert set(report.losses) == {"full", "dequantized", "adapter"} and report.losses["adapter"] > 1
    drift = report.trained_vs_merged.max_logit_difference
    assert drift > 1e-3 if better == "full" else drift < 1e-5
    assert report.adapter_vs_merged.max_logit_difference < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "adapter-merged"]
    assert {"recipe.yaml", "merge_report.json", "config.json"} <= {
        path.name for path in (tmp_path / "adapter-merged").iterdir()
    }


def test_without_verification_nothing_is_loaded(make_base, tmp_path, monkeypatch):
    """And nothing is guessed: of a quantised base one must say onto what."""
    adapter = run_of(make_base("llava"), tmp_path, quantization=section())

    def refuse(*arguments):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(measure, "load_backbone", refuse)
    with pytest.raises(RunError, match="--no-verify loads none · take --onto full or --onto dequantized"):
        merge(adapter, verify=False)
    (report,) = merge(adapter, onto="dequantized", verify=False).reports
    assert (report.onto, report.probes, report.losses, report.adapter_vs_merged) == ("dequantized", 0, None, None)
    assert "no model was loaded" in dict(report.lines())["verified"]


def test_what_cannot_be_merged_onto(make_base, tmp_path):
    """A base that was not quantised, or in 8 bits; an unknown word."""
    adapter = run_of(make_base("llava"), tmp_path)
    with pytest.raises(MergeError, match="not quantised · take --onto full"):
        merge(adapter, onto="dequantized")
    with pytest.raises(RunError, match="did you mean 'full'"):
        merge(adapter, onto="ful")
    write_recipe(recipe_of(make_base("llava"), quantization=QuantizationSection(load_in_8bit=True)), adapter)
    with pytest.raises(MergeError, match="8-bit layers round what they are given"):
        merge(adapter, onto="dequantized", verify=False)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
