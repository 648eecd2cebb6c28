"""The proof: what it is measured on, what its figures are, and that faults of a merge do not pass."""

import json
import math
from dataclasses import replace

import pytest
import torch

from lora_cot.backbones.loading import load_backbone
from lora_cot.checkpoints.folders import write_recipe
from lora_cot.errors import MergeError, RunError, UnprovenError
from lora_cot.merging import measure, onto, stream
from lora_cot.merging.merge import merge
from lora_cot.merging.report import BOUNDS
from lora_cot.merging.verify import Recorded, _mixed, _rows, compare
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import DataSection, QuantizationSection, SearchSection
from lora_cot.types import Exchange, Sample
from tests.merging.conftest import layers_of, make_adapter, recipe_of

DATA = {"train": [{"source": "shapes", "limit": 4}], "eval": [{"source": "shapes", "split": "test", "limit": 6}]}
SHORT = SearchSection.model_validate(
    {"stages": {name: {"max_new_tokens": 4} for name in ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")}}
)


def samples(with_images, without):
    """With and without images, those without first."""
    one = (Exchange("?"),)
    blind = [Sample(f"blind-{n}", one) for n in range(without)]
    return blind + [Sample(f"seen-{n}", one, (b"",)) for n in range(with_images)]


@pytest.mark.parametrize(
    ("with_images", "without", "wanted"),
    [(100, 100, (56, 8)), (100, 3, (61, 3)), (10, 100, (10, 54)), (0, 5, (0, 5)), (7, 0, (7, 0))],
)
def test_samples_with_images_come_first(with_images, without, wanted):
    """Wherever they stand in the data; a few without, if there are both."""
    chosen = _mixed(samples(with_images, without), 64)
    assert (sum(bool(s.images) for s in chosen), sum(not s.images for s in chosen)) == wanted


def recorded(logits, like=None):
    ids, kept, top1, losses = _rows(logits.clone(), torch.zeros(len(logits)), None if like is None else like.ids)
    return Recorded(ids, kept, top1, losses.mean().item(), None, "float32")


def test_kl_is_that_of_the_whole_vocabulary_but_for_the_tail():
    """Never more than the KL over single tokens; equal to it where the tail is one token, and almost where it is thin."""
    torch.manual_seed(0)
    for vocabulary, scale in ((40, 3.0), (65, 3.0), (5000, 5.0)):
        first = torch.randn(50, vocabulary) * scale
        second = first + torch.randn(50, vocabulary) * 0.1
        p, q = first.double().log_softmax(-1), second.double().log_softmax(-1)
        whole = (p.exp() * (p - q)).sum(-1).mean().item()
        mine = recorded(first)
        found = compare(mine, recorded(second, mine)).kl
        assert 0 < found <= whole * (1 + 1e-5)
        assert found == pytest.approx(whole, rel=1e-4 if vocabulary <= 65 else 0.2)
    assert compare(mine, mine).kl == 0


@pytest.mark.parametrize(("dtype", "behind", "agrees"), [
    ("bfloat16", 2**-5, True),
    ("bfloat16", 2**-3, False),
    ("float32", 2**-5, False),
    ("float32", 0.0, True),
])  # fmt: skip
def test_which_of_two_tied_tokens_comes_out_is_no_difference(dtype, behind, agrees):
    """Between 4 and 8 a bfloat16 has steps of 1/32; a token that was not kept is no tie."""
    logits = -torch.arange(80.0).expand(2, 80).clone()
    logits[:, 3], logits[:, 5] = 7.0, 7.0 - behind
    other = logits.clone()
    other[0, 5] = 7.5
    first = replace(recorded(logits), dtype=dtype)
    assert compare(first, recorded(other, first)).top1_agreement == (1.0 if agrees else 0.5)
    other[0, 79] = 9.0
    assert compare(first, recorded(other, first)).top1_agreement == 0.5


def test_a_figure_that_is_no_number_breaks_the_bound():
    """NaN is not below anything."""
    mine = recorded(torch.randn(3, 80))
    broken = compare(mine, replace(mine, logits=mine.logits * math.nan))
    assert list(BOUNDS["float32"].broken(broken))


def adapter_of(base, folder, dtype="float32", **keys):
    make_adapter(base, folder, target_modules=layers_of("llava"), **keys)
    write_recipe(recipe_of(base, data=DataSection.model_validate(DATA), model={"dtype": dtype}, search=SHORT), folder)
    return folder


def weaker(changes):
    """A scale that is wrong by a tenth."""
    return {
        name: replace(one, low_rank=replace(one.low_rank, scale=0.9 * one.low_rank.scale)) if one.low_rank else one
        for name, one in changes.items()
    }


def swapped(changes):
    """The updates of two layers of one shape in each other's place."""
    first, second = [name for name in changes if "language_model" in name and "q_proj" in name]
    return {**changes, first: changes[second], second: changes[first]}


def lost(changes):
    """What was trained whole is left as it is in the base."""
    assert any(one.replaced for one in changes.values())
    return {name: one for name, one in changes.items() if not one.replaced}


@pytest.fixture
def unchecked(monkeypatch):
    """Without the look at single weights: what the models' answers show by themselves."""
    monkeypatch.setattr(stream, "check_output", lambda *given: None)


@pytest.mark.parametrize("fault", [weaker, swapped, lost])
def test_faults_do_not_pass(make_base, tmp_path, monkeypatch, unchecked, fault):
    """A wrong scale, a swapped module, a lost modules_to_save: each breaks a bound, and no folder appears."""
    keys = {"modules_to_save": ["multi_modal_projector"]} if fault is lost else {}
    adapter = adapter_of(make_base("llava"), tmp_path / "adapter", **keys)
    read = onto.read_adapter

    def faulty(folder, model):
        found = read(folder, model)
        return replace(found, changes=fault(found.changes))

    monkeypatch.setattr(onto, "read_adapter", faulty)
    with pytest.raises(UnprovenError, match="not written: a merged model is not the adapter's model"):
        merge(adapter)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".adapter-merged.merging", "adapter", REFUSED]


REFUSED = "adapter-merged.refused.json"


def test_a_refused_merge_leaves_its_figures_and_its_files(make_base, tmp_path, monkeypatch, unchecked, capsys):
    """The next call writes no weight again, and when it comes to its end nothing is left of the refusal."""
    adapter = adapter_of(make_base("llava"), tmp_path / "adapter")
    bound = BOUNDS["float32"]
    monkeypatch.setitem(BOUNDS, "float32", replace(bound, kl=0.0, rounding=0.0))
    with pytest.raises(UnprovenError, match=rf"{REFUSED} · the finished files are in .*\.adapter-merged\.merging"):
        merge(adapter)
    told = json.loads((tmp_path / REFUSED).read_text())
    (figures,) = told["passes"]
    assert "KL from adapter to merged" in told["refused"][0] and figures["verified"] is False
    assert figures["adapter_vs_merged"]["kl"] > figures["bound"]["kl"] == 0 and figures["changed_values"] > 0
    monkeypatch.setitem(BOUNDS, "float32", bound)
    monkeypatch.setattr(stream, "_put", None)
    capsys.readouterr()
    merge(adapter)
    assert "going on: 1 of 1 files" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "adapter-merged"]


