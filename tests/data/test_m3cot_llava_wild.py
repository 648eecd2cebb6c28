"""M3CoT and LLaVA-Bench as sources, in their original forms and the hub's."""

import json

import pytest

from lora_cot.data import llava_wild, m3cot
from lora_cot.data.images import open_image
from lora_cot.data.rows import collect
from lora_cot.data.sources import rows_of
from lora_cot.errors import DataError
from lora_cot.formats import FORMATS
from lora_cot.recipe.sources import LlavaWildSource, M3cotSource
from tests import published
from tests.published import json_lines, m3cot_record

TWO_STAGE, DIRECT = FORMATS["two_stage"], FORMATS["direct"]


def m3cot_source(path, **keys):
    return M3cotSource(source="m3cot", path=str(path), **({"split": "test"} | keys))


def wild_source(path, **keys):
    return LlavaWildSource(source="llava_wild", path=str(path), **keys)


def load_source(source, cot_format=TWO_STAGE):
    return collect(rows_of(source, cot_format), source)


def test_a_record_becomes_a_question(tmp_path):
    """Its context stands below the question where there is one; the image is the file of its id's name, beside the rows."""
    records = [m3cot_record(1, context=" Look. "), m3cot_record(2, image=None, answer="C")]
    first, second = load_source(m3cot_source(published.m3cot(tmp_path, records)))
    assert first.last.question == "Which is a plant?\nContext: Look." and second.last.question == "Which is a plant?"
    assert first.choices == ("fern", "granite", "newt") and first.images == (tmp_path / "images" / "physics-1.png",)
    assert TWO_STAGE.gold(first.last) == {"RATIONALE": "A fern grows.", "ANSWER": "The answer is (A)."}
    assert (second.id, second.last.answer, second.images) == ("physics-2", "C", (tmp_path / "images" / "physics-2.png",))
    meta = {"gold": 0, "domain": "science", "topic": "natural-science", "rationales": ["A fern grows."]}
    assert first.meta == meta


@pytest.mark.parametrize(("split", "file"), [("dev", "validation"), ("test", "test"), ("train", "train")])
def test_the_hubs_parquet(tmp_path, split, file):
    """The image comes in the table; its `validation` is `dev`."""
    record = m3cot_record(3, image={"bytes": published.png("blue"), "path": None})
    published.parquet(tmp_path / "data" / f"{file}-00000-of-00001.parquet", [record])
    (sample,) = load_source(m3cot_source(tmp_path, split=split))
    assert open_image(sample.images[0]).getpixel((0, 0)) == (0, 0, 255) and sample.id == "physics-3"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"answer": "D"}, "answer · 3 is no index of its 3 options"),
        ({"answer": "a"}, "answer · 'a' names no option · expected a letter: A"),
        ({"answer": ""}, "answer · '' names no option"),
        ({"answer": "AB"}, "answer · 'AB' names no option"),
        ({"answer": "Ä"}, "answer · 'Ä' names no option"),
        ({"answer": 0}, "answer · Input should be a valid string"),
        ({"choices": ["fern", " "]}, "choices · expected 2 to 26 options with text"),
        ({"question": " "}, "question · empty"),
        ({"rationale": " "}, "rationale · empty"),
        ({"domain": ""}, "domain · empty"),
        ({"topic": " "}, "topic · empty"),
        ({"image": "data/images/gone.png"}, "gone.png · no such image file"),
        ({"image": "/etc/../.."}, ".. · the image lies outside the image root"),
        ({"id": None}, "id · Input should be a valid string"),
    ],
)
def test_bad_records_are_named(tmp_path, keys, told):
    """By file, row and key."""
    published.m3cot(tmp_path, [m3cot_record(0)])
    json_lines(tmp_path / "test.jsonl", [m3cot_record(0), m3cot_record(0, id="physics-9") | keys])
    source = m3cot_source(tmp_path)
    with pytest.raises(DataError) as caught:
        load_source(source)
    assert "test.jsonl line 2 · " in str(caught.value) and told in str(caught.value)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    """Whatever a downloaded folder holds."""
    (tmp_path / "secret.png").write_bytes(published.png())
    folder = published.m3cot(tmp_path / "data", [m3cot_record(0)], images=False)
    (folder / "images" / "physics-0.png").symlink_to(tmp_path / "secret.png")
    found = m3cot.questions(m3cot_source(folder), "evaluation")
    assert found.samples == [] and found.problems[0].kind == "image_outside_root"


def test_scoring_needs_no_image_and_no_rationale(tmp_path):
    """Asking needs the image; training the rationale too."""
    source = m3cot_source(published.m3cot(tmp_path, [m3cot_record(0, rationale="")], images=False))
    assert len(m3cot.questions(source, "scoring").samples) == 1
    assert m3cot.questions(source, "evaluation").problems[0].kind == "image_missing"
    published.m3cot(tmp_path, [m3cot_record(0, rationale=None)])
    assert len(m3cot.questions(source, "evaluation").samples) == len(load_source(source, DIRECT)) == 1


