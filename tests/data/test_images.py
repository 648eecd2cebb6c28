"""Images that other people made: every usual kind opens upright and RGB, everything else is refused in words."""

import io
import os
import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lora_cot.data.images import image_size, inside, open_image
from lora_cot.errors import DataError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image, kind, **options):
    """Bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(mode="RGB", colour=RED, size=(16, 12)):
    return Image.new(mode, size, colour)


def noise():
    """An image that no encoder can shrink, so that a cut file lacks pixels."""
    return Image.frombytes("RGB", (40, 24), random.Random(0).randbytes(40 * 24 * 3))


def quarters():
    """32 by 16 with four colours, from the top left: red, green, blue, white."""
    image = plain(size=(32, 16))
    for box, colour in (((16, 0, 32, 8), GREEN), ((0, 8, 16, 16), BLUE), ((16, 8, 32, 16), WHITE)):
        image.paste(colour, box)
    return image


def exif(orientation):
    """A camera's block of metadata."""
    found = Image.Exif()
    found[0x0112] = orientation
    found[0x011A] = (72, 1)  # XResolution
    return found.tobytes()


def png_claiming(width, height):
    """A PNG of no pixels whose header claims so many."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def near(pixel, colour, tolerance=6):
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


def transparent_palette():
    """Index 0 is red and transparent on the left, index 1 green on the right."""
    image = plain("P", 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (8, 0, 16, 12))
    return encoded(image, "PNG", transparency=0)


@pytest.mark.parametrize(
    ("data", "left", "right"),
    [
        (encoded(plain(), "PNG"), RED, RED),
        (encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG"), RED, RED),
        (transparent_palette(), WHITE, GREEN),
        (encoded(plain("LA", (0, 0)), "PNG"), WHITE, WHITE),
        (encoded(plain("LA", (0, 128)), "PNG"), (127, 127, 127), (127, 127, 127)),
        (encoded(plain("RGBA", (255, 0, 0, 0)), "WEBP", lossless=True), WHITE, WHITE),
        (encoded(plain("RGB", GREEN), "PNG", transparency=GREEN), WHITE, WHITE),
        (encoded(plain("1", 1), "PNG"), WHITE, WHITE),
        (encoded(plain("L", 77), "BMP"), (77, 77, 77), (77, 77, 77)),
        (encoded(plain(), "GIF", save_all=True, append_images=[plain("RGB", BLUE)]), RED, RED),
        (encoded(plain(), "WEBP", lossless=True, save_all=True, append_images=[plain("RGB", BLUE)]), RED, RED),
    ],
    ids=[
        "rgb",
        "cmyk",
        "palette+alpha",
        "la",
        "la-half",
        "rgba",
        "rgb+key",
        "one-bit",
        "grey",
        "gif",
        "webp-animation",
    ],
)
def test_every_usual_kind_opens_as_rgb(data, left, right):
    """Whatever the file's mode, the picture is RGB, on white where transparent, the first frame of an animation."""
    image = open_image(data)
    assert (image.mode, image.size) == ("RGB", (16, 12))
    assert near(image.getpixel((3, 6)), left)
    assert near(image.getpixel((12, 6)), right)


def test_16_bit_grey_keeps_its_brightness():
    """A 16-bit grey ramp becomes the 8-bit ramp, neither clipped to white nor darkened."""
    ramp = Image.new("I;16", (5, 5))
    values = [0, 64, 128, 200, 255]
    for x, value in enumerate(values):
        ramp.paste(value * 257, (x, 0, x + 1, 5))
    image = open_image(encoded(ramp, "PNG"))
    assert all(near(image.getpixel((x, 2)), (value,) * 3, 1) for x, value in enumerate(values))


