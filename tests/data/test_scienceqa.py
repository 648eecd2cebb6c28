"""ScienceQA's questions as Multimodal-CoT asks them; and every real problem of the shared data, there and back."""

import json
import time

import pytest

from lora_cot.data import scienceqa
from lora_cot.data.images import open_image
from lora_cot.data.rows import collect
from lora_cot.data.sources import load_data, rows_of
from lora_cot.errors import DataError
from lora_cot.formats import FORMATS
from lora_cot.formats.answers import read_option
from lora_cot.recipe.schema import DataSection
from lora_cot.recipe.sources import ScienceqaSource
from tests import published
from tests.published import problem

TWO_STAGE = FORMATS["two_stage"]
RATIONALE, ANSWER = TWO_STAGE.passes


def load_source(source, cot_format):
    return collect(rows_of(source, cot_format), source)


@pytest.fixture
def load(tmp_path):
    """The training samples of problems by id; of a split with these ids, or all of them."""

    def samples(problems, ids=None, cot_format=TWO_STAGE, images=True, **keys):
        splits = {"train": list(problems) if ids is None else ids}
        folder = published.scienceqa(tmp_path / "data", problems, splits, images)
        return load_source(ScienceqaSource(source="scienceqa", path=str(folder), **keys), cot_format)

    return samples


def refused(samples, *arguments, **keys):
    """The lines of the error."""
    with pytest.raises(DataError) as caught:
        samples(*arguments, **keys)
    return [str(problem) for problem in caught.value.problems]


# The paper's prompts


def test_the_papers_prompts(load):
    """QCM→LE and QCMG→A, to the letter."""
    (sample,) = load({"7": problem(hint="Think of leaves.")})
    qcm = "Question: Which is a plant?\nContext: Think of leaves.\nOptions: (A) fern (B) granite (C) newt\n"
    rationale = "Plants grow. A fern grows."
    assert RATIONALE.question(sample.last, sample.choices) == qcm + "Solution:"
    assert RATIONALE.gold(sample.last) == {"RATIONALE": rationale}
    assert ANSWER.question(sample.last, sample.choices) == f"{qcm}Solution: {rationale}\nAnswer:"
    assert ANSWER.gold(sample.last) == {"ANSWER": "The answer is (A)."}


def test_the_rationale_can_be_the_explanation_alone(load):
    """QCM→E: both stages then see the solution without the lecture."""
    (sample,) = load({"7": problem()}, rationale="E")
    assert RATIONALE.gold(sample.last) == {"RATIONALE": "A fern grows."}
    assert "Solution: A fern grows.\nAnswer:" in ANSWER.question(sample.last, sample.choices)


@pytest.mark.parametrize(
    ("name", "cue", "target"),
    [
        ("answer_only", "Answer:", "The answer is (A)."),
        ("one_stage", "Solution:", "<RATIONALE> L S </RATIONALE>\n\n<ANSWER> The answer is (A). </ANSWER>"),
        ("answer_first", "Solution:", "<ANSWER> The answer is (A). </ANSWER>\n\n<RATIONALE> L S </RATIONALE>"),
    ],
)
def test_the_ablations_in_one_stage(load, name, cue, target):
    """QCM→A, QCM→LEA and QCM→ALE: one prompt, and all in one text."""
    cot_format = FORMATS[name]
    (sample,) = load({"7": problem(lecture="L", solution="S")}, cot_format=cot_format)
    question = cot_format.question(sample.last, sample.choices)
    assert question == f"Question: Which is a plant?\nContext: N/A\nOptions: (A) fern (B) granite (C) newt\n{cue}"
    assert "".join(text for _, text in cot_format.write(cot_format.gold(sample.last))) == target


