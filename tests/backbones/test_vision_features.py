"""Vision features: transformers' own, computed once, never taken from an entry that is not whole and the image's own."""

import errno
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers.integrations import deepspeed

from lora_cot.backbones import feature_cache, vision_features
from lora_cot.backbones.feature_cache import FeatureMemory
from lora_cot.backbones.vision_features import KINDS, VisionFeatures
from lora_cot.data.images import open_image
from lora_cot.errors import BackboneError, DataError
from lora_cot.types import StoredImage

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SEES = {"image_size": 32, "patch_size": 8}
SHAPE = (17, 32)
CLOSE = {"rtol": 2e-3, "atol": 2e-3}
"""Two steps of float16: what batches of different sizes may differ by."""
ENCODERS = ["vit", "vit_with_pooler", "clip", "clip_with_text"]


def tiny_encoder(name):
    """(model, image processor) of a kind, random."""
    torch.manual_seed(0)
    if name == "vit":
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, **SEES))
    elif name == "vit_with_pooler":
        model = transformers.ViTModel(transformers.ViTConfig(**SIZES, **SEES))
    else:
        vision = transformers.CLIPVisionConfig(**SIZES, **SEES, projection_dim=16)
        text = transformers.CLIPTextConfig(**SIZES, vocab_size=50)
        config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
        model = transformers.CLIPModel(config) if name == "clip_with_text" else transformers.CLIPVisionModel(vision)
    if name.startswith("vit"):
        return model, transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    return model, transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Folder of a tiny encoder by its name."""
    made = {name: tmp_path_factory.mktemp("encoders") / name for name in ENCODERS}
    for name, folder in made.items():
        for part in tiny_encoder(name):
            part.save_pretrained(folder)
    return made


@pytest.fixture
def make(encoders, tmp_path):
    """Features by an encoder's name, kept in the test's own folder; each is another object."""

    def make(name="vit", **options):
        return VisionFeatures(name.split("_")[0], **{"encoder": str(encoders[name]), "cache": tmp_path / "kept", **options})

    return make


def picture(seed=0, size=(48, 40), mode="RGB", **options):
    """The bytes of an image's file."""
    file = io.BytesIO()
    bands = len(PILImage.new(mode, (1, 1)).getbands())
    noise = random.Random(seed).randbytes(size[0] * size[1] * bands)
    PILImage.frombytes(mode, size, noise).save(file, "PNG", **options)
    return file.getvalue()


def by_transformers(folder, image, processor_class=None):
    """What a reader of transformers' documentation would compute."""
    is_vit = folder.name.startswith("vit")
    model_class = transformers.ViTModel if is_vit else transformers.CLIPVisionModel
    processor_class = processor_class or (transformers.ViTImageProcessorPil if is_vit else transformers.CLIPImageProcessorPil)
    pixels = processor_class.from_pretrained(folder)(images=image, return_tensors="pt")
    with torch.inference_mode():
        return model_class.from_pretrained(folder).eval()(**pixels).last_hidden_state[0].half()


def entries(tmp_path):
    """Files of kept features."""
    return sorted((tmp_path / "kept").rglob("*.safetensors"))


@pytest.fixture
def decoded(monkeypatch):
    """Images that were decoded, in order."""
    seen = []

    def spy(image, max_pixels):
        seen.append(image)
        return open_image(image, max_pixels)

    monkeypatch.setattr(feature_cache, "open_image", spy)
    return seen


@pytest.mark.parametrize("name", ENCODERS)
def test_features_are_transformers_own(make, encoders, name):
    """Of an image with the processor's pixels, in float16; their shape is known before any weight is read."""
    features, image = make(name), picture()
    assert features.shape == SHAPE and features._loaded is None
    found = features.of(image)
    assert found.shape == SHAPE and found.dtype == torch.float16 and found.device.type == "cpu"
    torch.testing.assert_close(found, by_transformers(encoders[name], open_image(image)), rtol=0, atol=0)
    assert not found.is_inference() and found.std() > 0.1