@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [(1, (32, 16), RED), (2, (32, 16), GREEN), (3, (32, 16), WHITE), (6, (16, 32), BLUE), (8, (16, 32), GREEN)],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_rotated_photograph_is_upright(kind, orientation, size, corner):
    """The camera's orientation is applied to the pixels."""
    options = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}}[kind]
    image = open_image(encoded(quarters(), kind, exif=exif(orientation), **options))
    assert image.size == size
    assert near(image.getpixel((2, 2)), corner, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_size_is_that_of_the_upright_image(kind, orientation):
    """The header tells width and height as they are once the image is turned, whatever the camera's orientation."""
    data = encoded(quarters(), kind, exif=exif(orientation))
    assert image_size(data) == open_image(data).size == ((32, 16) if orientation < 5 else (16, 32))


def test_metadata_may_come_after_the_pixels():
    """A PNG whose orientation stands behind its pixels is upright too, and its size is that of the upright image."""
    data = encoded(quarters(), "PNG", exif=exif(6))
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    last = data.index(b"IEND") - 4
    moved = data[:start] + data[end:last] + data[start:end] + data[last:]
    assert moved != data and len(moved) == len(data)
    assert open_image(moved).tobytes() == open_image(data).tobytes()
    assert image_size(moved) == open_image(moved).size == (16, 32)


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
PROFILE = f"\nexif\n{len(exif(6))}\n{exif(6).hex()}\n"


@pytest.mark.parametrize(
    ("kind", "block"), [("iTXt", ("XML:com.adobe.xmp", XMP)), ("zTXt", ("Raw profile type exif", PROFILE))], ids=["xmp", "raw"]
)
@pytest.mark.parametrize("late", [False, True])
def test_orientation_has_other_places(kind, block, late):
    """Where else an image may say how a camera was held, size and pixels agree on it."""
    added = PngInfo()
    (added.add_itxt if kind == "iTXt" else added.add_text)(*block, zip=True)
    data = encoded(quarters(), "PNG", pnginfo=added)
    if late:
        start, last = data.index(kind.encode()) - 4, data.index(b"IEND") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        data = data[:start] + data[end:last] + data[start:end] + data[last:]
    assert image_size(data) == open_image(data).size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_the_size_needs_no_pixels(kind, monkeypatch):
    """Nothing is decoded to find a size, and the limits hold for it as they do for the whole image."""
    data = encoded(noise(), kind)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert image_size(data) == (40, 24)
    with pytest.raises(DataError, match="40×24 is more than 959 pixels · scale it down"):
        image_size(data, max_pixels=959)


def opened_or_refused(data):
    """The image, or None where it is refused by a DataError; any other exception is a failure of the test."""
    try:
        image = open_image(data)
    except DataError as error:
        assert "0x" not in str(error)
        return None
    assert image.mode == "RGB"
    return image


def test_a_damaged_exif_block_is_no_crash():
    """A camera's tag of the wrong type either does not matter or refuses the image."""
    block = exif(6)
    damaged = block.replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02")  # XResolution as text instead of a fraction
    assert damaged != block
    image = opened_or_refused(encoded(quarters(), "JPEG", exif=damaged))
    assert image is None or image.size == (16, 32)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_half_an_image_is_refused(kind, share):
    """A file that ends before its pixels do is never taken for an image."""
    data = encoded(noise(), kind)
    with pytest.raises(DataError, match=r"truncated or damaged · copy|not an image in a known format") as caught:
        open_image(data[: int(len(data) * share)])
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_cut_in_any_place_is_defined(kind):
    """Wherever a file is cut, it is the whole image or a DataError."""
    data, whole = encoded(noise(), kind), open_image(encoded(noise(), kind)).size
    found = [opened_or_refused(data[:size]) for size in [*range(0, len(data), 7), *range(len(data) - 20, len(data))]]
    assert None in found
    assert all(image is None or image.size == whole for image in found)


CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4)
PHOTOGRAPHS = {
    "png": encoded(noise(), "PNG"),
    "jpeg": encoded(noise(), "JPEG", exif=exif(6), progressive=True),
    "webp": encoded(noise(), "WEBP", exif=exif(6)),
    "gif": encoded(noise(), "GIF", save_all=True, append_images=[plain()]),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(CHANGES, st.sampled_from([80, 10**6]))
@pytest.mark.parametrize("data", PHOTOGRAPHS.values(), ids=PHOTOGRAPHS)
def test_damage_anywhere_is_defined(data, changes, reach):
    """A file with changed bytes, in its header or anywhere, is an RGB image of the size it claims, or a DataError."""
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % min(len(data), reach)] = value
    image = opened_or_refused(bytes(damaged))
    assert image is None or image_size(bytes(damaged)) == image.size


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", r"^image · not an image in a known format · allowed: PNG, JPEG, WEBP, GIF, BMP$"),
        (b"<html>404</html>", "not an image in a known format"),
        (encoded(plain(), "TIFF"), "not an image in a known format · allowed: PNG, JPEG, WEBP, GIF, BMP"),
        (encoded(plain(), "PPM"), "not an image in a known format"),
        (encoded(plain(size=(1, 1)), "PNG"), "1×1 is too small · at least 4 pixels a side"),
        (encoded(plain(size=(3, 100)), "PNG"), "3×100 is too small"),
        (encoded(plain(size=(1, 10_000)), "PNG"), "1×10000 is too small"),
        (encoded(plain(size=(4, 401)), "PNG"), "4×401 is too long and thin · at most 100 to 1"),
        (
            encoded(plain("1", 0, (9000, 9000)), "PNG"),
            "9000×9000 is more than 40,000,000 pixels · scale it down, or raise",
        ),
        (png_claiming(9000, 9000), "9000×9000 is more than 40,000,000 pixels"),
        (png_claiming(2**31 - 1, 2**31 - 1), "more than 40,000,000 pixels"),
    ],
    ids=[
        "empty",
        "html",
        "tiff",
        "ppm",
        "1x1",
        "3x100",
        "1x10000",
        "4x401",
        "81-mega",
        "81-mega-header",
        "bomb-header",
    ],
)
def test_what_is_no_usable_image_is_refused(data, match):
    """Other formats and sizes outside the limits are refused with the limit, large ones before any pixel is read."""
    with pytest.raises(DataError, match=match) as caught:
        open_image(data)
    assert "0x" not in str(caught.value)