@pytest.mark.parametrize("form", [{"captions": {"7": "A leaf."}}, {"7": "A leaf."}, {"7": ["A leaf."]}])
@pytest.mark.parametrize(("hint", "context"), [("", "A leaf."), ("Look.", "Look. A leaf.")])
def test_captions_stand_in_the_context(load, tmp_path, form, hint, context):
    """After the hint; in the published form of the file, or as the released code writes it; where there is none, no gap."""
    (tmp_path / "captions.json").write_text(json.dumps(form))
    samples = load({"7": problem(hint=hint), "8": problem(hint=hint)}, captions=tmp_path / "captions.json")
    assert [sample.last.question.partition("Context: ")[2] for sample in samples] == [context, hint or "N/A"]


# Files


def test_ids_come_from_the_split_in_its_order(load):
    """Problems of other splits are left alone; a limit takes the first."""
    problems = {number: problem(question=number) for number in "12345"}
    assert [sample.id for sample in load(problems, ["4", "2", "3"])] == ["4", "2", "3"]
    assert [sample.id for sample in load(problems, ["4", "2", "3"], limit=2)] == ["4", "2"]


def test_without_a_file_of_splits_the_records_say_it(tmp_path):
    """So that a part of the problems, in one file of any name, can be used."""
    folder = published.scienceqa(tmp_path, {"1": problem(), "2": problem(split="test")})
    (folder / "problems.json").rename(folder / "some_problems_2.json")
    for path in (folder, folder / "some_problems_2.json"):
        source = ScienceqaSource(source="scienceqa", path=str(path), split="test")
        assert [sample.id for sample in load_source(source, TWO_STAGE)] == ["2"]


@pytest.mark.parametrize("root", ["images", "elsewhere"])
def test_images_lie_by_split_and_id(load, tmp_path, root):
    """In `images/`, or in the folder that is named; the record's own split counts, not that of the ids."""
    record = problem(image="image.png", split="val")
    keys = {}
    if root == "elsewhere":
        (tmp_path / root / "val" / "7").mkdir(parents=True)
        (tmp_path / root / "val" / "7" / "image.png").write_bytes(published.png("blue"))
        keys["image_root"] = tmp_path / root
    (sample,) = load({"7": record}, **keys)
    assert open_image(sample.images[0]).getpixel((0, 0)) == ((255, 0, 0) if root == "images" else (0, 0, 255))


def test_the_hubs_parquet(tmp_path):
    """The same questions with the images in the table; its rows have no ids, so their numbers serve."""
    rows = [problem(image=None), problem(answer=1, image={"bytes": published.png("blue"), "path": None})]
    rows.append(problem(image={"bytes": published.png(), "path": None}))
    for row in rows:
        del row["split"]
    published.parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", rows)
    source = ScienceqaSource(source="scienceqa", path=str(tmp_path), split="val")
    first, second, third = load_source(source, TWO_STAGE)
    assert (first.id, second.id, first.images, second.last.answer) == ("val-0", "val-1", (), "B")
    assert [open_image(sample.images[0]).getpixel((0, 0)) for sample in (second, third)] == [(0, 0, 255), (255, 0, 0)]
    assert (first.meta["has_image"], second.meta["has_image"]) == (False, True)


# Bad input for training

BAD = {
    "no problem": (None, "pid_splits.json · bad · problems.json has no problem of this id"),
    "no image": (problem(image="none.png"), "problems.json · bad · train/bad/none.png · no such image file under"),
    "outside": (problem(image="../../../../secret.png"), "the image lies outside the image root"),
    "answer too large": (problem(answer=3), "problems.json · bad · answer · 3 is no index of its 3 options · 0 to 2"),
    "answer below 0": (problem(answer=-1), "problems.json · bad · answer · -1 is no index of its 3 options"),
    "one option": (problem(choices=["fern"]), "problems.json · bad · choices · expected 2 to 26 options"),
    "empty solution": (problem(solution=" \n"), "problems.json · bad · solution · empty"),
    "empty question": (problem(question=""), "problems.json · bad · question · empty"),
    "a text as index": (problem(answer="0"), "problems.json · bad · answer · Input should be a valid integer"),
    "no object": ("text", "problems.json · bad · not a JSON object"),
}