def test_shapes_of_the_encoders_that_are_named_by_default(tmp_path, monkeypatch):
    """As the paper's B.1 has it for ViT; CLIP's, by its config as it is on the hub, is another than the paper's."""
    large = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24}
    configs = {
        "vit": {"model_type": "vit", **large, "image_size": 384, "patch_size": 32},
        "clip": {"model_type": "clip", "vision_config": {**large, "image_size": 336, "patch_size": 14}},
    }
    for kind, config in configs.items():
        snapshot = tmp_path / kind / "snapshots" / "0123abc"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps(config))
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, at=snapshot, **__: str(at / "config.json"))
        features = VisionFeatures(kind, cache=tmp_path)
        assert features.encoder == KINDS[kind].encoder and features.revision is None
        assert features.shape == {"vit": (145, 1024), "clip": (577, 1024)}[kind]
        assert features._encoder.revision == "0123abc", "everything else is read of the commit that config.json is of"


@pytest.mark.parametrize("named", ["DeiTFeatureExtractor", "DeiTImageProcessorFast", "ViTFeatureExtractor", None])
def test_images_are_prepared_as_the_checkpoint_says(make, encoders, tmp_path, named):
    """DeiT's are ViTs of which each image's middle is shown; older checkpoints name their processor otherwise."""
    folder = shutil.copytree(encoders["vit"], tmp_path / "vit_named")
    values = {"size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    is_deit = named is not None and named.startswith("DeiT")
    values |= {"size": 40, "do_center_crop": True, "crop_size": 32} if is_deit else {}
    key = "feature_extractor_type" if named and "Extractor" in named else "image_processor_type"
    (folder / "preprocessor_config.json").write_text(json.dumps({**values, **({key: named} if named else {})}))
    own = transformers.DeiTImageProcessorPil if is_deit else transformers.ViTImageProcessorPil
    expected = by_transformers(folder, open_image(picture()), own)
    torch.testing.assert_close(make(encoder=str(folder)).of(picture()), expected, rtol=0, atol=0)


def test_images_that_are_not_square(tmp_path):
    """Height and width of image and patch may be given apart."""
    config = {"model_type": "vit", "hidden_size": 8, "num_attention_heads": 2, "image_size": [32, 64], "patch_size": [8, 16]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert VisionFeatures("vit", str(tmp_path)).shape == (4 * 4 + 1, 8)


def test_what_is_kept_is_what_would_be_computed(make, tmp_path, decoded, capsys):
    """To the last bit, from memory and from disk, filled or asked for; what is kept is never decoded."""
    images = [picture(seed, (20 + seed, 30)) for seed in range(5)]
    alone = [make(cache=tmp_path / "elsewhere").of(image) for image in images]
    filling = make()
    filling._memory = FeatureMemory(limit=1000)
    assert filling.fill([*images, images[0]]) == 5 and len(entries(tmp_path)) == 5
    decoded.clear()
    for features in (filling, make(), pickle.loads(pickle.dumps(filling))):
        for again in range(2):
            assert all(torch.equal(features.of(image), own) for image, own in zip(images, alone, strict=True)), again
    assert make().fill(images) == 0 and not decoded and not list((tmp_path / "kept").rglob(".*"))


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_batches_of_other_sizes_differ_by_rounding(make, monkeypatch, name):
    """And are cut up right: each image gets its own features."""
    monkeypatch.setitem(vision_features.BATCH, "cpu", 4)
    images = [picture(seed) for seed in range(6)]
    features = make(name)
    assert features.fill(images) == 6
    monkeypatch.setitem(vision_features.BATCH, "cpu", 1)
    fresh = make(name, cache=features.cache / "fresh")
    for image in images:
        torch.testing.assert_close(features.of(image), fresh.of(image), **CLOSE)
    sizes = {tensor.untyped_storage().nbytes() for tensor in features._memory._kept.values()}
    assert sizes == {17 * 32 * 2}, "no image keeps its whole batch in memory"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["vit", "clip"])
def test_a_gpu_computes_the_same(make, monkeypatch, name):
    """But for rounding: a model trained on features of a GPU answers on a CPU."""
    images, features = [picture(seed) for seed in range(6)], make(name)
    assert features.fill(images) == 6
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fresh = make(name, cache=features.cache / "fresh")
    for image in images:
        torch.testing.assert_close(features.of(image), fresh.of(image), **CLOSE)


def test_filling_says_how_far_it_is_and_frees_the_encoder(make, capsys):
    """On standard error, with the time left; nothing at all where nothing is missing, transformers' own talk included."""
    features = make()
    assert features.fill([picture(seed) for seed in range(3)]) == 3 and features._loaded is None
    said = capsys.readouterr()
    assert not said.out and "vision features: 100%" in said.err and "3/3" in said.err and "<" in said.err
    assert "LOAD REPORT" not in said.err and "Loading weights" not in said.err
    assert features.fill([picture(seed) for seed in range(3)]) == 0 and features.fill([]) == 0
    assert capsys.readouterr() == ("", "")


def test_duplicates_are_computed_once(make, tmp_path, decoded):
    """A file, its bytes, and the same in a table are one image."""
    path = tmp_path / "a.png"
    path.write_bytes(picture())
    stored = StoredImage([{"image": {"bytes": picture()}}], 0, "image")
    assert make().fill([path, picture(), stored, path]) == 1 and len(decoded) == 1 == len(entries(tmp_path))


def test_a_file_that_changes_is_another_image(make, tmp_path, monkeypatch):
    """Even one that is written twice in one tick of the clock; one that has not changed for long is read once."""
    path, features = tmp_path / "a.png", make()
    path.write_bytes(picture(0))
    first, times = features.of(path), path.stat().st_mtime_ns
    path.write_bytes(picture(1))
    os.utime(path, ns=(times, times))
    assert not torch.equal(first, features.of(path))
    path.write_bytes(picture(0))
    os.utime(path, ns=(1, 1))
    assert torch.equal(first, features.of(path))
    monkeypatch.setattr(feature_cache.hashlib, "file_digest", None)
    assert torch.equal(first, features.of(path))


def test_other_weights_are_another_encoder(make, encoders, tmp_path):
    """So is another processor, or another kind of the same file; a copy in another folder is the same."""
    copy = shutil.copytree(encoders["vit"], tmp_path / "copy")
    keys = [make()._encoder.key(), make(encoder=str(copy))._encoder.key()]
    assert keys[0] == keys[1] and keys[0].startswith("vit-")
    image = picture()
    before = make(encoder=str(copy)).of(image)
    weights = load_file(copy / "model.safetensors")
    weights["vit.embeddings.cls_token"][0, 0, 3] += 1
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    keys.append(make(encoder=str(copy))._encoder.key())
    assert not torch.equal(make(encoder=str(copy)).of(image), before)
    preprocessor = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps({**preprocessor, "image_mean": [0.1, 0.1, 0.1]}))
    keys.append(make(encoder=str(copy))._encoder.key())
    assert len({*keys}) == 3