def test_the_limits_themselves_are_allowed():
    """An image exactly as small, as thin or as large as allowed opens."""
    assert open_image(encoded(plain(size=(4, 400)), "PNG")).size == (4, 400)
    assert open_image(encoded(plain(size=(16, 12)), "PNG"), max_pixels=192).size == (16, 12)
    with pytest.raises(DataError, match="16×12 is more than 191 pixels"):
        open_image(encoded(plain(size=(16, 12)), "PNG"), max_pixels=191)


def test_a_file_is_named_in_its_error(tmp_path):
    """A file opens like its bytes, and an error begins with its path."""
    good, bad, missing = tmp_path / "good.png", tmp_path / "bad.jpg", tmp_path / "missing.png"
    good.write_bytes(encoded(plain(), "PNG"))
    bad.write_bytes(encoded(noise(), "JPEG")[:300])
    assert open_image(good).getpixel((0, 0)) == RED
    with pytest.raises(DataError, match=r"bad\.jpg · the image is truncated or damaged") as caught:
        open_image(bad)
    assert str(caught.value).startswith(str(bad))
    with pytest.raises(DataError, match=r"missing\.png · no such image file"):
        open_image(missing)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An image root with links in and out of it, and a sibling whose name begins with the root's."""
    parent = tmp_path_factory.mktemp("data")
    folder, sibling = parent / "images", parent / "images_private"
    (folder / "sub").mkdir(parents=True)
    sibling.mkdir()
    for path in (folder / "a.png", folder / "sub" / "b.png", sibling / "secret.png", parent / "secret.png"):
        path.write_bytes(b"x")
    (folder / "link_in.png").symlink_to("sub/b.png")
    (folder / "link_out.png").symlink_to(parent / "secret.png")
    (folder / "out").symlink_to(sibling)
    (folder / "loop").symlink_to("loop")
    return folder


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.png", "a.png"),
        ("./sub/b.png", "sub/b.png"),
        ("sub/../a.png", "a.png"),
        ("../images/a.png", "a.png"),
        ("link_in.png", "sub/b.png"),
    ],
)
def test_a_name_inside_the_root_is_found(root, name, file):
    """Names that stay in the root, by whatever way, give the file."""
    assert inside(root, name) == root.resolve() / file
    assert inside(root, str(root / "a.png")) == root.resolve() / "a.png"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("../secret.png", "lies outside the image root"),
        ("sub/../../secret.png", "lies outside the image root"),
        ("../images_private/secret.png", "lies outside the image root"),
        ("/etc/passwd", "lies outside the image root"),
        ("link_out.png", "lies outside the image root"),
        ("out/secret.png", "lies outside the image root"),
        ("a.png\0.txt", "NUL"),
        ("missing.png", r"^missing\.png · no such image file under .* · check image_root$"),
        ("", "no such image file"),
        ("sub", "no such image file"),
        ("a.png/b.png", "no such image file"),
        ("loop", "no such image file"),
        ("a" * 5000, "no such image file"),
        ("a\ud800.png", "no such image file"),
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_a_name_that_leads_nowhere_is_refused(root, name, match):
    """Names out of the root, of no file, or that no file can have are refused in words."""
    with pytest.raises(DataError, match=match):
        inside(root, name)


SEGMENTS = st.sampled_from(["..", ".", "", "a.png", "sub", "b.png", "out", "secret.png", "link_out.png", "~", "\0"])


@given(st.lists(SEGMENTS | st.text(max_size=8), max_size=7).map("/".join))
def test_no_name_leads_out_of_the_root(root, name):
    """Whatever the name, the result is a file in the root or a DataError."""
    try:
        found = inside(root, name)
    except DataError:
        return
    assert found.is_file()
    assert os.path.realpath(found).startswith(os.path.realpath(root) + os.sep)
