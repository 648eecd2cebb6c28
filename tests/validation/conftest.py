"""Folders of rows and pictures, and recipes over them."""

import json
import struct
import zlib

import numpy
import pytest
from PIL import Image

STAGES = {"SUMMARY": "a plan", "CAPTION": "a cat", "REASONING": "hence", "CONCLUSION": "B"}


def chunk(kind, data):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def terabyte():
    """A small PNG file whose header claims a million pixels a side."""
    header = struct.pack(">IIBBBBB", 1_000_000, 1_000_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"x")) + chunk(b"IEND", b"")


def plain(number, **keys):
    """A good row of our own form."""
    return {"id": f"q{number}", "question": f"What is {number}?", "stages": STAGES, **keys}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where work is done: six pictures, a damaged one, one that claims a terabyte, and a link to a folder outside."""
    place = tmp_path / "data"
    (place / "deep").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (place / "link").symlink_to(tmp_path / "outside")
    for number in range(6):
        pixels = numpy.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
        Image.fromarray(pixels).save(tmp_path / "outside" / f"{number}.png")
    (place / "cut.png").write_bytes((place / "1.png").read_bytes()[:2000])
    (place / "terabyte.png").write_bytes(terabyte())
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def source(folder):
    """A source of a recipe whose file holds these rows; a row can be a line of text as well."""

    def make(*rows, name="rows.jsonl", source="jsonl", **keys):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / name).write_text("\n".join(lines), "utf-8")
        return {"source": source, "path": str(folder / name), **keys}

    return make


@pytest.fixture
def recipe_of(make_recipe, tmp_path):
    """A recipe of one step on the tiny base over these sources."""

    def make(*train, held=(), data=(), **sections):
        both = {"train": list(train), "eval": list(held), **dict(data)}
        overrides = ["training.max_steps=1", "training.eval_generations=0", *sections.pop("overrides", ())]
        return make_recipe(tmp_path, *overrides, data=both, **sections)

    return make


def found(report, *checks):
    """(check, severity, row, id) of the examples that a report shows of these checks, or of all."""
    shown = report.to_json()["checks"]
    rows = [row for check in checks or shown for row in shown[check]["examples"]]
    return [(row["check"], row["severity"], row["row"], row["id"]) for row in rows]