def test_a_hub_encoder_is_known_by_its_commit(make, encoders, tmp_path, monkeypatch):
    """`main` moves; weights and processor are read of the commit that the features are named after."""
    commits, asked, keys = iter(["c1", "c2"]), [], []
    taken = {"from_pretrained": transformers.ViTModel, "get_image_processor_dict": transformers.BaseImageProcessor}
    for name, owner in taken.items():
        real = getattr(owner, name)

        def load(path, revision, real=real, **options):
            asked.append((path, revision))
            return real(encoders["vit"], **options)

        monkeypatch.setattr(owner, name, load)
    for _ in range(2):
        snapshot = shutil.copytree(encoders["vit"], tmp_path / "snapshots" / next(commits))
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, at=snapshot, **__: str(at / "config.json"))
        features = make(encoder="some/vit")
        features.of(picture())
        features.save(tmp_path / "saved")
        keys.append(features._encoder.key())
    assert keys[0] != keys[1] and len(entries(tmp_path)) == 2
    assert asked == [("some/vit", "c1")] * 2 + [("some/vit", "c2")] * 2
    assert not (tmp_path / "saved").exists()


def spoiled(path, how, others):
    """An entry that is no longer what was written."""
    data = path.read_bytes()
    if how == "torn":
        path.write_bytes(data[:-7])
    elif how == "longer":
        path.write_bytes(data + b"x")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "noise":
        path.write_bytes(random.Random(0).randbytes(len(data)))
    elif how == "zeros at its end":
        path.write_bytes(data[:-40] + bytes(40))
    elif how == "another image's":
        shutil.copyfile(others, path)
    elif how == "another name":
        save_file({"pixels": torch.zeros(SHAPE, dtype=torch.float16)}, path)
    elif how == "another shape":
        save_file({"features": torch.zeros(3, 32, dtype=torch.float16)}, path)
    elif how == "bfloat16":
        save_file({"features": torch.zeros(SHAPE, dtype=torch.bfloat16)}, path)
    elif how == "a folder":
        path.unlink()
        path.mkdir()


WHOLE = [
    "torn",
    "longer",
    "empty",
    "noise",
    "zeros at its end",
    "another image's",
    "another name",
    "another shape",
    "bfloat16",
]


