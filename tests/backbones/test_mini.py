"""Miniature bases: made from what their specification says, and found again without being made twice."""

import copy
import json

import pytest
import torch
from diffusers import UNet2DConditionModel

from lora_cot.backbones import diffusion
from lora_cot.backbones.loading import load_backbone
from lora_cot.backbones.mini import build, corpus, t5_diffusion, teaching
from lora_cot.backbones.mini.build import MINIS, MiniSpec, Phase
from lora_cot.backbones.t5_vision import no_tokens
from lora_cot.data import shapes
from lora_cot.data.collate import Collator
from lora_cot.data.lengths import LengthLimit
from lora_cot.formats import FORMATS
from lora_cot.recipe.model import ModelSection

SMALL = MiniSpec("llava", (Phase(2, 4, {"captions": 1.0, "judging": 1.0}),), width=64, layers=1)


@pytest.mark.parametrize("kind", corpus.MAKERS)
def test_the_corpus_is_the_same_for_the_same_number(kind):
    """What a base is taught follows from the number of the sample alone, and never shows a test scene."""
    assert [corpus.make(kind, n) for n in range(5)] == [corpus.make(kind, n) for n in range(5)]
    for number in range(30):
        assert shapes.scene_of(number, "train", corpus.SEED)[0].split() == "train"


def test_a_judge_is_shown_one_right_text_in_either_place():
    """The two conclusions differ in one word; the right one comes first about half of the time."""
    samples = [corpus.make("judging", n) for n in range(200)]
    for sample in samples:
        lines = sample.last.question.split("\n")
        first, second = (line.split(": ", 1)[1].split() for line in lines if line.startswith("Response"))
        assert len(first) == len(second) and sum(a != b for a, b in zip(first, second, strict=True)) == 1
    assert 70 < sum(sample.last.answer == "1" for sample in samples) < 130


def test_no_base_is_taught_the_format():
    """No text of the corpus has the four stages in order: fine-tuning teaches that."""
    for kind in corpus.MAKERS:
        for number in range(100):
            assert FORMATS["four_stage"].parse(corpus.make(kind, number).last.answer).outcome != "complete"


def test_a_base_is_built_once_and_found_again(tmp_path, monkeypatch):
    """The first use builds it with a specification beside it; the second finds it; another specification is another base."""
    monkeypatch.setenv("LORA_COT_CACHE", str(tmp_path))
    monkeypatch.setitem(MINIS, "small", SMALL)
    folder = build.locate("small")
    assert json.loads((folder / "built_from.json").read_text())["phases"][0]["steps"] == 2
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    assert build.locate("small") == folder and (folder / "model.safetensors").stat().st_mtime_ns == weights
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    backbone = load_backbone(ModelSection(base="mini/small"))
    assert str(backbone.model.dtype) == "torch.bfloat16"
    monkeypatch.setitem(MINIS, "small", MiniSpec("llava", SMALL.phases, width=64, layers=1, seed=1))
    assert build.locate("small") != folder


def test_a_base_that_is_built_twice_at_once_is_the_first(tmp_path, monkeypatch):
    """Ranks that find none all build it: each goes on with the one that was there first."""
    monkeypatch.setenv("LORA_COT_CACHE", str(tmp_path))
    monkeypatch.setitem(MINIS, "small", SMALL)
    made = build.random_base

    def meanwhile(spec):
        monkeypatch.setattr(build, "random_base", made)
        first.append(build.locate("small", taught=False))
        (first[0] / "first").touch()
        return made(spec)

    first = []
    monkeypatch.setattr(build, "random_base", meanwhile)
    folder = build.locate("small", taught=False)
    assert [folder] == first and (folder / "first").is_file()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["llava", "t5_diffusion"])
def test_the_shipped_base_is_what_its_specification_makes(name):
    """The base that comes along was made from the specification in the code; it is small."""
    folder = build.SHIPPED / name
    assert build.locate(name) == folder
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000


@pytest.fixture
def collate(tiny):
    """A collator of the corpus, as building a base uses it."""
    limit = LengthLimit(tiny.encoder(FORMATS["direct"]), tiny.family.image_tokens)
    return Collator(limit, tiny.family.image_inputs)


def test_verdicts_and_texts_are_two_means(tiny, collate):
    """The loss is the mean over the texts' tokens plus the mean over the verdicts' tokens."""
    texts, verdict = [corpus.make("captions", n) for n in range(3)], corpus.make("judging", 0)
    both, first, second = (teaching._loss(tiny, collate, [group]).item() for group in ([*texts, verdict], texts, [verdict]))
    assert both == pytest.approx(first + second, rel=1e-4)


def test_groups_that_share_no_forward_share_the_means(tiny, collate):
    """However samples are put into groups, the loss is the same: a mean over all tokens, not over groups."""
    kinds = ("captions", "reasoning", "judging", "direct")
    samples = [corpus.make(kind, number) for number in range(2) for kind in kinds]
    apart = [[s for s in samples if bool(s.images) == images] for images in (False, True)]
    together = teaching._loss(tiny, collate, [samples]).item()
    assert teaching._loss(tiny, collate, apart).item() == pytest.approx(together, rel=1e-4)


@pytest.mark.slow
def test_a_vae_is_taught_to_paint_and_a_unet_to_find_noise():
    """Better than it began, its latents of the size that the usual scale factor is for."""
    torch.manual_seed(0)
    pixels = t5_diffusion.scenes(40, 32)
    vae = t5_diffusion.teach_to_paint(pixels, steps=20, batch=8)
    with torch.no_grad():
        painted = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    assert (painted - pixels).square().mean() < 0.9 * pixels.var()
    latents = t5_diffusion.latents_of(vae, pixels)
    assert latents.shape == (40, 4, 8, 8) and latents.std() == pytest.approx(1, rel=1e-3)
    unet = UNet2DConditionModel.from_config(t5_diffusion.unet_config())
    before = noise_loss(unet, latents)
    t5_diffusion.teach_to_clean(unet, latents, 500, steps=8, batch=8)
    assert noise_loss(unet, latents) < 0.9 * before


@torch.no_grad()
def noise_loss(unet, latents):
    """At one step, with the same noise each time."""
    noise, places = diffusion.own_noise(range(len(latents)), latents), torch.full((len(latents),), 300)
    given = diffusion.noised(latents, noise, diffusion.kept(t5_diffusion.scheduler_config())[places])
    nothing = torch.zeros(len(latents), 1, t5_diffusion.CONTEXT_WIDTH)
    return (unet(given, places, nothing).sample - noise).square().mean()


@pytest.mark.slow
def test_a_base_with_learned_latents_is_taught_by_its_noise_too(load_tiny):
    """Its loss has the mean over the images of the batch; of texts alone there is none."""
    backbone = copy.deepcopy(load_tiny("t5_diffusion"))
    backbone.model.train()
    collate = Collator(LengthLimit(backbone.encoder(FORMATS["direct"]), no_tokens), backbone.family.image_inputs)
    for mixture, count in (({"captions": 1.0}, 1), ({"reasoning": 1.0}, 0)):
        batch = collate([{"sample": sample} for sample in corpus.draw_batch(mixture, 3, 0)])
        torch.manual_seed(0)
        logits, labels, further = teaching._label_logits(backbone, batch)
        assert logits.shape[:2] == labels.shape and len(further) == count
        for loss in further:
            torch.manual_seed(0)
            inputs = {key: value for key, value in batch.items() if key not in ("labels", "stage_ids")}
            assert loss.item() == pytest.approx(float(backbone.model.decoded(labels, **inputs)[1]["noise"]) / 3, rel=1e-4)
