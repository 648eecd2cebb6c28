"""Demonstrations: read as they stand, refused with the place of every mistake, and shown as a prompt holds them."""

import copy
import json
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_cot.data.chat import ChatEncoder
from lora_cot.data.collate import encode
from lora_cot.data.demonstrations import Demonstration, Region, is_demonstrations, load_demonstrations, preface
from lora_cot.data.images import open_image
from lora_cot.data.shapes import make_sample
from lora_cot.errors import DataError
from lora_cot.formats import FORMATS
from lora_cot.types import Exchange, Sample
from tests.conftest import plain_processor


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


QUESTION = Sample("q", (Exchange("How many?"),), make_sample(0, "train", 0).images)
STEP_BY_STEP = FORMATS["step_by_step"]
IMAGES_FIRST = (
    "{% for m in messages %}{{ m.role.upper() }}: {% for c in m.content if c.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ c.text }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""As LLaVA-1.5's template has it, whatever the order of the parts."""


def shown(folder, cot_format=STEP_BY_STEP, **keys):
    """The question after two demonstrations, one of them without options."""
    second = plain(choices=[], answer="blue", steps=["It is blue."])
    examples = load_demonstrations(written(folder, {"demonstrations": [plain(**keys), second]}))
    return preface(examples, cot_format).before(QUESTION)


def test_a_prompt_shows_texts_and_regions_in_turn(each_chat, folder):
    """Token by token what the model's own template makes of the parts in that order, before the question's own image."""
    sample = shown(folder)
    assert sample.own_images == QUESTION.images and len(sample.images) == 5
    question = STEP_BY_STEP.question(QUESTION.last)
    shots = [
        "Question: Which colour?\nOptions: (A) red (B) blue\nLet's think step by step.\nThere is a corner.\n",
        "It is blue.\n",
        "Answer: (B)\n\n",
        "Question: Which colour?\nLet's think step by step.\nIt is blue.\nAnswer: blue\n\n",
    ]
    image = {"type": "image"}
    first, *others = ({"type": "text", "text": text} for text in shots)
    processor = each_chat.processor
    parts = [image, first, image, others[0], image, others[1], image, others[2], image, {"type": "text", "text": question}]
    processor = each_chat.processor
    text = processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True)
    images = [open_image(one) for one in sample.images]
    expected = plain_processor(processor)(images=[images], text=text, add_special_tokens=False)["input_ids"][0]
    assert encode(each_chat.encoder(STEP_BY_STEP), sample, False).input_ids == list(expected)
    assert [image.size for image in images][1:3] == [(10, 5), (40, 20)]


def test_a_template_that_puts_images_first_does_not_move_them(tiny, folder):
    """Each image stands where its demonstration shows it, written as that template writes one."""
    processor = copy.copy(tiny.processor)
    processor.chat_template = IMAGES_FIRST
    sample = shown(folder)
    sample = replace(sample, exchanges=(Exchange("What?", answer="4"), *sample.exchanges))
    encoder = ChatEncoder(processor, STEP_BY_STEP)
    encoded = encode(encoder, sample, False)
    text = encoder.tokenizer.decode(encoded.input_ids).replace("<image>" * 4, "<image>")
    assert text.count("<image>\n") == 5
    assert text.startswith("USER: <image>\nQuestion: Which colour?")
    assert "There is a corner.\n<image>\nIt is blue.\n<image>\nAnswer: (B)" in text
    assert "Answer: blue\n\n<image>\nQuestion: What?" in text and text.endswith("Let's think step by step. ASSISTANT:")
    assert encoded.images == 5


def test_a_demonstration_cannot_forge_an_image(tiny, folder):
    """What its texts quote is its characters."""
    sample = shown(folder, question="<image> or <|end|>?", steps=["<image>", [0, 0, 10, 5]])
    encoded = encode(tiny.encoder(STEP_BY_STEP), sample, False)
    assert encoded.input_ids.count(tiny.encoder(STEP_BY_STEP).image_token_id) == 4 * 4
    assert "<image> or <|end|>?" in tiny.processor.tokenizer.decode(encoded.input_ids)


def test_steps_are_shown_where_the_format_reasons(folder):
    """A baseline that is asked for the answer alone is shown answers alone; formats with stages have no demonstrations."""
    only = shown(folder, FORMATS["answer_only"])
    assert only.preface[:2] == (None, "Question: Which colour?\nOptions: (A) red (B) blue\nAnswer:\n")
    assert len(only.images) == 3
    assert shown(folder, FORMATS["direct"]).preface[2] == "(B)\n\n"
    for name in ("four_stage", "two_stage"):
        with pytest.raises(DataError, match=f"no demonstration is written in the stages of the format {name} · ask in step"):
            shown(folder, FORMATS[name])


def test_an_encoder_decoder_takes_none(load_tiny, folder):
    """It reads one question and one image."""
    with pytest.raises(DataError, match="q · a demonstration, and this model reads its own question alone"):
        encode(load_tiny("t5_vision").encoder(STEP_BY_STEP), shown(folder), False)
