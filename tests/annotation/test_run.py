"""`annotate` against a real server: what is asked, what is written, and what is left of it when something breaks."""

import json

import pytest
import yaml

from lora_cot.annotation.rows import Selection
from lora_cot.data.images import open_image
from lora_cot.data.sources import load_data
from lora_cot.errors import DataError, EngineError, RunError
from lora_cot.formats import FORMATS
from lora_cot.recipe import load_recipe
from lora_cot.recipe.schema import DataSection
from tests import published
from tests.annotation.conftest import STAGES, WRITE, four, ids, lines, number_of, right
from tests.scripted_server import KEY, Fault, completion, four_stages, serve, text_of, two_stages

FORMAT_NAMES = ["two_stage", "four_stage"]


def loaded(name, *sections):
    """The samples of a recipe's data."""
    return load_data(DataSection.model_validate({"train": list(sections)}), FORMATS[name])[0]


# What is written can be trained on


def test_rationales_are_taken_by_their_source(data, tmp_path, teach):
    """Matched by id, though the data have no rationale of their own."""
    path, output = data(6), tmp_path / "rationales.jsonl"
    with serve(right(two_stages)) as server:
        report = teach(path, server, output, "two_stage")
    assert (report.rows, report.asked, report.used, report.aside, report.failed) == (6, 6, 6, {}, {})
    assert sorted(lines(output), key=lambda row: row["id"]) == [{"id": f"q{n}", "output": f"since {n}"} for n in range(6)]
    assert report.train_with == f"rationales: {output}"
    samples = loaded("two_stage", {"source": "jsonl", "path": str(path), "rationales": str(output)})
    for number, sample in enumerate(samples):
        expected = {"RATIONALE": f"since {number}", "ANSWER": str(number)}
        assert (sample.id, FORMATS["two_stage"].gold(sample.last)) == (f"q{number}", expected)


def test_four_stages_are_rows_of_the_plain_source(data, tmp_path, teach):
    """With the images where they were, named relative to the data's root, and the gold answer as conclusion."""
    path, output = data(6), tmp_path / "elsewhere" / "rows.jsonl"
    with serve(lambda body, _: four_stages(f"{number_of(body)}.0", REASONING=f"so {number_of(body)}")) as server:
        report = teach(path, server, output)
    assert report.train_with == f"{{source: jsonl, path: {output}, image_root: {path.parent}}}"
    samples = loaded("four_stage", yaml.safe_load(report.train_with))
    assert len(samples) == 6
    for sample in samples:
        number = sample.id[1:]
        stages = {"SUMMARY": "a plan", "CAPTION": "a red square", "REASONING": f"so {number}", "CONCLUSION": number}
        assert FORMATS["four_stage"].gold(sample.last) == stages and sample.last.answer == number
        assert sample.last.question == f"What is {number}?"
        assert sample.images == (path.parent / "pictures" / f"{number}.png",)
    assert {row["image"] for row in lines(output)} == {f"pictures/{n}.png" for n in range(6)}


