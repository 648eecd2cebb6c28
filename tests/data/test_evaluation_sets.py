"""Published sets of questions that nothing is trained on: their files, and what is wrong with rows that cannot be asked."""

import base64
import json

import pytest

from lora_cot.data import ai2d, hallusionbench, mathvista, mmbench, mmstar, mmvet
from lora_cot.data.images import open_image
from lora_cot.data.mmstar import options_in
from lora_cot.errors import DataError
from tests import published
from tests.published import cell, mathvista_row, mmbench_row, mmstar_row, mmvet_row, png

MODULES = {
    "mmstar": mmstar,
    "mmbench": mmbench,
    "ai2d": ai2d,
    "mathvista": mathvista,
    "mmvet": mmvet,
    "hallusionbench": hallusionbench,
}


@pytest.fixture
def read(tmp_path):
    """The questions of rows in the hub's form."""

    def questions(name, rows, use="evaluation"):
        module = MODULES[name]
        published.table_of(name, tmp_path / name, module.SPLITS[0], rows)
        return module.questions(str(tmp_path / name), module.SPLITS[0], use)

    return questions


@pytest.mark.parametrize("name", MODULES)
def test_bad_rows_are_counted_and_listed(name, read):
    """A column that is missing, an empty question and a missing image make a row a problem; the others are asked."""
    make = getattr(published, f"{name}_row")
    image = "decoded_image" if name == "mathvista" else "image"
    question = "query" if name == "mathvista" else "question"
    good, blind, empty = make(0), make(2, **{image: None}), make(4, **{question: " "})
    found = read(name, [good, blind, empty])
    assert (found.total, found.bad) == (3, 2)
    assert {problem.where.split(" · ")[-1] for problem in found.problems} == {"image", question}
    assert open_image(found.samples[0].images[0]).getpixel((0, 0)) == (255, 0, 0)
    missing = {key: value for key, value in make(0).items() if key != question}
    (problem,) = read(name, [missing]).problems
    assert (problem.where.split(" · ")[-1], problem.what) == (question, "Field required")


@pytest.mark.parametrize(
    ("name", "keys", "told"),
    [
        ("mmstar", {"answer": "E"}, "4 is no index of its 4 options"),
        ("mmstar", {"answer": "a fern"}, "'a fern' names no option"),
        ("mmbench", {"answer": "D"}, "3 is no index of its 3 options"),
        ("mmbench", {"index": "x"}, "'x' is no number"),
        ("ai2d", {"answer": "4"}, "4 is no index of its 4 options"),
        ("ai2d", {"answer": "fern"}, "None is no index of its 4 options"),
        ("mathvista", {"answer": "103"}, "'103' is none of its options"),
        ("mathvista", {"precision": float("nan")}, "precision · Input should be a finite number"),
        ("mathvista", {"precision": -1.0}, "precision · Input should be greater than or equal to 0"),
        ("mathvista", {"question_type": "open"}, "Input should be 'multi_choice' or 'free_form'"),
        ("mmvet", {"capability": "ocr,taste"}, "names other capabilities than rec, ocr, know, gen, spat, math"),
        ("mmvet", {"capability": ""}, "names other capabilities"),
        ("hallusionbench", {"gt_answer": "2"}, "Input should be '0' or '1'"),
    ],
)
def test_a_gold_answer_that_cannot_be_is_told(name, keys, told, read):
    """Nothing is asked whose right answer is not known."""
    found = read(name, [getattr(published, f"{name}_row")(0, **keys)])
    assert not found.samples and told in str(found.problems[0])


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which?\nOptions: A: a fern, green, B: granite, C: a newt", ("a fern, green", "granite", "a newt")),
        ("Which?\nChoices:\n(A) 97\n(B) 10.2", ("97", "10.2")),
        ("Which Options: are there? Options: A. one B. two", ("one", "two")),
        ("Which?\nOptions: A: one, C: two", ("",) * 4),
        ("Is it A: or B: there?", ("",) * 4),
        ("Which?", ("",) * 4),
    ],
)
def test_options_are_found_in_a_question(question, options):
    """In each published spelling; where letters are not in order they are not told apart."""
    assert options_in(question) == options


