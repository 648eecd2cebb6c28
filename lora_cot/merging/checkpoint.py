"""A checkpoint's safetensors files, read where they lie: headers at once, values a piece at a time.

The files are mapped, not loaded: what is looked at is the system's page cache, and takes no memory of ours.
"""

from __future__ import annotations

import json
import mmap
import struct
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lora_cot.errors import BackboneError, Problem

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that can be merged into, as safetensors writes them."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a safetensors file."""

    name: str
    dtype: str
    """As safetensors writes it: BF16, F32, …"""
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the beginning of the file."""
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file."""

    path: Path
    header: bytes
    """All before the tensors' bytes."""
    metadata: Mapping[str, str] | None
    entries: Mapping[str, Entry]
    """In the order of their bytes."""
    mapped: mmap.mmap = field(repr=False, compare=False)

    def values(self, name: str) -> torch.Tensor:
        """A tensor as it lies in the file, of its own shape; it must not be written to.

        Raises:
            BackboneError: its type is none that can be merged.
        """
        entry = self.entries[name]
        if entry.dtype not in FLOATS:
            what = f"the tensor {name} is of type {entry.dtype}: nothing can be added to it"
            raise BackboneError(Problem(str(self.path), what, "name a base in float32, bfloat16 or float16"))
        if not entry.size:
            return torch.empty(entry.shape, dtype=FLOATS[entry.dtype])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the mapping cannot be written to
            size = FLOATS[entry.dtype].itemsize
            flat = torch.frombuffer(self.mapped, dtype=FLOATS[entry.dtype], count=entry.size // size, offset=entry.start)
        return flat.view(entry.shape)


def open_file(path: Path) -> TensorFile:
    """A safetensors file, its header read.

    Raises:
        BackboneError: it is none, or it was cut off.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        begin = 8 + struct.unpack("<Q", mapped[:8])[0]
        header: dict[str, Any] = json.loads(mapped[8:begin])
        metadata = header.pop("__metadata__", None)
        found = [
            Entry(name, it["dtype"], tuple(it["shape"]), begin + it["data_offsets"][0], begin + it["data_offsets"][1])
            for name, it in header.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        what = f"not a safetensors file that can be read: {str(error)[:100]}"
        raise BackboneError(Problem(str(path), what, "download it again")) from None
    found.sort(key=lambda entry: (entry.start, entry.end))
    if (found[-1].end if found else begin) != len(mapped):
        raise BackboneError(Problem(str(path), "the file is cut off, or has bytes that are no tensor's", "download it again"))
    return TensorFile(path, mapped[:begin], metadata, {entry.name: entry for entry in found}, mapped)


def write_header(entries: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str] | None) -> bytes:
    """Header of a file that holds tensors in this order.

    Args:
        entries: name, type, shape and bytes of each.
        metadata: of the file.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    position = 0
    for name, dtype, shape, size in entries:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