def test_images_in_tables_are_written_beside_the_output(tmp_path, teach):
    """As they are, so that the rows can be trained on without the table."""
    turns = [[{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": str(n)}] for n in range(3)]
    rows = [{"id": f"q{n}", "messages": turns[n], "image": {"bytes": published.png(), "path": None}} for n in range(3)]
    path = published.parquet(tmp_path / "table" / "train.parquet", rows)
    output = tmp_path / "rows.jsonl"
    with serve(right(four)) as server:
        report = teach(path, server, output)
        assert "data:image/png;base64," in str(server.requests[0])
    samples = loaded("four_stage", yaml.safe_load(report.train_with))
    assert len(samples) == 3 and all(sample.images[0].read_bytes() == published.png() for sample in samples)
    assert len(list((tmp_path / "rows.images").iterdir())) == 1, "named by content"


def test_several_images_and_options_survive(data, tmp_path, teach):
    """Each row keeps all it had."""
    more = {"images": ["pictures/0.png", "pictures/1.png"], "choices": ["newt", "fern"], "answer": "B"}
    path = data(2, {0: {"image": None, **more}, 1: {"image": None}})
    with serve(lambda body, _: four_stages("(B)" if number_of(body) == 0 else "1")) as server:
        report = teach(path, server, tmp_path / "out.jsonl")
        asked = {number_of(body): body["messages"][0]["content"] for body in server.requests}
    first, second = sorted(loaded("four_stage", yaml.safe_load(report.train_with)), key=lambda sample: sample.id)
    assert (len(first.images), first.choices, first.last.stages["CONCLUSION"]) == (2, ("newt", "fern"), "B")
    assert (second.images, second.choices) == ((), ())
    assert len(asked[0]) == 3 and "Options: (A) newt (B) fern" in asked[0][-1]["text"] and isinstance(asked[1], str)


def test_llava_rows_with_plain_answers(tmp_path, teach):
    """The commonest form of visual questions; a row that has its stages is left alone."""
    whole = "".join(text for _, text in FORMATS["four_stage"].write(STAGES))
    turns = [("What is 5?\n<image>", "5"), ("What is 7?", whole)]
    rows = [
        {"id": str(n), "image": "0.png", "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
        for n, (q, a) in enumerate(turns)
    ]
    (tmp_path / "0.png").write_bytes(published.png())
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    with serve(right(four)) as server:
        report = teach(tmp_path / "llava.json", server, tmp_path / "out.jsonl")
    assert (report.rows, report.with_gold, report.used) == (2, 1, 1)
    (row,) = lines(tmp_path / "out.jsonl")
    assert (row["id"], row["question"], row["answer"]) == ("0", "What is 5?", "5")


# ScienceQA


@pytest.fixture
def scienceqa(tmp_path):
    """Ten problems, of which 3 and 4 have no solution, and 5 has neither lecture nor solution."""
    bare = {"3": {"solution": ""}, "4": {"solution": " ", "image": "image.png"}, "5": {"solution": "", "lecture": ""}}
    problems = {str(n): published.problem(**bare.get(str(n), {})) for n in range(10)}
    return published.scienceqa(tmp_path / "data", problems, {"train": list(problems)})


def test_gaps_of_scienceqa_are_filled(scienceqa, tmp_path, teach):
    """Only problems without a solution are asked for; with `rationales_for: missing` all can be trained on."""
    output = tmp_path / "gaps.jsonl"
    with serve(["Let me see. " + two_stages("The answer is (A).")]) as server:
        report = teach(scienceqa, server, output, "two_stage")
        assert len(server.requests) == 3
        assert all("Options: (A) fern (B) granite (C) newt" in question for question in server.questions)
        assert sum("image_url" in str(body) for body in server.requests) == 1
    assert (report.rows, report.with_gold, sorted(ids(output))) == (10, 7, ["3", "4", "5"])
    assert report.train_with == f"rationales: {output}, rationales_for: missing"
    source = {"source": "scienceqa", "path": str(scienceqa), "bad_rows": "error"}
    samples = loaded("two_stage", source | {"rationales": str(output), "rationales_for": "missing"})
    found = {sample.id: FORMATS["two_stage"].gold(sample.last)["RATIONALE"] for sample in samples}
    assert found == {str(n): "because" if n in (3, 4, 5) else "Plants grow. A fern grows." for n in range(10)}
    with pytest.raises(DataError, match="has no rationale for this sample"):
        loaded("two_stage", source | {"rationales": str(output)})


def test_all_rows_can_be_asked_for(scienceqa, tmp_path, teach):
    """For the paper's comparison of generated with annotated rationales; the source then takes the file for all."""
    with serve([two_stages("(A)", "generated")]) as server:
        report = teach(scienceqa, server, tmp_path / "all.jsonl", "two_stage", everything=True)
    assert (report.used, report.with_gold) == (10, 0)
    source = {"source": "scienceqa", "path": str(scienceqa), "rationales": report.output, "bad_rows": "error"}
    assert {sample.last.stages["RATIONALE"] for sample in loaded("two_stage", source)} == {"generated"}


def test_scienceqa_in_four_stages(scienceqa, tmp_path, teach):
    """Its rationale is none of the four stages: all rows are asked for, and the images keep their place."""
    with serve([four_stages("(A)")]) as server:
        report = teach(scienceqa, server, tmp_path / "four.jsonl", "four_stage")
    samples = loaded("four_stage", yaml.safe_load(report.train_with))
    assert len(samples) == 10 and {sample.last.stages["CONCLUSION"] for sample in samples} == {"A"}
    (image,) = [image for sample in samples for image in sample.images]
    assert open_image(image).size == (8, 8)


# Recipes


def test_a_recipes_rows(data, tmp_path, teach):
    """Of data.train or data.eval, in the recipe's own format; the file that it will name need not be there yet."""
    train, dev = data(4), data(2, name="dev.jsonl")
    source = {"source": "jsonl", "path": str(train), "rationales": "not-yet.jsonl", "limit": 3, "weight": 2}
    recipe = {
        "name": "r",
        "model": {"base": "mini/llava"},
        "format": {"name": "two_stage"},
        "data": {"train": [source], "eval": [{"source": "jsonl", "path": str(dev)}]},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded_recipe = load_recipe(tmp_path / "recipe.yaml")
    with serve(right(two_stages)) as server:
        assert teach(loaded_recipe, server, tmp_path / "train.jsonl").rows == 3
        assert teach(loaded_recipe, server, tmp_path / "eval.jsonl", part="eval").used == 2
        with pytest.raises(RunError, match=r"data.train has 1 sources · they are counted from 0"):
            teach(loaded_recipe, server, tmp_path / "x.jsonl", source=1)
        with pytest.raises(RunError, match="a recipe's sources have their own splits"):
            teach(loaded_recipe, server, tmp_path / "x.jsonl", split="train")


def test_several_sources(data, tmp_path, teach):
    """Rows of four stages go into one file; a file of rationales belongs to one source; an id names one row."""
    sources = [{"source": "jsonl", "path": str(data(3, name=name))} for name in ("a.jsonl", "b.jsonl")]
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({"name": "r", "model": {"base": "mini/llava"}, "data": {"train": sources}})
    )
    recipe = load_recipe(tmp_path / "recipe.yaml")
    with serve(right(four)) as server:
        with pytest.raises(DataError, match=r"id 'q0' · two sources have a row of this id · .*--source NUMBER"):
            teach(recipe, server, tmp_path / "out.jsonl")
        with pytest.raises(RunError, match=r"a file of rationales belongs to one · .*--source NUMBER"):
            teach(recipe, server, tmp_path / "out.jsonl", "two_stage")
        assert server.requests == []
        assert teach(recipe, server, tmp_path / "out.jsonl", source=1).used == 3


def test_the_built_in_data(tmp_path, teach):
    """Whose images are made when they are asked for, and have reasoning of their own."""
    path = tmp_path / "recipe.yaml"
    path.write_text("name: r\nmodel: {base: mini/llava}\ndata: {train: [{source: shapes, limit: 4}]}")
    recipe = load_recipe(path)
    gold = {sample.last.question: sample.last.answer for sample in loaded("four_stage", {"source": "shapes", "limit": 4})}
    with serve(lambda body, _: four(gold[text_of(body).partition("\n\nWrite")[0].partition("\nOptions")[0]])) as server:
        assert teach(recipe, server, tmp_path / "none.jsonl").asked == 0 and server.requests == []
        report = teach(recipe, server, tmp_path / "out.jsonl", everything=True)
    samples = loaded("four_stage", yaml.safe_load(report.train_with))
    assert report.used == len(samples) == 4 and all(open_image(sample.images[0]).width > 8 for sample in samples)


# What is asked


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_rows_with_gold_text_are_not_asked(data, tmp_path, teach, name):
    """They are counted; their text is left alone."""
    path = data(8, {n: {"stages": STAGES} for n in (1, 4, 7)})
    with serve(right(WRITE[name])) as server:
        report = teach(path, server, tmp_path / "out.jsonl", name)
    assert sorted(map(number_of, server.requests)) == [0, 2, 3, 5, 6]
    assert (report.rows, report.with_gold, report.used) == (8, 3, 5)


def test_the_limit_counts_rows_without_reasoning(data, tmp_path, teach):
    """The same command again asks for nothing more; a higher limit for the rest."""
    path, output = data(8, {0: {"stages": STAGES}}), tmp_path / "out.jsonl"
    with serve(right(four)) as server:
        assert teach(path, server, output, limit=3).asked == 3
        assert sorted(ids(output)) == ["q1", "q2", "q3"]
        assert teach(path, server, output, limit=3).asked == 0
        assert teach(path, server, output, limit=5).asked == 2


def test_what_a_request_holds(data, tmp_path, teach):
    """Model, budget of all stages, temperature, key; nowhere the gold answer."""
    with serve(right(four)) as server:
        teach(data(1, {0: {"answer": "zero point nil"}}), server, tmp_path / "out.jsonl")
    (body,) = server.requests
    assert "zero point nil" not in json.dumps(body) and "tandard answer" not in json.dumps(body)
    assert (body["model"], body["temperature"]) == ("teacher", 0.0)
    assert body["max_tokens"] == sum(stage.max_new_tokens for stage in FORMATS["four_stage"].stages)
    assert set(server.keys) == {f"Bearer {KEY}"}


@pytest.mark.parametrize("concurrency", [1, 3, 16])
def test_requests_go_out_together(data, tmp_path, teach, concurrency):
    """As many as were asked for; what comes of it does not depend on it."""
    import threading

    now, most, lock = [0], [0], threading.Lock()

    def answer(body, number):
        import time

        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02 * (1 + number % 3))
        with lock:
            now[0] -= 1
        return four(str(number_of(body)))

    with serve(answer) as server:
        report = teach(data(18), server, tmp_path / "out.jsonl", concurrency=concurrency)
    assert sorted(ids(tmp_path / "out.jsonl")) == sorted(f"q{n}" for n in range(18)) and report.used == 18
    assert concurrency // 2 <= most[0] <= concurrency


# What is kept aside

SCRIPT = {
    0: completion(None, refusal="I cannot"),
    1: completion("x", "content_filter"),
    2: completion(four("2"), "length"),
    3: "",
    4: "I can't help with that.",
    5: four("6"),
    6: "<CAPTION> c </CAPTION> <SUMMARY> s </SUMMARY>",
    7: Fault(400, {"error": {"message": "too long"}}),
}
EXPECTED = ["refusal", "refusal", "cut_off", "empty", "format", "disagrees", "format", "rejected"]


def test_what_is_not_used_lies_aside(data, tmp_path, teach):
    """With its reason and the teacher's text; each row is in one of the two files, and none is asked again."""
    path, output = data(10), tmp_path / "out.jsonl"
    with serve(lambda body, _: SCRIPT.get(number_of(body), four(str(number_of(body))))) as server:
        report = teach(path, server, output)
        assert teach(path, server, output).asked == 0
    aside = {row["id"]: row for row in lines(tmp_path / "out.aside.jsonl")}
    assert [aside[f"q{n}"]["reason"] for n in range(8)] == EXPECTED
    assert aside["q5"] == {"id": "q5", "reason": "disagrees", "detail": "'6', expected '5'", "text": four("6")}
    assert "too long" in aside["q7"]["detail"] and len(server.requests) == 10
    assert sorted(ids(output)) == ["q8", "q9"] and report.used == 2
    assert report.aside == {"cut_off": 1, "disagrees": 1, "empty": 1, "format": 2, "refusal": 2, "rejected": 1}


def test_rows_aside_can_be_asked_again(data, tmp_path, teach):
    """Those alone; each is then in one file again."""
    path, output = data(10), tmp_path / "out.jsonl"
    with serve(lambda body, _: SCRIPT.get(number_of(body), four(str(number_of(body))))) as server:
        teach(path, server, output)
        server.answer = lambda body, _: four(str(number_of(body))) if number_of(body) < 5 else SCRIPT[number_of(body)]
        report = teach(path, server, output, retry_aside=True)
    assert (report.asked, report.used, sum(report.aside.values())) == (8, 7, 3)
    assert sorted(ids(output) + ids(tmp_path / "out.aside.jsonl")) == sorted(f"q{n}" for n in range(10))


def test_a_dead_server_costs_no_row_aside(data, tmp_path, teach):
    """Rows aside stay there until there is somebody to ask."""
    path, output = data(3), tmp_path / "out.jsonl"
    with serve([four("nothing")]) as server:
        teach(path, server, output)
        server.models = Fault(500)
        with pytest.raises(EngineError):
            teach(path, server, output, retry_aside=True)
    assert len(ids(tmp_path / "out.aside.jsonl")) == 3


def test_a_damaged_image_is_kept_aside(data, tmp_path, teach):
    """It is not sent; the other rows are asked."""
    path = data(3)
    (path.parent / "pictures" / "1.png").write_bytes(published.png()[:40])
    with serve(right(four)) as server:
        report = teach(path, server, tmp_path / "out.jsonl")
    assert (report.used, report.aside, len(server.requests)) == (2, {"image": 1}, 2)


def test_as_llava_cot_does(data, tmp_path, teach):
    """The teacher sees the gold answer, and says of an answer that differs as a text whether it is the same."""
    verdicts = {"1": "valid", "2": "Invalid.", "3": "who knows"}

    def answer(body, _):
        number = str(number_of(body))
        if "Student's answer" in text_of(body):
            return verdicts[number]
        return four(number if number == "0" else f"It is {number}, I think")

    path, output = data(5, {4: {"choices": ["newt", "fern"], "answer": "B"}}), tmp_path / "out.jsonl"
    with serve(answer) as server:
        report = teach(path, server, output, faithful=True)
    assert report.aside == {"disagrees": 1, "unreadable": 1, "verdict": 1} and len(server.requests) == 5 + 3
    assert {row["id"]: row["stages"]["CONCLUSION"] for row in lines(output)} == {"q0": "0", "q1": "It is 1, I think"}
    asked = [question for question in server.questions if "Student's answer" not in question]
    assert all(f"Standard answer: {'B' if 'is 4?' in q else q.split('What is ')[1][0]}\n" in q for q in asked)


# Bad input

ROWS = {
    "several exchanges": ({"messages": [{"role": r, "content": "1"} for r in ("user", "assistant") * 2]}, "several exchanges"),
    "no answer": ({"question": "?", "stages": {"SUMMARY": "s"}}, "no gold answer that the teacher's could be held against"),
    "a tag": ({"question": "?", "answer": "<CONCLUSION> B"}, "the gold answer holds a stage's tag"),
    "no image": ({"question": "?", "answer": "B", "image": "none.png"}, "no such image file"),
    "half of the stages": (
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<SUMMARY> s </SUMMARY> B"}]},
        "not a text in the format four_stage: <CAPTION> is missing",
    ),
}


@pytest.mark.parametrize(("row", "told"), ROWS.values(), ids=ROWS)
def test_rows_that_cannot_be_asked_are_refused_before_anything_is_asked(tmp_path, teach, row, told):
    """With their place; a recipe can leave them out."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "a", **row}))
    with serve(["x"]) as server:
        with pytest.raises(DataError, match=f"rows.jsonl line 1 .*{told}"):
            teach(tmp_path / "rows.jsonl", server, tmp_path / "out.jsonl")
        assert server.requests == [] and not (tmp_path / "out.meta.json").exists()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"format_name": "for_stage"}, "--format · no format 'for_stage' · did you mean 'four_stage'"),
        ({"format_name": "direct"}, "it is an answer alone: there is nothing to ask for"),
        ({"split": "val"}, "a file of rows has no splits"),
    ],
)
def test_what_makes_no_sense_is_refused(data, tmp_path, teach, keys, told):
    with serve(["x"]) as server, pytest.raises(RunError, match=told):
        teach(data(1), server, tmp_path / "out.jsonl", **keys)


@pytest.mark.parametrize("part", ["test", "held_out"])
def test_a_part_that_does_not_exist_is_refused(part):
    with pytest.raises(RunError, match=f"--part · no part '{part}' · allowed: eval, train"):
        Selection(part=part)


def test_sources_are_counted_from_0(make_recipe, tmp_path, teach):
    with serve(["x"]) as server, pytest.raises(RunError, match=r"data\.train has 1 sources · they are counted from 0"):
        teach(make_recipe(tmp_path), server, tmp_path / "out.jsonl", source=-1)


def test_a_folder_that_is_no_data_is_refused(tmp_path, teach):
    (tmp_path / "empty").mkdir()
    with serve(["x"]) as server, pytest.raises(DataError, match="no data whose rows could be annotated"):
        teach(tmp_path / "empty", server, tmp_path / "out.jsonl")


def test_aokvqas_folder(tmp_path, teach):
    """Rows without a rationale, of the split that is named."""
    records = [published.aokvqa_record(0), published.aokvqa_record(1, rationales=[])]
    folder = published.aokvqa(tmp_path / "data", records)
    with serve([two_stages("(D)")]) as server:
        report = teach(folder, server, tmp_path / "out.jsonl", "two_stage", split="val")
    assert (report.with_gold, ids(tmp_path / "out.jsonl")) == (1, ["q1"])
