"""Features that were computed once: which image they are of, where they lie on disk, which of them stay in memory.

What is on disk is never trusted: an entry says of which image and encoder it is and what its bytes add up to, and one that
does not fit is as good as none. Nor is the disk needed: without it, features are computed again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import sys
import time
import zlib
from collections import OrderedDict
from pathlib import Path

import torch
from PIL import Image as PILImage

from lora_cot.data.images import open_image
from lora_cot.errors import DataError
from lora_cot.types import Image, StoredImage

MEMORY_BYTES = 256 * 2**20
"""Of features that stay in memory, in each process: 900 images of ViT-L/32."""
NAME = "features"
"""Of the one tensor in an entry's file."""


@functools.lru_cache(100_000)
def _file_hash(path: str, size: int, changed_ns: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes; a file that was read before is only read again if it was written since.

    Raises:
        OSError: it cannot be read.
    """
    stat = path.stat()
    known_by = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    # Clocks of file systems tick in milliseconds, some in seconds: what was just written may be written again unseen.
    is_settled = time.time_ns() - stat.st_mtime_ns > 3_000_000_000
    return _file_hash(*known_by) if is_settled else _file_hash.__wrapped__(*known_by)


def image_hash(image: Image, max_pixels: int) -> str:
    """SHA-256 of the bytes of an image's file, which is not decoded.

    Raises:
        DataError: there are no such bytes.
    """
    try:
        if isinstance(image, Path):
            return file_hash(image)
        return hashlib.sha256(image if isinstance(image, bytes) else image.read()).hexdigest()
    except Exception:  # a file that is gone, a row that holds none: opening it says so in our words
        opened(image, max_pixels)
        raise


def opened(image: Image, max_pixels: int) -> PILImage.Image:
    """See `open_image`; an error names the image, which is not a file of its own either.

    Raises:
        DataError: see `open_image`.
    """
    try:
        return open_image(image, max_pixels)
    except DataError as error:
        raise error if isinstance(image, Path) else error.at(name_of(image)) from None


def name_of(image: Image) -> str:
    """An image in words."""
    if isinstance(image, Path):
        return str(image)
    return f"row {image.row} · {image.column}" if isinstance(image, StoredImage) else f"{len(image):,} bytes"


class FeatureMemory:
    """The features that were asked for last, up to a number of bytes."""

    def __init__(self, limit: int = MEMORY_BYTES):
        self.limit, self.used = limit, 0
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def get(self, image: str) -> torch.Tensor | None:
        """Those of the image of this hash, if they are kept."""
        if image in self._kept:
            self._kept.move_to_end(image)
        return self._kept.get(image)

    def put(self, image: str, features: torch.Tensor) -> None:
        """Keep them, and forget those that were not asked for the longest."""
        if image not in self._kept:
            self._kept[image] = features
            self.used += features.nbytes
        while self.used > self.limit:
            self.used -= self._kept.popitem(last=False)[1].nbytes

    def has_room(self, features: torch.Tensor) -> bool:
        """Whether one more would push none out."""
        return self.used + features.nbytes <= self.limit


class Disk:
    """The features of one encoder: FOLDER/ENCODER/AB/ABCD….safetensors, a file for each image's hash."""

    def __init__(self, folder: Path, encoder: str, shape: tuple[int, ...]):
        """
        Args:
            folder: of all encoders.
            encoder: key of this one.
            shape: (P, D_image) or (C, H, W).
        """
        self.folder, self.encoder, self.shape = folder / encoder, encoder, shape
        self.is_broken = False
        """It refused something, and is not asked to keep anything more."""
        self._bytes = len(self._file("0" * 64, torch.zeros(shape, dtype=torch.float16)))

    def path(self, image: str) -> Path:
        """Of an image's entry."""
        return self.folder / image[:2] / f"{image}.safetensors"

    def holds(self, image: str) -> bool:
        """Whether there is an entry of the right length; it is not read."""
        try:
            return self.path(image).stat().st_size == self._bytes
        except OSError:
            return False

    def read(self, image: str) -> torch.Tensor | None:
        """(P, D_image) float16; None if there is no entry, or none that is whole and this image's.

        Not by safetensors, whose maps of files cost three times as much: an entry of the right length that says the right
        thing of its bytes is one that `write` wrote.
        """
        data = bytearray(self._bytes)
        try:
            with open(self.path(image), "rb") as file:
                if file.readinto(data) != self._bytes or file.read(1):
                    return None
        except OSError:
            return None
        start = self._bytes - 2 * math.prod(self.shape)
        features = torch.frombuffer(data, dtype=torch.float16, offset=start).view(self.shape)
        return features if self._says(image, features).encode() in data[:start] else None

    def write(self, image: str, features: torch.Tensor) -> None:
        """Keep them: the entry is there whole or not at all, whoever else writes it at the same time."""
        if self.is_broken:
            return
        path = self.path(image)
        beside = path.with_name(f".{image}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(self._file(image, features))
            beside.replace(path)
        except OSError as error:
            self.is_broken = True
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            lost = "what memory cannot hold is computed each time it is needed; LORA_COT_CACHE names another folder"
            print(f"vision features are not kept: {self.folder}: {error.strerror or error} · {lost}", file=sys.stderr)

    def _file(self, image: str, features: torch.Tensor) -> bytes:
        from safetensors.torch import save

        return save({NAME: features}, {"of": self._says(image, features)})

    def _says(self, image: str, features: torch.Tensor) -> str:
        """What an entry says of itself. A file can have the right length and hold zeros, after a power cut."""
        return f"{self.encoder} {image} {zlib.crc32(features.numpy().data):08x}"
