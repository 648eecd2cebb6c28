"""Images as parts of a message to a model server: data URIs, since no server can read our files."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image as PILImage

from lora_cot.data.images import MAX_PIXELS, ORIENTATION, open_image, read_bytes
from lora_cot.types import Image

MOST_SIDE = 2048
"""Longest side of an image that is sent; hosted models scale larger ones down themselves."""
MOST_IMAGE_BYTES = 5 * 2**20
"""Largest image file that is sent as it is."""


def image_part(image: Image, max_pixels: int = MAX_PIXELS) -> dict[str, Any]:
    """An image as a part of a message, in a data URI.

    An upright PNG or JPEG without transparency goes as it is, if it is not too large; all else as it would be trained on,
    scaled down to `MOST_SIDE`: as PNG, or as JPEG where that is too large.

    Raises:
        DataError: see `open_image`.
    """
    shown = open_image(image, max_pixels)  # all of it, so that damage is found here and not by the server
    data = read_bytes(image)
    with PILImage.open(io.BytesIO(data)) as opened:
        kind = {"PNG": "png", "JPEG": "jpeg"}.get(opened.format or "")
        plain = opened.mode in ("RGB", "L") and "transparency" not in opened.info
        upright = opened.getexif().get(ORIENTATION, 1) == 1
    if not (kind and plain and upright and max(shown.size) <= MOST_SIDE and len(data) <= MOST_IMAGE_BYTES):
        shown.thumbnail((MOST_SIDE, MOST_SIDE))
        kind, data = "png", _encoded(shown, "PNG")
        if len(data) > MOST_IMAGE_BYTES:
            kind, data = "jpeg", _encoded(shown, "JPEG", quality=92)
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}


def _encoded(image: PILImage.Image, kind: str, **keys: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **keys)
    return buffer.getvalue()