def test_mmstar_is_asked_as_published(read):
    """Its options stay in the question, and are not given twice."""
    (sample,) = read("mmstar", [mmstar_row(3)]).samples
    assert (sample.id, sample.last.question, sample.choices) == ("3", mmstar_row()["question"], ())
    assert sample.meta == {"gold": 0, "options": sample.meta["options"], "skill": "coarse perception", "axis": "image emotion"}


def test_mmstars_options_can_have_columns(read):
    """They are asked with a question that holds none, and not given twice to one that does."""
    columns = {"A": "a fern", "B": "granite", "C": "", "D": "nan"}
    bare, whole = read("mmstar", [mmstar_row(1, question="Which?", **columns), mmstar_row(2, **columns)]).samples
    assert bare.choices == bare.meta["options"] == ("a fern", "granite")
    assert (whole.choices, len(whole.meta["options"])) == ((), 4)


def test_mmbench_makes_rotations_where_there_are_none(read):
    """Each rotation has the right option at its new place; options without text are none; a hint stands before."""
    samples = read("mmbench", [mmbench_row(7, hint="Plants grow.", answer="B"), mmbench_row(8, C=None)]).samples
    assert [sample.id for sample in samples] == ["7", "1000007", "2000007", "8", "1000008"]
    assert [sample.choices[0] for sample in samples[:3]] == ["fern", "granite", "newt"]
    assert {sample.choices[sample.meta["gold"]] for sample in samples[:3]} == {"granite"}
    assert [sample.last.answer for sample in samples[:3]] == ["B", "A", "C"]
    assert samples[0].last.question == "Hint: Plants grow.\nWhich is a plant?"


def test_mmbench_takes_the_rotations_that_are_there(tmp_path):
    """VLMEvalKit's table holds them, all cells texts, with an image once; each question is followed by its rotations."""
    encoded = base64.b64encode(png("blue") + b"\0" * 64).decode()
    turned = {"A": "newt", "B": "fern", "C": "granite", "answer": "B"}
    rows = [mmbench_row(2, image=encoded), mmbench_row(3, image="2"), mmbench_row(1000002, image="2", **turned)]
    rows += [mmbench_row(4, image="not an image!"), mmbench_row(5, image="ké")]
    columns = list(rows[0])
    lines = ["\t".join("" if row[name] == "nan" else str(row[name]) for name in columns) for row in rows]
    (tmp_path / "MMBench_DEV_EN.tsv").write_text("\n".join(["\t".join(columns), *lines]))
    found = mmbench.questions(str(tmp_path / "MMBench_DEV_EN.tsv"), "dev_en", "evaluation")
    assert [(sample.id, sample.last.answer) for sample in found.samples] == [("2", "A"), ("1000002", "B"), ("3", "A")]
    assert all(open_image(sample.images[0]).getpixel((0, 0)) == (0, 0, 255) for sample in found.samples)
    assert [str(problem) for problem in found.problems] == [
        f"{tmp_path}/MMBench_DEV_EN.tsv row {number} · image · the row has no image" for number in (4, 5)
    ]


def test_mathvista_asks_by_its_query(read):
    """With options it holds the letter as the answer; of a number, how many digits count."""
    free = {"question_type": "free_form", "answer_type": "float", "choices": None, "precision": 1.0, "answer": "1.2"}
    first, second = read("mathvista", [mathvista_row(1), mathvista_row(2, **free)]).samples
    assert (first.last.question, first.last.answer, first.meta["options"]) == (mathvista_row()["query"], "B", ("97", "102"))
    assert (second.last.answer, second.meta["options"], second.meta["precision"]) == ("1.2", (), 1.0)
    for answer in ("a few", "nan"):
        (problem,) = read("mathvista", [mathvista_row(1), mathvista_row(2, **free | {"answer": answer})]).problems
        assert f"'{answer}' is no number" in str(problem)


