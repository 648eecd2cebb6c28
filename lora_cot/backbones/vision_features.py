"""Vision features of images, computed once by a frozen encoder and kept: Multimodal-CoT's (arXiv 2302.00923, B.1).

Training and inference on a new image take the same way: memory, else disk, else the encoder. Loading the encoder draws no
random numbers, so that a run is the same whether its features were there or not.
"""

from __future__ import annotations

import functools
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import get_worker_info

from lora_cot.backbones.cache_root import cache_root
from lora_cot.backbones.feature_cache import Disk, FeatureMemory, image_hash, name_of, opened
from lora_cot.backbones.vision_encoder import KEY, KINDS, FoundEncoder, encoder_files, find_encoder
from lora_cot.data.images import MAX_PIXELS
from lora_cot.errors import BackboneError, Problem, nearest
from lora_cot.types import Image

__all__ = ["KINDS", "VisionFeatures"]

BATCH = {"cpu": 1, "cuda": 16}
"""Images that are computed together, by device. On a CPU more are hardly faster (10 % for ViT-L/32), and alone each image's
features are the same to the last bit whichever others are computed."""
FOLDER = "vision_encoder"
"""Of a saved model, where its encoder lies if it is not the hub's."""


class VisionFeatures:
    """Features of a frozen vision encoder for one image at a time, kept on disk once computed.

    An image is known by the bytes of its file: one that is kept is never decoded, so nothing checks it again. Computed in
    float32 and rounded to float16. On a CPU they are the same to the last bit each time; between numbers of images computed
    together, which a GPU does, and between a GPU and a CPU, they differ by rounding: tests allow 0.002 and 0.2 %.

    May be pickled, and is then without encoder and memory; may be used by several threads.
    """

    def __init__(
        self,
        kind: str,
        encoder: str | FoundEncoder | None = None,
        revision: str | None = None,
        cache: Path | None = None,
    ):
        """
        Args:
            kind: a name in `KINDS`; any other of an encoder that is found already.
            encoder: hub id or folder; the kind's own by default. Or one that is found already.
            revision: of a hub id.
            cache: folder of all kept features; by default `features` under `cache_root`.

        Raises:
            BackboneError: no such kind. Whether there is such an encoder is found when it is first needed.
        """
        if isinstance(encoder, str | None):
            if kind not in KINDS:
                raise BackboneError(Problem("model.vision_features", f"no vision features '{kind}'", nearest(kind, KINDS)))
            encoder = encoder or KINDS[kind].encoder
        else:
            self._encoder = encoder
            encoder = encoder.path
        self.kind, self.encoder, self.revision = kind, encoder, revision
        self.cache = cache or cache_root("features")
        self._start()

    def _start(self) -> None:
        self._loaded: Any = None
        self._memory, self._lock = FeatureMemory(), threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_loaded", "_memory", "_lock")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    @property
    def shape(self) -> tuple[int, ...]:
        """(P, D_image) or (C, H, W), as the encoder's config.json tells it; known of the kind's own without asking the hub.

        Raises:
            BackboneError: there is no such encoder.
        """
        kind = KINDS.get(self.kind)
        return kind.shape if kind and self.encoder == kind.encoder else self._encoder.shape

    @functools.cached_property
    def _encoder(self) -> FoundEncoder:
        return find_encoder(self.kind, self.encoder, self.revision)

    @functools.cached_property
    def _disk(self) -> Disk:
        return Disk(self.cache, self._encoder.key(), self.shape)

    def of(self, image: Image, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
        """Features of one image: from memory, else from disk, else computed now and kept.

        Computed on the GPU if there is one, but on the CPU in a DataLoader's worker, which cannot use it.

        Args:
            image: not decoded yet.
            max_pixels: largest width × height that is decoded.

        Returns:
            (P, D_image) float16 on the CPU.

        Raises:
            DataError: the image cannot be used.
            BackboneError: the encoder cannot be used, or its features of this image are not numbers.
        """
        digest = image_hash(image, max_pixels)
        with self._lock:
            found = self._memory.get(digest)
            if found is None:
                found = self._disk.read(digest)
                if found is None:
                    found = self._compute({digest: image}, max_pixels)[digest]
                self._memory.put(digest, found)
            return found.clone()  # the caller's own: it may write to it, or send it to another process

    def fill(self, images: Sequence[Image], max_pixels: int = MAX_PIXELS) -> int:
        """Compute what is not on disk yet, on the GPU if there is one, with a progress bar on standard error.

        Args:
            images: of a whole data set, duplicates among them or not.
            max_pixels: largest width × height that is decoded.

        Returns:
            How many were computed. Where the disk takes nothing, no more than memory holds.

        Raises:
            DataError: an image cannot be used; what was computed before is kept.
            BackboneError: see `of`.
        """
        with self._lock:
            digests = ((image_hash(image, max_pixels), image) for image in images)
            missing = {digest: image for digest, image in digests if not self._disk.holds(digest)}
            missing = {digest: image for digest, image in missing.items() if self._memory.get(digest) is None}
            try:
                return self._fill(missing, max_pixels) if missing else 0
            finally:
                self._free()

    def _fill(self, missing: Mapping[str, Image], max_pixels: int) -> int:
        from tqdm import tqdm

        rest, done = iter(missing.items()), 0
        often = 0.5 if sys.stderr.isatty() else 10
        with tqdm(total=len(missing), desc="vision features", unit="image", file=sys.stderr, mininterval=often) as bar:
            while batch := dict(islice(rest, BATCH[_device().type])):
                made = self._compute(batch, max_pixels)
                if self._disk.is_broken and not self._memory.has_room(torch.stack([*made.values()])):
                    break
                for digest, features in made.items():
                    self._memory.put(digest, features)
                done += len(made)
                bar.update(len(made))
        return done

    def _compute(self, images: Mapping[str, Image], max_pixels: int) -> dict[str, torch.Tensor]:
        """(P, D_image) of each image by its hash, kept on disk."""
        device = _device()
        if self._loaded is None or self._loaded.device != device:  # after a fork, it can be on a GPU that is out of reach
            self._loaded = self._encoder.load(device)
        pixels = [self._loaded.pixels(opened(image, max_pixels)) for image in images.values()]
        made = dict(zip(images, self._loaded.features(torch.stack(pixels)), strict=True))
        for digest, features in made.items():
            if not features.isfinite().all():
                what = f"its features of {name_of(images[digest])} are not finite numbers"
                raise BackboneError(Problem(f"{KEY} {self.encoder}", what, "name another encoder: its weights are damaged"))
            made[digest] = features.clone()  # a view would keep its whole batch in memory
            self._disk.write(digest, features)
        return made

    def _free(self) -> None:
        self._loaded = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def save(self, folder: Path) -> None:
        """Put an encoder that is in a folder into FOLDER/vision_encoder, whole, where a saved model is.

        A hub id is not copied: kind, encoder and revision are in the model's config. The copy has the same key, so what
        was kept of the original is the copy's too.

        Raises:
            BackboneError: there is no such encoder.
        """
        if self._encoder.revision is None and (folder / FOLDER).resolve() != Path(self.encoder).resolve():
            (folder / FOLDER).mkdir(parents=True, exist_ok=True)
            for path in encoder_files(Path(self.encoder)):
                shutil.copyfile(path, folder / FOLDER / path.name)


def _device() -> torch.device:
    if get_worker_info() is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