def test_a_folder_without_the_split_is_refused(tmp_path):
    """The file that was looked for is named."""
    with pytest.raises(DataError, match=r"dev.jsonl · no such data file"):
        load_source(m3cot_source(published.m3cot(tmp_path, []), split="dev"))


# LLaVA-Bench


def test_questions_get_their_reference_answers(tmp_path):
    """By id, whatever the order; the pictures lie in `images/`."""
    path = published.llava_wild(tmp_path)
    answers = (path / "answers_gpt4.jsonl").read_text().splitlines()
    (path / "answers_gpt4.jsonl").write_text("\n".join(reversed(answers)))
    samples = load_source(wild_source(path), DIRECT)
    assert [sample.id for sample in samples] == ["0", "1", "2"]
    assert [sample.last.answer for sample in samples] == [f"The big red fern grows {n} leaves." for n in range(3)]
    assert DIRECT.gold(samples[1].last) == {"ANSWER": samples[1].last.answer}
    assert samples[1].images == (tmp_path / "images" / "002.png",)
    assert [sample.meta["category"] for sample in samples] == ["conv", "detail", "complex"]


def test_the_hubs_parquet_of_llava_bench(tmp_path):
    """Question and reference answer stand in one row."""
    row = {"question_id": "7", "question": "What?", "category": "conv", "gpt_answer": "A fern.", "caption": "Green."}
    published.parquet(tmp_path / "data" / "train-0.parquet", [row | {"image": {"bytes": published.png(), "path": None}}])
    (sample,) = load_source(wild_source(tmp_path), DIRECT)
    assert (sample.id, sample.last.question, sample.last.answer) == ("7", "What?", "A fern.")
    assert open_image(sample.images[0]).size == (8, 8)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"question_id": 9}, "question_id · there is no reference answer for 9 · add it to answers_gpt4.jsonl"),
        ({"question_id": True}, "there is no reference answer for True"),
        ({"question_id": [1]}, r"there is no reference answer for [1]"),
        ({"text": None}, "question · Input should be a valid string"),
        ({"text": " "}, "question · empty"),
        ({"image": "../001.png"}, "../001.png · the image lies outside the image root"),
        ({"image": None}, "image · the row has no image"),
        ({"question_id": 0}, "'0' occurs twice"),
    ],
)
def test_bad_questions_are_named(tmp_path, keys, told):
    """By file, row and key; the others are asked."""
    path = published.llava_wild(tmp_path)
    rows = [json.loads(line) for line in (path / "questions.jsonl").read_text().splitlines()]
    json_lines(path / "questions.jsonl", [rows[0], rows[1] | keys, rows[2]])
    found = llava_wild.questions(wild_source(path), "evaluation")
    assert [sample.id for sample in found.samples] == ["0", "2"]
    (problem,) = found.problems
    assert str(problem).startswith("questions.jsonl line 2 · ") and told in str(problem)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"question_id": 0, "text": "A."}] * 2, "line 2 · question_id · 0 occurs twice"),
        ([{"question_id": 0}], "line 1 · text · Field required"),
        ([{"question_id": "0", "text": "A."}], "line 1 · question_id · Input should be a valid integer"),
    ],
)
def test_bad_reference_answers_are_refused(tmp_path, rows, told):
    """No question could be trusted."""
    path = published.llava_wild(tmp_path)
    json_lines(path / "answers_gpt4.jsonl", rows)
    with pytest.raises(DataError) as caught:
        llava_wild.questions(wild_source(path), "scoring")
    assert f"answers_gpt4.jsonl {told}" in str(caught.value)


def test_an_empty_reference_answer_is_no_question(tmp_path):
    """ROUGE-L against nothing would be 0 for everything."""
    path = published.llava_wild(tmp_path, 1)
    json_lines(path / "answers_gpt4.jsonl", [{"question_id": 0, "text": "\n"}])
    assert "gpt_answer · empty" in str(llava_wild.questions(wild_source(path), "scoring").problems[0])


def test_a_folder_without_questions_is_refused(tmp_path):
    """The file that was looked for is named; which of two is meant is not guessed."""
    with pytest.raises(DataError, match=r"answers_gpt4.jsonl · no such data file"):
        llava_wild.questions(wild_source(tmp_path), "scoring")
    path = published.llava_wild(tmp_path)
    (path / "questions.jsonl").rename(path / "my_questions.jsonl")
    assert len(llava_wild.questions(wild_source(path), "scoring").samples) == 3
    (path / "your_questions.jsonl").write_text("")
    with pytest.raises(DataError, match=r"/questions.jsonl · no such data file"):
        llava_wild.questions(wild_source(path), "scoring")


def test_all_of_the_real_benchmark(shared_data):
    """60 questions, each with its reference answer, of three kinds."""
    folder = shared_data("llavaw_questions.jsonl").parent
    found = llava_wild.questions(wild_source(folder), "scoring")
    kinds = [sample.meta["category"] for sample in found.samples]
    counted = {kind: kinds.count(kind) for kind in set(kinds)}
    assert (len(found.samples), found.problems) == (60, []) and counted == {"conv": 17, "detail": 15, "complex": 28}
