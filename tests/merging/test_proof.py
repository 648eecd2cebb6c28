"""What was written is held against PEFT's own merge, tensor by tensor, whether models are loaded or not."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_cot.backbones.loading import load_backbone
from lora_cot.checkpoints.folders import write_recipe
from lora_cot.errors import AdapterError, MergeError
from lora_cot.merging import onto, proof, stream
from lora_cot.merging.merge import merge
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import DataSection, QuantizationSection
from tests.merging.conftest import layers_of, make_adapter, merge_files, recipe_of, state_of, tensors_of
from tests.merging.test_stream import KINDS, keys_of, tied_base
from tests.merging.test_verify import adapter_of, half


def scaled(factor):
    def change(changes):
        return {
            name: replace(one, low_rank=replace(one.low_rank, scale=factor * one.low_rank.scale)) if one.low_rank else one
            for name, one in changes.items()
        }

    return change


def swapped(changes):
    """The updates of two layers of one shape in each other's place."""
    first, second = [name for name in changes if "language_model" in name and "q_proj" in name]
    return {**changes, first: changes[second], second: changes[first]}


def lost(changes):
    """One layer of many stays as it is in the base."""
    name = next(name for name in reversed(changes) if "v_proj" in name)
    return {key: one for key, one in changes.items() if key != name}


FAULTS = {"swapped": swapped, "lost": lost, "twice": scaled(2), "wrong scale": scaled(0.9), "almost right": scaled(0.995)}


def misread(monkeypatch, fault):
    read = onto.read_adapter
    monkeypatch.setattr(onto, "read_adapter", lambda *given: replace(found := read(*given), changes=fault(found.changes)))


@pytest.fixture(scope="module")
def half_run(make_base, tmp_path_factory):
    """An adapter on a base in bfloat16, as small as training leaves it: most sums round to the base's own values."""
    folder = tmp_path_factory.mktemp("half")
    adapter = adapter_of(half(make_base("llava"), folder / "base"), folder / "adapter", "auto")
    file = adapter / "adapter_model.safetensors"
    save_file({name: t * (0.003 if "lora_B" in name else 1) for name, t in load_file(file).items()}, file)
    return adapter


@pytest.mark.crossed
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("way", ["full", "dequantized"])
def test_faults_in_bfloat16_do_not_pass(half_run, tmp_path, monkeypatch, fault, way):
    """Though a value's rounding is larger than its update, and though no model is loaded."""
    base = half_run.parent / "base"
    section = QuantizationSection.model_validate({"load_in_4bit": True, "bnb_4bit_use_double_quant": True})
    sections = {"model": {"dtype": "bfloat16"}, "quantization": section} if way == "dequantized" else {}
    merge_files(base, half_run, tmp_path / "right", way, **sections)
    misread(monkeypatch, FAULTS[fault])
    with pytest.raises(MergeError, match="that were looked at are not those of PEFT's own merge"):
        merge_files(base, half_run, tmp_path / "wrong", way, **sections)
    assert not list((tmp_path / "wrong").glob("*.safetensors"))


