"""Images of a request as data URIs. They are measured here, and decoded later; nothing here opens a file or an address."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

from lora_cot.data.images import MAX_PIXELS, image_size
from lora_cot.errors import DataError, Problem

DATA_URI = re.compile(r"data:image/(png|jpeg|jpg|webp|gif|bmp);base64,", re.IGNORECASE)


def image_bytes(url: str, most_bytes: int) -> bytes:
    """The file of an image that a request holds; it is not decoded here.

    Raises:
        DataError: it is no data URI, or of more bytes.
    """
    match = DATA_URI.match(url)
    if match is None:
        allowed = "data:image/png;base64,… with png, jpeg, webp, gif or bmp; no address but of a host that the server allows"
        raise wrong("not an image's data URI", f"allowed: {allowed}")
    try:
        data = base64.b64decode(url[match.end() :].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise wrong("the data URI is not base64", "no white space, no line breaks") from None
    if not data:
        raise wrong("the data URI is empty")
    if len(data) > most_bytes:
        raise wrong(f"an image of {len(data):,} bytes", f"at most {most_bytes:,}", "image_size")
    return data


def check_pixels(images: Sequence[bytes], most: int) -> None:
    """See from the images' headers that all of a request together can be decoded.

    Raises:
        DataError: they have more pixels, or one of them is no image.
    """
    sizes = [image_size(image, MAX_PIXELS) for image in images]
    if (found := sum(width * height for width, height in sizes)) > most:
        what = f"the request's images have {found:,} pixels together, at most {most:,} are decoded"
        raise wrong(what, "scale them down", "image_size")


def wrong(what: str, remedy: str = "", kind: str = "image_unreadable") -> DataError:
    """An image that cannot be used."""
    return DataError(Problem("", what, remedy, kind))