def test_mmvet_in_its_original_form(tmp_path):
    """The JSON and its pictures; scoring opens none of them."""
    row = {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]}
    (tmp_path / "mm-vet.json").write_text(json.dumps({"v1_0": row, "v1_1": row | {"imagename": "gone.png"}, "v1_2": 3}))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "v1_0.png").write_bytes(png())
    found = mmvet.questions(str(tmp_path), "test", "evaluation")
    assert [(sample.id, sample.meta["capabilities"]) for sample in found.samples] == [("v1_0", ("ocr", "math"))]
    assert [problem.kind for problem in found.problems] == ["image_missing", "row_unreadable"]
    assert len(mmvet.questions(str(tmp_path), "test", "scoring").samples) == 2


def test_ids_and_places(read, tmp_path):
    """AI2D's ids are its rows' numbers; HallusionBench's name the figure and the question; MMStar's file has its own name."""
    assert [sample.id for sample in read("ai2d", None).samples] == ["1", "2", "3"]
    assert [sample.id for sample in read("hallusionbench", None).samples] == [
        "VD_chart_0_0_0",
        "VD_chart_0_0_1",
        "VD_chart_0_1_0",
    ]
    published.parquet(tmp_path / "star" / "mmstar.parquet", [mmstar_row(5)])
    assert mmstar.questions(str(tmp_path / "star"), "val", "evaluation").samples[0].id == "5"
    with pytest.raises(DataError, match="no such data file"):
        mmbench.questions(str(tmp_path / "none.tsv"), "dev_en", "evaluation")


def test_questions_without_a_figure(tmp_path):
    """HallusionBench's own file holds them beside the others; the hub's tables are one for each kind."""
    file = published.hallusionbench_file(tmp_path)
    names = {
        split: [sample.id for sample in hallusionbench.questions(str(tmp_path), split, "evaluation").samples]
        for split in hallusionbench.SPLITS
    }
    assert names["non_image"] == ["VS_map_1_0_0", "VS_map_1_0_1"]
    assert names["image"] == ["VD_chart_0_0_0", "VD_chart_0_1_0", "VS_map_1_1_0", "VS_map_1_1_1"]
    assert sorted(names["all"]) == sorted(names["image"] + names["non_image"])
    found = hallusionbench.questions(str(file), "all", "evaluation")
    assert [(len(sample.images), hallusionbench.figure_of(sample)) for sample in found.samples] == [
        (1, "VD_chart_0_0"),
        (1, "VD_chart_0_1"),
        (0, None),
        (0, None),
        (1, "VS_map_1_1"),
        (1, "VS_map_1_1"),
    ]
    assert open_image(found.samples[1].images[0]).getpixel((0, 0)) == (255, 0, 0)
    published.table_of("hallusionbench", tmp_path / "hub", "all")
    both = hallusionbench.questions(str(tmp_path / "hub"), "all", "evaluation").samples
    assert [(sample.id, len(sample.images)) for sample in both][2:4] == [("VD_chart_0_1_0", 1), ("VS_chart_0_0_0", 0)]


def test_a_figure_that_is_not_there(tmp_path):
    """And a row that is none: each is told, whatever the split; scoring needs no figures."""
    file = published.hallusionbench_file(tmp_path)
    (tmp_path / "hallusion_bench" / "VD" / "chart" / "0_1.png").unlink()
    file.write_text(json.dumps([*json.loads(file.read_text()), "no row", {"visual_input": "3"}]))
    found = hallusionbench.questions(str(tmp_path), "image", "evaluation")
    assert len(found.samples) == 3 and {problem.kind for problem in found.problems} >= {"image_missing", "row_unreadable"}
    assert found.bad == 3 and any("Input should be '0', '1' or '2'" in problem.what for problem in found.problems)
    assert len(hallusionbench.questions(str(tmp_path), "image", "scoring").samples) == 4


def test_an_image_that_is_none_is_left_to_the_asking(read):
    """A table's cell is opened when the question is asked: what is wrong with it is that question's answer."""
    broken = cell() | {"bytes": b"no image"}
    (sample,) = read("mmvet", [mmvet_row(0, image=broken)]).samples
    with pytest.raises(DataError, match="not an image in a known format"):
        open_image(sample.images[0])
