"""Frozen vision encoders: which there are, what is told by their files alone, and from an image to its features.

Multimodal-CoT (arXiv 2302.00923, B.1) takes its features from ViT-L/32 at 384 pixels, from CLIP, DETR or a ResNet. Its ViT
is ours. Its CLIP is an RN101, (49, 2048), which transformers does not have: ours is CLIP's ViT-L/14. DETR's checkpoints need
timm, and a ResNet's one vector, repeated 512 times as in the released code, tells no more than one patch: both are left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image as PILImage

from lora_cot.backbones.feature_cache import file_hash
from lora_cot.errors import BackboneError, Problem
from lora_cot.hub import checkpoint_file, quietly

KEY = "model.vision_encoder"
VERSION = 1
"""Of how features are computed here: a change of it makes all that were kept useless."""
FILES = ("config.json", "preprocessor_config.json", "processor_config.json", "model*.safetensors*", "pytorch_model*.bin*")
"""Of a folder, what the features depend on."""


@dataclass(frozen=True)
class Kind:
    """One kind of vision features. The features are the encoder's last hidden state: the class token, then each patch."""

    encoder: str
    """Hub id of the encoder, unless another is named."""
    shape: tuple[int, int]
    """(P, D_image) of its features."""
    model_types: tuple[str, ...]
    """Values of `model_type` in the config.json of what it reads."""
    model: str
    """Its class in transformers."""
    processor: str
    """Its image processor's, where its preprocessor_config.json names none."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the model is loaded with."""


KINDS = {
    "vit": Kind(
        "google/vit-large-patch32-384", (145, 1024), ("vit",), "ViTModel", "ViTImageProcessor", {"add_pooling_layer": False}
    ),  # after the final norm
    "clip": Kind(
        "openai/clip-vit-large-patch14-336",
        (577, 1024),
        ("clip", "clip_vision_model"),
        "CLIPVisionModel",
        "CLIPImageProcessor",
    ),  # CLIP has no norm after its last layer but for the class token
}
"""Kinds by name: `model.vision_features`."""


class FoundEncoder(Protocol):
    """An encoder that is known and not loaded."""

    @property
    def path(self) -> str:
        """Folder or hub id."""

    @property
    def revision(self) -> str | None:
        """Commit of a hub id."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image's features."""

    def key(self) -> str:
        """Name of its features: whatever changes them changes it."""

    def load(self, device: torch.device) -> Any:
        """It with its weights: a `LoadedEncoder`, or what has `device`, `pixels` and `features` as that has."""


@dataclass(frozen=True)
class DescribedEncoder:
    """An encoder of which nothing was read but its config.json."""

    kind: str
    path: str
    """Folder or hub id."""
    revision: str | None
    """Commit of a hub id, so that all that is read of it is of one commit; None of a folder."""
    image_size: tuple[int, int]
    """Height and width of what it takes, in pixels."""
    shape: tuple[int, int]
    """(P, D_image) of an image's features."""
    config: dict[str, Any] = field(compare=False, repr=False)
    """As transformers writes it."""

    def key(self) -> str:
        """Name of its features: whatever changes them changes it. Another Pillow or torch does not, by a rounding error."""
        files = {path.name: file_hash(path) for path in encoder_files(Path(self.path))} if self.revision is None else {}
        made_of = repr((VERSION, self.kind, self.revision, sorted(files.items())))
        return f"{self.kind}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"

    def load(self, device: torch.device) -> LoadedEncoder:
        """See `LoadedEncoder`."""
        return LoadedEncoder(self, device)


def encoder_files(folder: Path) -> list[Path]:
    """The files of a folder that an encoder is read from."""
    return sorted(path for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in FILES))


def find_encoder(kind: str, path: str, revision: str | None) -> DescribedEncoder:
    """An encoder by what its config.json says.

    Raises:
        BackboneError: there is none, or it is of another kind.
    """
    config_file = checkpoint_file(KEY, path, "config.json", revision)
    commit = None if Path(path).is_dir() else config_file.parent.name
    try:
        found = json.loads(config_file.read_text(encoding="utf-8"))
        model_type = found.get("model_type", "")
    except (ValueError, AttributeError):
        raise _damaged(path) from None
    if model_type not in KINDS[kind].model_types:
        others = [f"model.vision_features: {name}" for name, other in KINDS.items() if model_type in other.model_types]
        remedy = f"set {others[0]}" if others else f"allowed for '{kind}': {', '.join(KINDS[kind].model_types)}"
        raise BackboneError(Problem(f"{KEY} {path}", f"a model of type '{model_type}' gives no '{kind}' features", remedy))
    return described(kind, path, commit, found.get("vision_config", found))