@pytest.mark.parametrize("how", [*WHOLE, "a folder"])
def test_what_is_not_an_images_own_entry_is_computed_anew(make, tmp_path, how, capsys):
    """And mended, where it is a file: the next process finds it whole."""
    image, features = picture(0), make()
    true = features.of(image)
    (path,) = entries(tmp_path)
    features.of(picture(1))
    (other,) = [entry for entry in entries(tmp_path) if entry != path]
    whole = path.read_bytes()
    spoiled(path, how, other)
    assert torch.equal(make().of(image), true)
    assert path.is_dir() if how == "a folder" else path.read_bytes() == whole
    assert ("vision features are not kept" in capsys.readouterr().err) == (how == "a folder")


@pytest.mark.parametrize("how", ["torn", "longer", "empty", "another shape"])
def test_filling_mends_what_is_of_another_length(make, tmp_path, how):
    """It looks at the length alone."""
    make().of(picture())
    (path,) = entries(tmp_path)
    whole = path.read_bytes()
    spoiled(path, how, None)
    assert make().fill([picture()]) == 1 and path.read_bytes() == whole


def fill_here(kind, encoder, cache, images):
    """In a process of its own."""
    VisionFeatures(kind, encoder, cache=cache).fill(images)


def test_two_processes_at_once(make, encoders, tmp_path):
    """Each finds every entry whole, whoever wrote it, and nothing else is left."""
    images = [picture(seed) for seed in range(12)]
    context = multiprocessing.get_context("fork")
    given = ("vit", str(encoders["vit"]), tmp_path / "kept", images)
    processes = [context.Process(target=fill_here, args=given) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(entries(tmp_path)) == 12 and not list((tmp_path / "kept").rglob(".*"))
    assert make().fill(images) == 0
    fresh = make(cache=tmp_path / "fresh")
    assert all(torch.equal(make().of(image), fresh.of(image)) for image in images)


def test_without_a_folder_to_keep_them_in(make, tmp_path, capsys):
    """It is said once, and every feature is there: in memory, or computed again."""
    (tmp_path / "file").write_text("")
    features = make(cache=tmp_path / "file" / "kept")
    images = [picture(seed) for seed in range(4)]
    true = [make(cache=tmp_path / "fresh").of(image) for image in images]
    assert features.fill(images) == 4 and features.fill(images) == 0
    features._memory = FeatureMemory(limit=2 * 17 * 32 * 2)
    assert features.fill(images) == 2, "no more than memory holds: the rest would be thrown away"
    assert all(torch.equal(features.of(image), own) for image, own in zip(images, true, strict=True))
    assert capsys.readouterr().err.count("vision features are not kept") == 1


def test_a_full_disk(make, tmp_path, monkeypatch, capsys):
    """The entry that did not fit leaves nothing behind, and what was kept before is still found."""
    features = make()
    kept = features.of(picture(0))

    def full(path, data):
        open(path, "wb").close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert features.of(picture(1)).shape == SHAPE
    assert "No space left on device" in capsys.readouterr().err
    assert len(entries(tmp_path)) == 1 and not list((tmp_path / "kept").rglob(".*"))
    assert torch.equal(make().of(picture(0)), kept)


def test_memory_forgets_what_was_not_asked_for_the_longest():
    """And holds no more bytes than it may."""
    memory = FeatureMemory(limit=250)
    for name in "abc":
        memory.put(name, torch.zeros(50, dtype=torch.float16))
        memory.get("a")
        assert memory.used <= 250
    assert memory.get("a") is not None and memory.get("c") is not None and memory.get("b") is None
    memory.put("huge", torch.zeros(1000))
    assert memory.used == 0 and memory.get("huge") is None


def test_memory_is_neither_written_to_nor_decoded_for(make, tmp_path, decoded):
    """What a caller does with its features is its own affair; nor is the disk asked twice."""
    features = make()
    features.of(picture()).zero_()
    shutil.rmtree(tmp_path / "kept")
    assert features.of(picture()).std() > 0.1 and len(decoded) == 1


def test_pickled_without_its_encoder(make):
    """Which is as large as the encoder; what was found out of it travels."""
    features = make()
    features.of(picture())
    assert features._loaded is not None
    data = pickle.dumps(features)
    copy = pickle.loads(data)
    assert len(data) < 5000 and copy._loaded is None and copy._memory.used == 0
    assert (copy.shape, copy._encoder) == (features.shape, features._encoder)


def test_workers_compute_on_the_cpu_what_is_missing(make, tmp_path, monkeypatch):
    """Whatever GPU there is: a forked process cannot use it."""
    features, images = make(), [picture(seed) for seed in range(3)]
    features._loaded = SimpleNamespace(device=torch.device("cuda", 0))  # what a fork inherits
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loader = DataLoader(
        images, batch_size=3, collate_fn=lambda batch: torch.stack([features.of(i) for i in batch]), num_workers=1
    )
    (found,) = loader
    monkeypatch.undo()
    fresh = make(cache=tmp_path / "fresh")
    assert torch.equal(found, torch.stack([fresh.of(image) for image in images]))


def test_computing_changes_nothing_of_the_process(make, monkeypatch):
    """Neither its random numbers nor its precision nor how it loads other models; nor is it changed by them."""
    config, seen = Mock(), []
    deepspeed.set_hf_deepspeed_config(config)
    torch.backends.fp32_precision = "tf32"
    cudnn = torch.backends.cudnn

    def units():
        return [unit.fp32_precision for unit in (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)]

    forward = transformers.ViTModel.forward

    def spy(*args, **kwargs):
        seen.append((units(), torch.is_autocast_enabled("cpu")))
        return forward(*args, **kwargs)

    monkeypatch.setattr(transformers.ViTModel, "forward", spy)
    try:
        before, state = units(), torch.get_rng_state()
        alone = make().of(picture(0))
        assert torch.equal(state, torch.get_rng_state()) and units() == before == ["tf32"] * 3
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()
        torch.backends.fp32_precision = "none"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(make(cache=make().cache / "fresh").of(picture(0)), alone)
    assert seen[0] == (["ieee"] * 3, False) and not seen[1][1]


def turned():
    """A picture that its camera held sideways."""
    exif = PILImage.Exif()
    exif[0x0112] = 6
    return picture(3, (40, 24), exif=exif)


ODD = {
    "turned": turned(),
    "grey": picture(4, mode="L"),
    "transparent": picture(5, mode="RGBA"),
    "small": picture(6, (4, 4)),
    "long": picture(7, (400, 8)),
}


@pytest.mark.parametrize("name", ["vit", "clip"])
@pytest.mark.parametrize("image", ODD.values(), ids=ODD.keys())
def test_images_are_upright_and_rgb(make, encoders, image, name):
    """As everywhere else."""
    expected = by_transformers(encoders[name], open_image(image))
    torch.testing.assert_close(make(name).of(image), expected, rtol=0, atol=0)


BAD = {
    "truncated": (picture()[:-300], r"image is truncated or damaged"),
    "text": (b"not an image", r"not an image in a known format"),
    "huge": (picture(0, (200, 200)), r"200×200 is more than 10,000 pixels"),
}


@pytest.mark.parametrize("way", ["of", "fill"])
@pytest.mark.parametrize("name", BAD)
def test_images_that_cannot_be_used(make, tmp_path, name, way):
    """Are named, in our words, and leave nothing; those before them in a data set are kept."""
    data, match = BAD[name]
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    features = make()
    for image, where in (
        (path, "bad.png"),
        (data, f"{len(data):,} bytes"),
        (StoredImage([{"i": {"bytes": data}}], 0, "i"), "row 0 · i"),
    ):
        with pytest.raises(DataError, match=f"{where} · .*{match}"):
            features.of(image, 10_000) if way == "of" else features.fill([picture(1), image], 10_000)
    assert len(entries(tmp_path)) == (way == "fill")


def test_images_that_are_not_there(make, tmp_path):
    """A file that is gone, a folder, a row without an image."""
    features = make()
    with pytest.raises(DataError, match=r"gone\.png · no such image file"):
        features.of(tmp_path / "gone.png")
    with pytest.raises(DataError, match="cannot be read"):
        features.fill([tmp_path])
    with pytest.raises(DataError, match=r"row 0 · image"):
        features.of(StoredImage([{"image": {"bytes": None}}], 0, "image"))


def test_features_that_are_no_numbers(make, encoders, tmp_path):
    """Are an error that names the image, and are not kept."""
    folder = shutil.copytree(encoders["vit"], tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    weights["vit.embeddings.cls_token"][0, 0, 3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    path = tmp_path / "a.png"
    path.write_bytes(picture())
    with pytest.raises(BackboneError, match=r"model\.vision_encoder .*a\.png are not finite numbers"):
        make(encoder=str(folder)).of(path)
    assert not entries(tmp_path)


def test_kinds_that_do_not_exist():
    """As soon as they are named."""
    with pytest.raises(BackboneError, match=r"model\.vision_features · no vision features 'vitt' · did you mean 'vit'\?"):
        VisionFeatures("vitt")


def lacking(folder, how):
    """A folder of an encoder that cannot be loaded."""
    if how == "config":
        (folder / "config.json").unlink()
    elif how == "damaged config":
        (folder / "config.json").write_text("[]")
    elif how == "impossible config":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "patch_size": 0}))
    elif how == "another model":
        (folder / "config.json").write_text('{"model_type": "bert"}')
    elif how == "weights":
        (folder / "model.safetensors").unlink()
    elif how == "torn weights":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif how == "a tensor":
        weights = load_file(folder / "model.safetensors")
        weights.pop("vit.embeddings.cls_token")
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    elif how == "processor":
        (folder / "preprocessor_config.json").unlink()
    elif how == "another processor":
        (folder / "preprocessor_config.json").write_text('{"image_processor_type": "OwnImageProcessor"}')
    elif how == "its size":
        preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(json.dumps({**preprocessor, "size": {"height": 30, "width": 40}}))