class NoMemory(torch.OutOfMemoryError):
    """As CUDA raises it."""


ERRORS = [NoMemory("CUDA out of memory"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_want_of_memory_is_said_in_a_sentence(make_base, tmp_path, monkeypatch, error):
    """With what to do; and what it names goes on with the finished files. Other faults are shown as they are."""
    adapter = adapter_of(make_base("llava"), tmp_path / "adapter")

    def fail(*given, **keys):
        raise error

    monkeypatch.setattr(measure, "record", fail)
    with pytest.raises(UnprovenError, match=r"memory ran out while .* · call it again with --no-verify") as caught:
        merge(adapter)
    assert caught.value.exit_code == 1 and not (tmp_path / "adapter-merged").exists()
    with monkeypatch.context() as patch:
        patch.setattr(stream, "_put", None)
        merge(adapter, onto="full", verify=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "adapter-merged"]
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        merge(adapter, tmp_path / "again", onto="full")


@pytest.mark.parametrize(("moved", "allowed"), [(0.0, 1e-5), (5e-5, 1e-5), (1e-3, 1e-4), (0.4, 5e-3)])
def test_the_bound_follows_what_the_adapter_moved(moved, allowed):
    """A tenth of it: at least what rounding takes, at most what any merge may."""
    bound = BOUNDS["bfloat16"].beside(moved)
    assert bound.kl == pytest.approx(allowed)
    own = compare(mine := recorded(torch.randn(3, 80)), mine)
    assert not list(bound.broken(replace(own, kl=allowed * 0.99))) and list(bound.broken(replace(own, kl=allowed * 1.01)))
    assert BOUNDS["float32"].beside(moved).kl == 1e-8


def test_samples_that_were_trained_on_are_named(make_base, tmp_path):
    """A recipe without held-out rows is verified on its own, and report, card and screen say so; nothing is chosen by them."""
    adapter = adapter_of(make_base("llava"), tmp_path / "adapter")
    data = DataSection.model_validate({"train": [{"source": "shapes", "limit": 3}]})
    write_recipe(recipe_of(make_base("llava"), data=data, search=SHORT), adapter)
    (report,) = merge(adapter).reports
    assert (report.probes, report.probes_from) == (3, "train")
    assert "3 samples that were trained on (none are held out)" in dict(report.lines())["measured on"]
    assert "3 samples that were trained on (none are held out)" in (tmp_path / "adapter-merged" / "README.md").read_text()
    section = QuantizationSection(load_in_4bit=True)
    write_recipe(recipe_of(make_base("llava"), data=data, quantization=section), adapter)
    with pytest.raises(RunError, match=r"names none but those .* · take --onto full or --onto dequantized, or name rows"):
        merge(adapter, tmp_path / "chosen")
    write_recipe(recipe_of(make_base("llava")), adapter)
    with pytest.raises(MergeError, match=r"no sample to verify .* · name rows in the recipe's data.eval, or .* --no-verify"):
        merge(adapter, tmp_path / "none")


def test_what_is_right_passes_with_all_figures(make_base, tmp_path):
    """In float32 to a billionth of a nat, every greedy answer the same; images were among the samples."""
    adapter = adapter_of(make_base("llava"), tmp_path / "adapter", modules_to_save=["multi_modal_projector"])
    (report,) = merge(adapter).reports
    own = report.adapter_vs_merged
    assert own.kl < 1e-10 and own.top1_agreement == 1 and own.answers_equal == own.questions == 6
    assert report.base_vs_merged.kl > 1e-4 and report.base_vs_merged.questions is None
    assert report.with_images == report.probes == 6 and report.probes_from == "held_out"
    assert "6 held-out samples" in dict(report.lines())["measured on"]
    card = (tmp_path / "adapter-merged" / "README.md").read_text()
    assert "6 held-out samples, 6 of them" in card and f"{report.changed_values:,} values in {report.changed_tensors}" in card
    kept = json.loads((tmp_path / "adapter-merged" / "merge_report.json").read_text())
    assert kept["verified"] and kept["bound"] == {"kl": 1e-8, "rounding": 1e-8, "top1_agreement": 0.999, "answers_equal": 1.0}
    assert kept["engines"]["vllm"] == "yes"


def half(base, folder):
    """The base in bfloat16."""
    model = load_backbone(ModelSection(base=str(base), dtype="bfloat16"))
    model.model.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_sixteen_bits_have_a_bound_of_their_own(make_base, tmp_path, monkeypatch):
    """A right merge in bfloat16 passes it, also where only the adapter was computed so; a wrong scale does not."""
    base = half(make_base("llava"), tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter", "auto")
    (report,) = merge(adapter, tmp_path / "right").reports
    half_bound = BOUNDS["bfloat16"]
    assert report.bound == half_bound.beside(report.base_vs_merged.kl) and 1e-10 < report.adapter_vs_merged.kl < 1e-5
    (report,) = merge(adapter_of(make_base("llava"), tmp_path / "mixed", "bfloat16"), tmp_path / "half").reports
    assert (report.dtype, report.bound) == ("float32", half_bound.beside(report.base_vs_merged.kl))
    read = onto.read_adapter
    monkeypatch.setattr(stream, "check_output", lambda *given: None)
    monkeypatch.setattr(onto, "read_adapter", lambda *given: replace(found := read(*given), changes=weaker(found.changes)))
    with pytest.raises(UnprovenError, match=r"agree on .* of .* tokens, and must on 98\.0%"):
        merge(adapter, tmp_path / "wrong")


def test_an_adapter_of_zeros_is_noticed_before_a_model_is_loaded(make_base, tmp_path, monkeypatch):
    """Also without verification."""
    from safetensors.torch import load_file, save_file

    adapter = adapter_of(make_base("llava"), tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    save_file({name: t * ("lora_B" not in name) for name, t in load_file(file).items()}, file)
    monkeypatch.setattr(measure, "load_backbone", None)
    for verify in (True, False):
        with pytest.raises(MergeError, match="the adapter changes nothing"):
            merge(adapter, onto="full", verify=verify)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
