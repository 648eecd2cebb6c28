"""A-OKVQA as a source, in its original form and the hub's; MMMU's questions with their up to seven images."""

import json

import pytest

from lora_cot.data import mmmu
from lora_cot.data.images import open_image
from lora_cot.data.rows import collect
from lora_cot.data.sources import rows_of
from lora_cot.errors import DataError
from lora_cot.formats import FORMATS
from lora_cot.recipe.sources import AokvqaSource
from tests import published
from tests.published import aokvqa_record, mmmu_row

TWO_STAGE = FORMATS["two_stage"]
IMAGES = [f"image_{number}" for number in range(1, 8)]


def load_source(source, cot_format):
    return collect(rows_of(source, cot_format), source)


def source(path, **keys):
    return AokvqaSource(source="aokvqa", path=str(path), **({"split": "val"} | keys))


def test_a_record_becomes_a_question_with_options(tmp_path):
    """The first rationale is trained on, the others are kept for scoring; the image is COCO's, by twelve digits."""
    (sample,) = load_source(source(published.aokvqa(tmp_path, [aokvqa_record()])), TWO_STAGE)
    rationale, answer = TWO_STAGE.passes
    assert rationale.question(sample.last, sample.choices).splitlines() == [
        "Question: What is he waiting for?",
        "Context: N/A",
        "Options: (A) skateboarder (B) train (C) delivery (D) cab",
        "Solution:",
    ]
    assert TWO_STAGE.gold(sample.last) == {"RATIONALE": "He has bags.", "ANSWER": "The answer is (D)."}
    assert (sample.id, sample.last.answer, sample.images) == ("q0", "D", (tmp_path / "000000299207.jpg",))
    assert sample.meta["rationales"] == ["He has bags.", "He looks for one."]
    assert answer.gold(sample.last)["ANSWER"] == "The answer is (D)."


def test_it_can_be_asked_without_options(tmp_path):
    """The answer is then the commonest of the ten."""
    path = published.aokvqa(tmp_path, [aokvqa_record()])
    (sample,) = load_source(source(path, task="direct_answer"), TWO_STAGE)
    assert (sample.choices, sample.last.answer, TWO_STAGE.gold(sample.last)["ANSWER"]) == ((), "cab", "cab")


@pytest.mark.parametrize("listed", [str, json.dumps, list])
def test_the_hubs_parquet(tmp_path, listed):
    """Its lists can be texts, and the image comes in the table."""
    record = aokvqa_record(image={"bytes": published.png("blue"), "path": None})
    record["direct_answers"] = listed(record["direct_answers"])
    del record["image_id"]
    published.parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", [record])
    (sample,) = load_source(source(tmp_path), TWO_STAGE)
    assert open_image(sample.images[0]).getpixel((0, 0)) == (0, 0, 255)
    assert sample.meta["direct_answers"] == aokvqa_record()["direct_answers"]


@pytest.mark.parametrize(
    ("keys", "task", "told"),
    [
        ({"correct_choice_idx": 4}, "multiple_choice", "correct_choice_idx · 4 is no index of its 4 options"),
        ({"correct_choice_idx": None}, "multiple_choice", "correct_choice_idx · None is no index"),
        ({"rationales": [" "]}, "multiple_choice", "rationales · empty"),
        ({"image_id": 5}, "multiple_choice", "000000000005.jpg · no such image file"),
        ({"direct_answers": []}, "direct_answer", "direct_answers · empty"),
        ({"question": " "}, "multiple_choice", "question · empty"),
        ({"choices": "cab"}, "multiple_choice", "choices · Input should be a valid list"),
    ],
)
def test_bad_records_are_named(tmp_path, keys, task, told):
    """By file, row and key."""
    path = published.aokvqa(tmp_path, [aokvqa_record()])
    (path / "aokvqa_v1p0_val.json").write_text(json.dumps([aokvqa_record(1, image_id=299207), aokvqa_record(**keys)]))
    with pytest.raises(DataError) as caught:
        load_source(source(path, task=task), TWO_STAGE)
    assert caught.value.problems[0].what.startswith("1 of 2 rows cannot be used")
    assert f"aokvqa_v1p0_val.json row 2 · {told}" in str(caught.value)


def test_a_folder_without_the_split_is_refused(tmp_path):
    """The file that was looked for is named."""
    with pytest.raises(DataError, match=r"aokvqa_v1p0_train.json · no such data file"):
        load_source(source(published.aokvqa(tmp_path, []), split="train"), TWO_STAGE)


# MMMU


def test_a_question_keeps_its_images_in_order(tmp_path):
    """Options come out of a text; markers stay in the question; all subjects' files are read."""
    rows = [mmmu_row(1, images=2, image_2={"bytes": published.png("blue"), "path": None})]
    published.parquet(tmp_path / "Art" / "validation-00000-of-00001.parquet", rows, IMAGES)
    music = [mmmu_row(1, id="validation_Music_1", images=0), mmmu_row(2, images=7)]
    published.parquet(tmp_path / "Music" / "validation-00000-of-00001.parquet", music, IMAGES)
    published.parquet(tmp_path / "Music" / "dev-00000-of-00001.parquet", [mmmu_row()], IMAGES)
    found = mmmu.questions(str(tmp_path), "validation", "evaluation")
    first, second, third = found.samples
    assert (first.last.question, first.choices, first.last.answer) == (
        "What does <image 1> show?",
        ("a fern", "a newt's egg"),
        "B",
    )
    assert [open_image(image).getpixel((0, 0)) for image in first.images] == [(255, 0, 0), (0, 0, 255)]
    assert (first.meta["subject"], second.meta["subject"], len(second.images), len(third.images)) == ("Art", "Music", 0, 7)
    assert len(mmmu.questions(str(tmp_path), "dev", "evaluation").samples) == 1


def test_open_questions_are_left_out_and_counted(tmp_path):
    """So is an answer that names no option."""
    rows = [
        mmmu_row(1),
        mmmu_row(2, question_type="open", options="[]", answer="42"),
        mmmu_row(3, answer="C"),
        mmmu_row(4, answer="?"),
        mmmu_row(5, options="['a', __import__('os')]"),
    ]
    published.parquet(tmp_path / "validation.parquet", rows, IMAGES)
    found = mmmu.questions(str(tmp_path), "validation", "evaluation")
    assert (len(found.samples), found.bad, found.total) == (1, 4, 5)
    told = [str(problem) for problem in found.problems]
    assert "validation_Art_2 · an open question" in told[0] and "2 is no index of its 2 options" in told[1]
    assert "answer · '?' names no option" in told[2] and "options · Input should be a valid list" in told[3]