@pytest.mark.crossed
@pytest.mark.parametrize("name", ["llava", "t5_vision"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_change_is_looked_at(make_base, tmp_path, monkeypatch, name, kind):
    """One parameter that is left as it is, the first or the last of the adapter's: both are found."""
    if (name, kind) == ("t5_vision", "embedding"):
        pytest.skip("T5's embeddings have a test of their own")
    base = make_base(name)
    make_adapter(base, tmp_path / "adapter", **keys_of(name, kind))
    for place in (0, -1):
        with monkeypatch.context() as patch:
            misread(patch, lambda changes, place=place: {k: v for k, v in changes.items() if k != list(changes)[place]})
            with pytest.raises((MergeError, AdapterError), match=r"not those of PEFT's|neither it nor the base holds"):
                merge_files(base, tmp_path / "adapter", tmp_path / f"merged{place}")


def test_biases_of_adapters_are_looked_at(make_base, tmp_path, monkeypatch):
    """PEFT's `lora_bias`: right it passes, without its term it does not."""
    keys = {"target_modules": r".*(vision_tower|vision_model).*(q_proj|fc1)", "lora_bias": True}
    make_adapter(make_base("llava"), tmp_path / "adapter", **keys)
    merge_files(make_base("llava"), tmp_path / "adapter", tmp_path / "right")
    misread(monkeypatch, lambda changes: {name: one for name, one in changes.items() if not one.term})
    with pytest.raises(MergeError, match=r"the merged tensor .*bias that were looked at"):
        merge_files(make_base("llava"), tmp_path / "adapter", tmp_path / "wrong")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tied_weights_are_looked_at(make_base, tmp_path, monkeypatch):
    """A weight that stays tied takes the adapter of whichever of its names PEFT adapted."""
    base = tied_base(make_base, tmp_path)
    keys = {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
    make_adapter(base, tmp_path / "adapter", **keys)
    misread(monkeypatch, lambda changes: {k: v for k, v in changes.items() if "embed" not in k and "lm_head" not in k})
    with pytest.raises(MergeError, match=r"embed_tokens\.weight that were looked at"):
        merge_files(base, tmp_path / "adapter", tmp_path / "merged")


@pytest.mark.parametrize("where", ["copied", "summed"])
def test_a_file_that_is_written_wrong_does_not_get_its_name(published, tmp_path, monkeypatch, where):
    """Bytes that land in another place, of what was copied and of what was added up."""
    make_adapter(published("llava"), tmp_path / "adapter", target_modules=layers_of("llava"))
    name = "_copy" if where == "copied" else "_merge"
    write = getattr(stream, name)
    moved = (1, 2) if where == "copied" else (1,)  # first and last byte that are read; first that is written

    def shifted(*given):
        return write(*(one - 64 if place in moved else one for place, one in enumerate(given)))

    monkeypatch.setattr(stream, name, shifted)
    with pytest.raises(MergeError, match="PEFT's own merge"):
        merge_files(published("llava"), tmp_path / "adapter", tmp_path / "merged")
    assert not list((tmp_path / "merged").glob("*.safetensors"))


def test_what_rounding_allows(monkeypatch):
    """In bfloat16 the nearest value alone, but for sums that lie between two; no NaN."""
    wanted = torch.tensor([[1.0, 1.0 + 2**-8, 3.0]])
    path = "adapter"
    for found in ([1.0, 1.0, 3.0], [1.0, 1.0 + 2**-7, 3.0]):
        proof._compare("w", path, wanted, torch.tensor([found]).bfloat16())
    for found in ([1.0 + 2**-7, 1.0, 3.0], [1.0, 1.0, float("nan")]):
        with pytest.raises(MergeError, match=r"1 of 3 values of the merged tensor w"):
            proof._compare("w", path, wanted, torch.tensor([found]).bfloat16())


def different(base, merged):
    """Tensors that differ, and how many of their values do."""
    old, new = tensors_of(base), tensors_of(merged)
    return {name: int((old[name] != new[name]).sum()) for name in old if not torch.equal(old[name], new[name])}


def test_changed_values_are_counted(published, half_run, tmp_path, monkeypatch, capsys):
    """Those that differ from what was merged onto, also of files that an earlier call finished."""
    (report,) = merge(half_run, tmp_path / "merged", verify=False).reports
    wanted = different(half_run.parent / "base", tmp_path / "merged")
    assert (report.changed_tensors, report.changed_values) == (len(wanted), sum(wanted.values()))
    assert 0 < report.changed_values < sum(t.numel() for n, t in tensors_of(tmp_path / "merged").items() if n in wanted)

    make_adapter(published("llava"), tmp_path / "adapter", target_modules=layers_of("llava"))
    recipe = recipe_of(published("llava"))
    ready = onto.make_ready(recipe, tmp_path / "adapter", "full")
    found = onto.write_model(ready, recipe, tmp_path / "counted")
    assert found == different(published("llava"), tmp_path / "counted")
    next((tmp_path / "counted").glob("*.safetensors")).unlink()
    assert onto.write_model(ready, recipe, tmp_path / "counted") == found
    assert "going on: 2 of 3 files" in capsys.readouterr().err


@pytest.mark.parametrize(("way", "half_of"), [("full", "lora_B"), ("dequantized", "lora_A")])
@pytest.mark.parametrize("verify", [True, False])
def test_a_merge_that_comes_to_its_base_is_refused(half_run, tmp_path, way, half_of, verify):
    """By rounding, or by an update that is nothing; whatever it is merged onto, and whether models are loaded or not."""
    adapter = shutil.copytree(half_run, tmp_path / "adapter")
    sections = {"model": {"dtype": "bfloat16"}, "quantization": QuantizationSection(load_in_4bit=True)}
    data = DataSection.model_validate({"train": [{"source": "shapes", "limit": 2}]})
    write_recipe(recipe_of(half_run.parent / "base", **sections, data=data), adapter)
    file = adapter / "adapter_model.safetensors"
    factor = 1e-9 if way == "full" else 0
    save_file({name: t * (factor if half_of in name else 1) for name, t in load_file(file).items()}, file)
    with pytest.raises(MergeError, match="changes nothing; rounded to bfloat16, none of its values is another"):
        merge(adapter, onto=way, verify=verify)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


T5 = {"shared": ["shared"], "with others": ["q", "shared"], "tied": ["shared"]}


@pytest.mark.parametrize("kind", T5)
def test_t5s_shared_embedding_is_refused(make_base, tmp_path, kind):
    """PEFT's adapter there is never called, and its merge changes the head and both embeddings: neither can be meant."""
    keys = {"target_modules": T5[kind], "ensure_weight_tying": kind == "tied", "modules_to_save": ["encoder.fusion"]}
    base = make_base("t5_vision")
    peft = make_adapter(base, tmp_path / "adapter", **keys)
    if kind == "shared":
        wanted = t5_logits(peft)
        assert (t5_logits(peft.merge_and_unload()) - wanted).abs().max() > 1e-2
    with pytest.raises(AdapterError, match=r"`shared`, which T5 looks nothing up in.*adapt encoder\.embed_tokens"):
        merge_files(base, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def t5_logits(model):
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=ids[:, :9]).logits


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], r"encoder\.embed_tokens"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_t5s_other_embeddings_come_apart(make_base, tmp_path, targets):
    """Both embeddings and the head are one weight in the base: the merged model is the adapter's, to 1e-5."""
    base = make_base("t5_vision")
    peft = make_adapter(base, tmp_path / "adapter", target_modules=targets, modules_to_save=["encoder.fusion"])
    wanted = t5_logits(peft)
    folder = merge_files(base, tmp_path / "adapter", tmp_path / "merged")
    assert (t5_logits(load_backbone(ModelSection(base=str(folder))).model) - wanted).abs().max() < 1e-5
    state = state_of(folder)
    assert not torch.equal(state["lm_head.weight"], state["encoder.embed_tokens.weight"])
