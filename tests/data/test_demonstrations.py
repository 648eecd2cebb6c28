"""Demonstrations: read as they stand, refused with the place of every mistake."""

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_cot.data.demonstrations import Demonstration, Region, is_demonstrations, load_demonstrations
from lora_cot.errors import DataError


def plain(**keys):
    """A demonstration about an image of 40 × 20 pixels, red but for a blue corner of 10 × 5."""
    steps = ["There is a corner. ", [0, 0, 10, 5], "It is blue.", [0, 0, 40, 20]]
    return {"image": "a.png", "question": "Which colour?", "choices": ["red", "blue"], "steps": steps, "answer": "B"} | keys


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the image is, another that is cut off, and one that was held upright."""
    folder = tmp_path_factory.mktemp("demonstrations")
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 10, 5))
    image.save(folder / "a.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:70])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    return folder


def written(folder, value, name="d.yaml"):
    path = folder / name
    path.write_text(json.dumps(value) if name.endswith("json") else yaml.safe_dump(value))
    return path


@pytest.mark.parametrize("name", ["d.yaml", "d.yml", "d.json"])
def test_steps_are_texts_and_regions_in_order(folder, name):
    """In both languages; nothing of them is opened but to be checked."""
    path = written(folder, {"demonstrations": [plain(), plain(choices=[], answer="blue", id="b")]}, name)
    first, second = load_demonstrations(path)
    steps = ("There is a corner.", Region(0, 0, 10, 5), "It is blue.", Region(0, 0, 40, 20))
    assert first == Demonstration(folder / "a.png", "Which colour?", steps, "B", ("red", "blue"))
    assert (second.choices, second.answer) == ((), "blue")
    assert is_demonstrations(path)


def test_a_region_is_cut_as_its_box_says(folder):
    """Right and bottom are outside; of a turned photograph, boxes are in the upright picture."""
    (demonstration,) = load_demonstrations(written(folder, {"demonstrations": [plain()]}))
    corner = demonstration.cut(Region(0, 0, 10, 5))
    assert corner.size == (10, 5) and corner.getcolors() == [(50, (0, 0, 255))]
    assert demonstration.cut(Region(9, 4, 11, 6)).getcolors() == [(3, (255, 0, 0)), (1, (0, 0, 255))]
    turned = plain(image="turned.jpg", steps=[[15, 0, 20, 40], "It is blue."])
    (demonstration,) = load_demonstrations(written(folder, {"demonstrations": [turned]}))
    red, _, blue = demonstration.cut(Region(16, 1, 19, 8)).resize((1, 1)).getpixel((0, 0))
    assert blue > 200 > red


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"image": "none.png"}, "image · none.png · no such image file"),
        ({"image": "../a.png"}, "image · ../a.png · the image lies outside the image root"),
        ({"image": "cut.png"}, "cut.png · the image is truncated or damaged"),
        ({"image": 5}, "image · Input should be a valid string"),
        ({"question": " "}, "question · empty"),
        ({"answer": ""}, "answer · empty"),
        ({"answer": "C"}, "answer · 'C' names no option · allowed: A, B"),
        ({"answer": "b"}, "answer · 'b' names no option"),
        ({"answer": 1}, "answer · Input should be a valid string"),
        ({"choices": ["red"]}, "choices · expected 2 to 26 options with text"),
        ({"choices": ["red", " "]}, "choices · expected 2 to 26 options with text"),
        ({"choices": ["x"] * 27}, "choices · List should have at most 26 items"),
        ({"steps": []}, "steps · List should have at least 1 item"),
        ({"steps": "It is."}, "steps · Input should be a valid list"),
        ({"steps": ["a", " "]}, "steps.1 · empty · a step is a text or a box"),
        ({"steps": [[0, 0, 10]]}, "steps.0 · neither a text nor a box · a box is [left, top, right, bottom], whole numbers"),
        ({"steps": [[0, 0, 10, 5, 7]]}, "steps.0 · neither a text nor a box"),
        ({"steps": [[0, 0, 10.5, 5]]}, "steps.0 · neither a text nor a box"),
        ({"steps": [[0, 0, True, 5]]}, "steps.0 · neither a text nor a box"),
        ({"steps": [{"text": "It is."}]}, "steps.0 · neither a text nor a box"),
        ({"steps": [None]}, "steps.0 · neither a text nor a box"),
        ({"steps": [[5, 0, 5, 5]]}, "steps.0 · nothing is in the box [5, 0, 5, 5] · left is less than right"),
        ({"steps": [[0, 5, 5, 4]]}, "steps.0 · nothing is in the box [0, 5, 5, 4]"),
        ({"steps": [[0, 0, 41, 20]]}, "steps.0 · the box [0, 0, 41, 20] is not inside its image of 40×20 pixels"),
        ({"steps": [[0, 0, 40, 21]]}, "40×20 pixels · at most [0, 0, 40, 20]"),
        ({"steps": [[-1, 0, 4, 2]]}, "steps.0 · the box [-1, 0, 4, 2] is not inside"),
        ({"steps": [[0, -1, 4, 2]]}, "steps.0 · the box [0, -1, 4, 2] is not inside"),
        ({"step": []}, "step · unknown key · did you mean 'steps'?"),
    ],
)
def test_mistakes_are_named(folder, keys, told):
    """By file, key, what is wrong and what is allowed."""
    path = written(folder, {"demonstrations": [plain(), plain(**keys)]})
    with pytest.raises(DataError) as caught:
        load_demonstrations(path)
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(f"{path} · demonstrations.1.") or f"{path} · demonstrations.1 · " in str(caught.value)
    assert told in str(caught.value)


def test_all_mistakes_are_told_at_once(folder):
    """Of one demonstration and of several; an image that cannot be opened hides no empty box."""
    bad = plain(image="none.png", question="", steps=[[3, 3, 3, 3], [0, 0, 99, 99]])
    path = written(folder, {"demonstrations": [bad, 5, plain(answer="E")], "more": 1})
    with pytest.raises(DataError) as caught:
        load_demonstrations(path)
    places = [problem.where.removeprefix(f"{path} · ") for problem in caught.value.problems]
    of_first = ["demonstrations.0 · question", "demonstrations.0 · image · none.png", "demonstrations.0 · steps.0"]
    assert places == ["more", *of_first, "demonstrations.1", "demonstrations.2 · answer"]


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("{", "x.json", "not JSON"),
        ("a: b: c", "x.yaml", "not YAML"),
        ("demonstrations: []\ndemonstrations: []", "x.yaml", "the key 'demonstrations' occurs twice"),
        ("[]", "x.json", "demonstrations · no list of demonstrations · expected demonstrations: [{image, question"),
        ("demonstrations: {}", "x.yaml", "no list of demonstrations"),
        ("demonstrations: []", "x.yaml", "no list of demonstrations"),
        ("", "x.yaml", "no list of demonstrations"),
        ("demonstrations: [[1]]", "x.yaml", "demonstrations.0 · not a mapping · expected id, image, question"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, text, name, told):
    """With what was expected."""
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        load_demonstrations(tmp_path / name)
    assert told in str(caught.value)
    with pytest.raises(DataError, match="no such file of demonstrations"):
        load_demonstrations(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ('{"demonstrations": 5}', "x.json", True),
        (' \n{"demonstrations": []}', "x.json", True),
        ("demonstrations:\n", "x.yaml", True),
        ('[{"demonstrations": 5}]', "x.json", False),
        ('{"demonstrations"', "x.json", False),
        ('{"demonstrations": 5}', "x.jsonl", False),
        ("name: x", "x.yaml", False),
        ("- demonstrations", "x.yaml", False),
    ],
)
def test_a_file_is_known_by_its_key(tmp_path, text, name, expected):
    """Good or not; everything else is left to others."""
    (tmp_path / name).write_text(text)
    assert is_demonstrations(tmp_path / name) is expected
    assert not is_demonstrations(tmp_path / "none.yaml")


def test_a_list_is_not_read_to_its_end(tmp_path, monkeypatch):
    """A data set can be far larger than any file of demonstrations."""
    (tmp_path / "x.json").write_text("[]")
    monkeypatch.delattr("lora_cot.data.demonstrations._value")
    assert not is_demonstrations(tmp_path / "x.json")


@settings(max_examples=60)
@given(st.lists(st.integers(-3, 43), min_size=4, max_size=4))
def test_a_box_is_taken_if_it_holds_pixels_of_the_image_alone(folder, box):
    """Exactly those whose every pixel exists, and that have one."""
    left, top, right, bottom = box
    columns, rows = range(left, right), range(top, bottom)
    good = bool(columns) and bool(rows) and set(columns) <= set(range(40)) and set(rows) <= set(range(20))
    path = written(folder, {"demonstrations": [plain(steps=[box])]}, "box.json")
    try:
        (demonstration,) = load_demonstrations(path)
    except DataError:
        assert not good
    else:
        assert good and demonstration.cut(*demonstration.steps).size == (len(columns), len(rows))