@pytest.mark.parametrize(("bad", "told"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("share", [0.05, 0.1])
def test_bad_rows_are_counted_listed_and_refused_above_a_share(tmp_path, capsys, bad, told, share):
    """One of ten is left out where a tenth may be; where less, nothing is loaded. Either way it is named."""
    (tmp_path / "secret.png").write_bytes(published.png())
    problems = {str(number): problem() for number in range(9)}
    folder = published.scienceqa(
        tmp_path / "data", problems | ({} if bad is None else {"bad": bad}), {"train": [*problems, "bad"]}, images=False
    )
    source = ScienceqaSource(source="scienceqa", path=str(folder), max_bad_share=share)
    if share < 0.1:
        lines = refused(load_source, source, TWO_STAGE)
        assert lines[0].startswith("1 of 10 rows cannot be used, more than max_bad_share=0.05")
        assert len(lines) == 2 and told in lines[1]
    else:
        assert len(load_source(source, TWO_STAGE)) == 9
        said = capsys.readouterr().err
        assert "1 problems in rows that are left out (1 of 10)" in said and told in said


def test_an_empty_solution_is_no_fault_where_nothing_is_reasoned(load):
    """QCM→A needs none."""
    assert len(load({"7": problem(solution="", lecture="")}, cot_format=FORMATS["answer_only"])) == 1


def test_any_bad_row_can_be_refused(load):
    """With bad_rows: error, as other sources have it."""
    lines = refused(load, {**{str(n): problem() for n in range(99)}, "bad": problem(solution="")}, bad_rows="error")
    assert lines == ["problems.json · bad · solution · empty · every row needs this text"]


def test_an_id_that_occurs_twice_in_a_split_is_named(load):
    """It would count twice."""
    assert "'7' occurs twice" in refused(load, {"7": problem()}, ["7", "7"])[1]


@pytest.mark.parametrize(
    ("content", "told"),
    [("[]", "the file holds no JSON object"), ("{", "not JSON that can be read"), (None, "no split 'train'")],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, content, told):
    """In one line that names the file."""
    folder = published.scienceqa(tmp_path, {"1": problem()}, {"tran": ["1"]})
    if content is not None:
        (folder / "problems.json").write_text(content)
    source = ScienceqaSource(source="scienceqa", path=str(folder))
    (line,) = refused(load_source, source, TWO_STAGE)
    assert told in line and str(folder) in line


# Rationales that a model wrote


@pytest.fixture
def with_rationales(tmp_path):
    """The samples 0 to 9 of a mixture whose source names this file of rationales."""

    def load(*rows, **keys):
        problems = {str(n): problem() for n in range(10)}
        folder = published.scienceqa(tmp_path / "data", problems, {"train": list(problems)})
        (tmp_path / "rationales.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        path = {"path": str(folder), "rationales": tmp_path / "rationales.jsonl"}
        return load_data(DataSection(train=[ScienceqaSource(source="scienceqa", **path, **keys)]), TWO_STAGE)[0]

    return load


def row(number, **keys):
    return {"id": str(number), "output": f"because of {number}", **keys}


def test_rationales_are_handed_on_by_id(with_rationales):
    """In any order of the file, each to its own question."""
    samples = with_rationales(*(row(n) for n in reversed(range(10))))
    assert [sample.last.stages["RATIONALE"] for sample in samples] == [f"because of {n}" for n in range(10)]
    assert "Solution: because of 3\nAnswer:" in ANSWER.question(samples[3].last, samples[3].choices)


@pytest.mark.parametrize(
    ("rows", "told", "left"),
    [
        ([row(n) for n in range(9)], "problems.json · 9 · rationales.jsonl has no rationale for this sample", 9),
        ([row(n) for n in range(11)], "rationales.jsonl · 10 · no sample of this id", 10),
        ([row(n) for n in (*range(10), 3)], "rationales.jsonl line 11 · id · '3' occurs twice", 10),
        ([*(row(n) for n in range(10)), {"id": "x"}], "rationales.jsonl line 11 · output · Field required", 10),
    ],
)
def test_gaps_of_rationales_are_listed_and_refused_above_a_share(with_rationales, capsys, rows, told, left):
    """Missing, foreign, doubled and unreadable rows alike; a sample without one is not trained on its gold text instead."""
    assert any(told in line for line in refused(with_rationales, *rows, max_bad_share=0.05))
    samples = with_rationales(*rows, max_bad_share=0.1)
    assert len(samples) == left and told in capsys.readouterr().err
    assert all(sample.last.stages["RATIONALE"].startswith("because") for sample in samples)


# The real problems


@pytest.fixture(scope="module")
def real(shared_data):
    """Every real problem with its sample, and the seconds that loading took; images are not here."""
    path = shared_data("scienceqa_problems_1772.json")
    problems = json.loads(path.read_text("utf-8"))
    shared_data("pid_splits.json")
    begin, samples = time.perf_counter(), {}
    for split in ("train", "val", "test"):
        source = ScienceqaSource(source="scienceqa", path=str(path.parent), split=split)
        samples[split] = scienceqa.questions(source, "scoring").samples
    return problems, samples, time.perf_counter() - begin


def test_the_real_problems_are_counted(real):
    """1,772 of them, 879 with an image."""
    _, samples, _ = real
    assert {split: len(found) for split, found in samples.items()} == {"train": 1041, "val": 371, "test": 360}
    assert sum(bool(sample.meta["has_image"]) for found in samples.values() for sample in found) == 879


def test_every_real_problem_survives_the_way_there_and_back(real):
    """Its prompt holds question, options and hint; its target is read back to its rationale and its right option."""
    problems, samples, _ = real
    for sample in (sample for found in samples.values() for sample in found):
        record = problems[sample.id]
        for cot_format in (*TWO_STAGE.passes[:1], FORMATS["answer_only"], FORMATS["direct"]):
            prompt = cot_format.question(sample.last, sample.choices)
            options = " ".join(f"({'ABCDE'[n]}) {choice}" for n, choice in enumerate(record["choices"]))
            context = f"\nContext: {record['hint'].strip() or 'N/A'}\nOptions: {options}"
            assert record["question"].strip() + context in prompt
        gold = ANSWER.parse(ANSWER.gold(sample.last)["ANSWER"]).answer
        assert read_option(gold, sample.choices) == record["answer"] == sample.meta["gold"]
        if record["solution"]:
            written = "".join(text for _, text in TWO_STAGE.write(TWO_STAGE.gold(sample.last)))
            parsed = TWO_STAGE.parse(written)
            assert (parsed.outcome, parsed.answer) == ("complete", gold)
            assert parsed.stages[0].text == f"{record['lecture'].strip()} {record['solution'].strip()}".strip()


@pytest.mark.parametrize("kind", ["t5_vision", pytest.param("llava", marks=pytest.mark.slow)])
def test_the_real_problems_load_format_and_tokenise_in_seconds(real, load_tiny, kind):
    """Under ten, both passes."""
    tiny = load_tiny(kind)
    _, samples, seconds = real
    begin, tokens = time.perf_counter(), 0
    for one in TWO_STAGE.passes:
        encoder = tiny.encoder(one)
        for sample in (sample for found in samples.values() for sample in found if sample.last.stages.get("RATIONALE")):
            tokens += len(encoder.training(sample, []).input_ids)
    assert tokens > 100_000
    assert seconds + time.perf_counter() - begin < 10


def test_the_real_image_with_its_record(shared_data, tmp_path):
    """One genuine question with its picture can be trained on."""
    record = json.loads(shared_data("scienceqa_foodweb.json").read_text("utf-8"))
    name = record["image"]
    folder = published.scienceqa(tmp_path, {"1": {"split": "train", **record}}, {"train": ["1"]}, images=False)
    place = folder / "images" / "train" / "1"
    place.mkdir(parents=True)
    (place / name).write_bytes(shared_data(name).read_bytes())
    (sample,) = load_source(ScienceqaSource(source="scienceqa", path=str(folder)), TWO_STAGE)
    assert min(open_image(sample.images[0]).size) > 100 and sample.last.answer == "B"