LACKING = {
    "config": r"the folder holds no config\.json · name a checkpoint's folder",
    "damaged config": r"its config\.json is no such encoder's · download it again",
    "impossible config": r"its config\.json is no such encoder's · download it again",
    "another model": r"a model of type 'bert' gives no 'vit' features · allowed for 'vit': vit",
    "weights": r"cannot be loaded: .* · name a folder or hub id with weights",
    "torn weights": r"cannot be loaded: .* · name a folder or hub id with weights",
    "a tensor": r"its weights lack 1 tensors, embeddings\.cls_token among them",
    "processor": r"cannot be loaded: .*preprocessor_config",
    "another processor": r"cannot be loaded: .*OwnImageProcessorPil",
    "its size": r"its processor makes 40×30 pixels of an image, it takes 32×32",
}


@pytest.mark.parametrize("how", LACKING)
def test_encoders_that_cannot_be_used(make, encoders, tmp_path, how):
    """What is wrong with the folder, and what to do."""
    folder = shutil.copytree(encoders["vit"], tmp_path / "vit")
    lacking(folder, how)
    with pytest.raises(BackboneError, match=rf"model\.vision_encoder {folder} · {LACKING[how]}"):
        make(encoder=str(folder)).of(picture())


def test_the_kind_that_reads_an_encoder_is_named(make, encoders):
    """Where there is one."""
    with pytest.raises(
        BackboneError, match=r"type 'clip_vision_model' gives no 'vit' features · set model\.vision_features: clip"
    ):
        _ = make(encoder=str(encoders["clip"])).shape


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (LocalEntryNotFoundError("no network"), r"neither a folder nor a hub id that can be read"),
        (
            GatedRepoError("gated", response=SimpleNamespace(headers={}, request=None, status_code=403)),
            r"access .* not granted",
        ),
    ],
)
def test_hub_encoders_that_cannot_be_read(make, monkeypatch, error, match):
    """The recipe's key is named."""

    def refuse(*args, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(BackboneError, match=rf"model\.vision_encoder some/vit · {match}"):
        _ = make(encoder="some/vit").shape


def test_a_saved_encoder_is_the_same(make, encoders, tmp_path, decoded):
    """From its copy beside a model, everything that was kept is found; nothing else of the folder is copied."""
    folder = shutil.copytree(encoders["vit"], tmp_path / "vit")
    (folder / "training_args.bin").write_text("")
    (folder / "README.md").write_text("")
    features = make(encoder=str(folder))
    true = features.of(picture())
    features.save(tmp_path / "model")
    copy = make(encoder=str(tmp_path / "model" / "vision_encoder"))
    copy.save(tmp_path / "model")
    names = {path.name for path in (tmp_path / "model" / "vision_encoder").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    decoded.clear()
    assert torch.equal(copy.of(picture()), true) and not decoded


def test_they_are_kept_where_everything_is(monkeypatch, tmp_path):
    """Below LORA_COT_CACHE, or the home folder's cache."""
    monkeypatch.setenv("LORA_COT_CACHE", str(tmp_path))
    assert VisionFeatures("vit").cache == tmp_path / "features"
    monkeypatch.setenv("LORA_COT_CACHE", "")
    assert VisionFeatures("vit").cache == Path.home() / ".cache" / "lora_cot" / "features"
