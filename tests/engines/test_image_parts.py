"""Images as they are sent to a server."""

import base64
import io

import pytest
from PIL import Image

from lora_cot.engines.image_parts import MOST_IMAGE_BYTES, MOST_SIDE, image_part
from lora_cot.errors import DataError


def encoded(kind="PNG", size=(40, 20), mode="RGB", colour="red", **keys):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind, **keys)
    return buffer.getvalue()


def sent(data):
    """(media type, bytes) of the data URI."""
    part = image_part(data)
    head, _, body = part["image_url"]["url"].partition(";base64,")
    assert part["type"] == "image_url"
    return head.removeprefix("data:"), base64.b64decode(body)


@pytest.mark.parametrize(("kind", "media"), [("PNG", "image/png"), ("JPEG", "image/jpeg")])
def test_what_servers_read_goes_as_it_is(tmp_path, kind, media):
    """From a file or from bytes."""
    data = encoded(kind)
    (tmp_path / "image").write_bytes(data)
    assert sent(data) == sent(tmp_path / "image") == (media, data)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", exif=exif)


OTHER = {
    "webp": (encoded("WEBP"), (40, 20)),
    "gif": (encoded("GIF"), (40, 20)),
    "transparent": (encoded(mode="RGBA", colour=(255, 0, 0, 0)), (40, 20)),
    "turned": (turned(), (20, 40)),
    "large": (encoded(size=(MOST_SIDE * 2, 80)), (MOST_SIDE, 40)),
}


@pytest.mark.parametrize(("data", "size"), OTHER.values(), ids=OTHER)
def test_all_else_goes_as_it_is_trained_on(data, size):
    """Upright, on white, not too large, and in a format that servers read."""
    media, made = sent(data)
    with Image.open(io.BytesIO(made)) as image:
        assert (media, image.format, image.mode, image.size) == ("image/png", "PNG", "RGB", size)
        if data is OTHER["transparent"][0]:
            assert image.getpixel((0, 0)) == (255, 255, 255)


def test_a_large_file_becomes_a_jpeg(monkeypatch):
    """Where the PNG would be too large."""
    monkeypatch.setattr("lora_cot.engines.image_parts.MOST_IMAGE_BYTES", 100)
    assert MOST_IMAGE_BYTES > 10**6 and sent(encoded("PNG", (400, 300)))[0] == "image/jpeg"


def test_a_damaged_image_is_not_sent():
    with pytest.raises(DataError, match="truncated or damaged"):
        image_part(encoded(size=(400, 400), colour="blue", compress_level=0)[:4000])