def described(kind: str, path: str, revision: str | None, values: Mapping[str, Any]) -> DescribedEncoder:
    """An encoder by the values of its configuration.

    Raises:
        BackboneError: they are none of such an encoder.
    """
    import transformers

    try:
        config = getattr(transformers, KINDS[kind].model).config_class.from_dict(dict(values))
        size, patch = _sides(config.image_size), _sides(config.patch_size)
        patches = (size[0] // patch[0]) * (size[1] // patch[1])
        return DescribedEncoder(kind, path, revision, size, (patches + 1, config.hidden_size), config.to_dict())
    except Exception:  # each config checks its values in its own way
        raise _damaged(path) from None


def _damaged(path: str) -> BackboneError:
    return BackboneError(Problem(f"{KEY} {path}", "its config.json is no such encoder's", "download it again"))


def _sides(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class LoadedEncoder:
    """An encoder with its weights, in float32 whatever they were saved in."""

    def __init__(self, encoder: DescribedEncoder, device: torch.device):
        """
        Args:
            encoder: which.
            device: where it computes.

        Raises:
            BackboneError: its weights or its processor are missing or damaged.
        """
        import transformers

        kind = KINDS[encoder.kind]
        self.encoder, self.device = encoder, device
        options = {"revision": encoder.revision} if encoder.revision else {}
        with _said_by_us(encoder), quietly(), _whole():
            self._processor = image_processor(encoder)
            model, loaded = getattr(transformers, kind.model).from_pretrained(
                encoder.path, dtype=torch.float32, output_loading_info=True, **options, **kind.options
            )
        if loaded["missing_keys"]:
            what = f"its weights lack {len(loaded['missing_keys'])} tensors, {min(loaded['missing_keys'])} among them"
            raise BackboneError(Problem(f"{KEY} {encoder.path}", what, "name a checkpoint of the whole encoder"))
        self.model = model.to(device).eval().requires_grad_(False)

    def pixels(self, image: PILImage.Image) -> torch.Tensor:
        """See `read_pixels`."""
        return read_pixels(image, self._processor, self.encoder)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, P, D_image) float16 on the CPU, of (B, 3, height, width). Finite unless the weights or pixels are not.

        Images are computed together only on a GPU (`VisionFeatures.fill`): the last digit can depend on what else is in
        the batch.
        """
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), full_precision():
            states = self.model(pixel_values=pixels.to(self.device)).last_hidden_state
        return states.to("cpu", torch.float16)


def read_pixels(image: PILImage.Image, processor: Any, encoder: DescribedEncoder) -> torch.Tensor:
    """(3, height, width) as an encoder's own processor scales, crops and normalises an image.

    Raises:
        BackboneError: of another size than the encoder takes.
    """
    pixels = processor(images=image, return_tensors="pt")["pixel_values"][0]
    (height, width), (takes_height, takes_width) = pixels.shape[1:], encoder.image_size
    if (height, width) != (takes_height, takes_width):
        what = f"its processor makes {width}×{height} pixels of an image, it takes {takes_width}×{takes_height}"
        raise BackboneError(Problem(f"{KEY} {encoder.path}", what, "correct its preprocessor_config.json"))
    return pixels


def image_processor(encoder: DescribedEncoder) -> Any:
    """The image processor that a checkpoint names, in its form without torchvision, whose resizing gives other pixels."""
    import transformers

    options = {"revision": encoder.revision} if encoder.revision else {}
    # Not AutoImageProcessor: in transformers 5.17 it needs torchvision whatever it is asked for.
    values, _ = transformers.BaseImageProcessor.get_image_processor_dict(encoder.path, **options)
    default = KINDS[encoder.kind].processor
    named = values.get("image_processor_type") or values.get("feature_extractor_type") or default
    name = re.sub("(FeatureExtractor|ImageProcessor)(Fast|Pil)?$", "ImageProcessorPil", named)
    return getattr(transformers, name).from_dict(values)


@contextlib.contextmanager
def _said_by_us(encoder: DescribedEncoder) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # damaged weights make transformers, safetensors and torch raise almost anything
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        remedy = f"name a folder or hub id with weights and a preprocessor_config.json for '{encoder.kind}' features"
        raise BackboneError(Problem(f"{KEY} {encoder.path}", f"cannot be loaded: {said}", remedy)) from None


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Under ZeRO-3 transformers gives every model it loads away in parts; this one is not the trainer's."""
    from transformers.integrations import deepspeed

    held = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = held


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Without TF32, which torch uses for convolutions by default and the trainer may use for all."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    is_new = hasattr(cudnn, "conv")  # torch 2.9; torch refuses to be asked both ways, and for recurrence beside convolution
    units: list[Any] = [matmul, getattr(cudnn, "conv", cudnn), getattr(cudnn, "rnn", cudnn)]
    name, exact = ("fp32_precision", "ieee") if is_new else ("allow_tf32", False)
    held = [getattr(unit, name) for unit in units]
    try:
        for unit in units:
            setattr(unit, name, exact)
        yield
    finally:
        for unit, precision in zip(units, held, strict=True):
            setattr(unit, name, precision)
