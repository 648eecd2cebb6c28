"""Opening an image that somebody else made: checked before its pixels are decoded, upright and RGB after.

Nothing here sets a global of Pillow, follows a link out of the data's folder, or accepts half an image.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from lora_cot.errors import DataError, Problem
from lora_cot.types import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Decoders that are tried; Pillow has many more, rarely used and rarely checked."""
MAX_PIXELS = 40_000_000
"""Largest image that is decoded (120 MB as RGB). A 10 kB file can claim far more."""
MIN_SIDE = 4
"""Below this, processors cannot tell the channel axis from an image axis."""
ORIENTATION = 0x0112
"""EXIF's tag for how a camera was held."""
T = TypeVar("T")
MAX_ASPECT_RATIO = 100.0
"""Longest side over shortest; tiling processors explode beyond it."""


def inside(root: Path, name: str) -> Path:
    """The file of that name under a root, whatever `..`, absolute names and links the name tries.

    Raises:
        DataError: the name leads out of the root, or there is no such file.
    """
    if "\0" in name:
        raise DataError(Problem(repr(name), "an image name holds a NUL character", "correct the row", "image_missing"))
    try:
        base = root.resolve()
        path = (base / name).resolve()
        exists = path.is_file()
    except (OSError, UnicodeError, RuntimeError):  # too long, a lone surrogate, a loop of links
        what = f"no such image file under {root}"
        raise DataError(Problem(ascii(name[:80]), what, "correct the row", "image_missing")) from None
    if not path.is_relative_to(base):
        what = f"the image lies outside the image root {root}"
        raise DataError(Problem(name, what, "move it there, or correct the row", "image_outside_root"))
    if not exists:
        raise DataError(Problem(name, f"no such image file under {root}", "check image_root", "image_missing"))
    return path


def read_bytes(image: Image) -> bytes:
    """The bytes of the image's file."""
    if isinstance(image, Path):
        return image.read_bytes()
    return image if isinstance(image, bytes) else image.read()


def open_image(image: Image, max_pixels: int = MAX_PIXELS) -> PILImage.Image:
    """The image as upright RGB; the first frame of an animation; transparent parts on white.

    Args:
        image: a file, the bytes of one, or a reference to them.
        max_pixels: largest width × height that is decoded.

    Raises:
        DataError: not one of the formats of `FORMATS`, truncated, or of a size outside the limits.
    """

    def decode(opened: PILImage.Image) -> PILImage.Image:
        opened.load()
        return _rgb(ImageOps.exif_transpose(opened))

    return _open(image, max_pixels, decode)


def image_size(image: Image, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of the upright image, from its header alone.

    Raises:
        DataError: see `open_image`; damage beyond the header is not found.
    """

    def measure(opened: PILImage.Image) -> tuple[int, int]:
        width, height = opened.size
        turned = _exif(opened).get(ORIENTATION, 1) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)

    return _open(image, max_pixels, measure)


def _exif(opened: PILImage.Image) -> PILImage.Exif:
    """The image's EXIF. A PNG may keep it after its pixels, and Pillow would decode every PNG to look there."""
    if opened.format == "PNG" and not _tells_after_pixels(opened.fp):  # type: ignore[attr-defined]
        return PILImage.Image.getexif(opened)
    return opened.getexif()


def _tells_after_pixels(file: IO[bytes]) -> bool:
    """Whether a PNG has a chunk that can hold EXIF after its pixels."""
    position, pixels, found = file.tell(), False, False
    file.seek(8)
    while not found and len(head := file.read(8)) == 8:
        pixels = pixels or head[4:] == b"IDAT"
        found = pixels and head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
        file.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)
    file.seek(position)
    return found


def _open(image: Image, max_pixels: int, use: Callable[[PILImage.Image], T]) -> T:
    """What `use` makes of the opened, not yet decoded image; all errors in our words."""
    where = str(image) if isinstance(image, Path) else "image"
    try:
        source = image if isinstance(image, Path) else io.BytesIO(read_bytes(image))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PILImage.DecompressionBombWarning)  # our own limit is checked below
            with PILImage.open(source, formats=FORMATS) as opened:
                _check_size(where, opened.size, max_pixels)
                return use(opened)
    except UnidentifiedImageError:
        remedy = f"allowed: {', '.join(FORMATS)}"
        raise DataError(Problem(where, "not an image in a known format", remedy, "image_unreadable")) from None
    except PILImage.DecompressionBombError:
        raise DataError(Problem(where, f"more than {max_pixels:,} pixels", "scale it down", "image_size")) from None
    except FileNotFoundError:
        raise DataError(Problem(where, "no such image file", kind="image_missing")) from None
    except DataError:
        raise
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(Problem(where, f"cannot be read: {error.strerror}", kind="image_unreadable")) from None
    except Exception:  # damaged files make Pillow raise almost anything
        # Pillow's texts can hold addresses of objects: they are not repeated.
        what, remedy = "the image is truncated or damaged", "copy it again from its source"
        raise DataError(Problem(where, what, remedy, "image_unreadable")) from None


def _check_size(where: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        what, remedy = f"more than {max_pixels:,} pixels", "scale it down, or raise data.max_pixels"
    elif min(size) < MIN_SIDE:
        what, remedy = "too small", f"at least {MIN_SIDE} pixels a side"
    elif max(size) > MAX_ASPECT_RATIO * min(size):
        what, remedy = "too long and thin", f"at most {MAX_ASPECT_RATIO:g} to 1"
    else:
        return
    raise DataError(Problem(where, f"{width}×{height} is {what}", remedy, "image_size"))


def _rgb(image: PILImage.Image) -> PILImage.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grey to white instead of scaling it.
        return image.point(lambda value: value / 257, "F").convert("L").convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return PILImage.alpha_composite(PILImage.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
