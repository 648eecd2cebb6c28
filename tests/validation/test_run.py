"""What validate says of a row is what training does with it."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image

from lora_cot import validate
from lora_cot.backbones.loading import load_backbone
from lora_cot.data.collate import encode
from lora_cot.data.lengths import keep_fitting
from lora_cot.data.sources import load_data
from lora_cot.errors import DataError, LoraCotError, RunError
from lora_cot.training.run import make_collator, train
from lora_cot.validation.run import plan_of_recipe
from lora_cot.validation.stream import _Chunks
from tests.conftest import ROOT
from tests.validation.conftest import STAGES, found, plain

REPLY = " ".join(f"<{name}> {text} </{name}>" for name, text in STAGES.items())
BAD = {
    "row_unreadable": "{broken",
    "row_form": plain(9, anwser="B"),
    "empty": plain(9, question=" "),
    "duplicate_id": plain(1, question="Another?"),
    "tags": plain(9, stages={"SUMMARY": "x"}),
    "image_missing": plain(9, image="none.png"),
    "image_outside_root": plain(9, image="link/1.png"),
    "image_unreadable": plain(9, image="cut.png"),
    "image_size": plain(9, image="terabyte.png"),
    "too_long": plain(9, question="why " * 400),
}
"""A row for each check that training stops at."""
READ = ("row_unreadable", "row_form", "empty", "duplicate_id", "image_missing", "image_outside_root")
"""Those of them that `bad_rows: drop` leaves out."""
NOTED = {
    "image_slots": plain(9, question="<image> <image> Which?", image="2.png"),
    "duplicate_row": {**plain(2), "id": "again"},
    "control_tokens": plain(9, question="What does <|end|> mean?"),
}


def with_row(bad):
    """Five good rows and another one in the fourth line."""
    good = [plain(number, **({"image": f"{number}.png"} if number % 2 else {})) for number in range(5)]
    return [*good[:3], bad, *good[3:]]


def test_a_format_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(RunError, match="--format · no format 'four_stages' · did you mean 'four_stage'"):
        validate(tmp_path / "rows.jsonl", "four_stages")


@pytest.mark.parametrize("check", BAD)
def test_training_stops_at_what_fails(source, recipe_of, tmp_path, check):
    """A row that is said to fail is what training refuses, by its line or id; the others are all right."""
    recipe = recipe_of(source(*with_row(BAD[check])), overrides=["training.max_length=400"])
    report = validate(recipe, workers=0)
    name = {"row_unreadable": None, "duplicate_id": "q1"}.get(check, "q9")
    assert found(report) == [(check, "fails", "rows.jsonl line 4", name)]
    numbers = report.to_json()["splits"]["train"]
    assert not report.valid and (numbers["rows"], numbers["used"], numbers["failed"]) == (6, 5, 1)
    with pytest.raises(DataError) as error:
        train(recipe, tmp_path)
    assert all("rows.jsonl line 4" in str(p) or "q9" in str(p) for p in error.value.problems)


@pytest.mark.parametrize("check", READ)
def test_rows_that_the_recipe_drops_are_no_failures(source, recipe_of, tmp_path, check):
    """With `bad_rows: drop` the same row is left out by both, and the recipe trains."""
    recipe = recipe_of(source(*with_row(BAD[check]), bad_rows="drop"))
    report = validate(recipe, workers=0)
    assert report.valid and [(c, severity) for c, severity, *_ in found(report)] == [(check, "dropped")]
    assert report.splits["train"]["used"] == len(load_data(recipe.data, recipe.format.build())[0]) == 5
    train(recipe, tmp_path)


@pytest.mark.parametrize("check", ["row_unreadable", "duplicate_id"])
def test_dropping_more_than_the_recipe_allows_is_a_problem(source, recipe_of, tmp_path, check):
    """One of six rows where a tenth may be left out: training stops, and validate says so."""
    recipe = recipe_of(source(*with_row(BAD[check]), bad_rows="drop", max_bad_share=0.1))
    report = validate(recipe, workers=0)
    told = "1 of 6 rows cannot be used, more than max_bad_share=0.1"
    assert not report.valid and [(p.where, p.what) for p in report.problems] == [("data.train.0", told)]
    with pytest.raises(DataError, match=told):
        train(recipe, tmp_path)


@pytest.mark.parametrize("check", ["tags", "image_unreadable", "image_size"])
def test_what_is_found_after_reading_fails_whatever_the_recipe_drops(source, recipe_of, tmp_path, check):
    """`bad_rows` is of rows that cannot be read: training stops at these all the same."""
    recipe = recipe_of(source(*with_row(BAD[check]), bad_rows="drop"))
    assert [(c, severity) for c, severity, *_ in found(validate(recipe, workers=0))] == [(check, "fails")]
    with pytest.raises(DataError, match="q9"):
        train(recipe, tmp_path)


def test_images_of_rows_that_are_left_out_may_be_damaged(source, recipe_of, tmp_path):
    """Training never opens them; a header that it cannot read for the length stops it all the same."""
    rows = [plain(number, image="0.png") for number in range(4)]
    long = plain(9, question="why " * 400, image="cut.png")
    overrides = ["training.max_length=400", "training.long_samples=drop"]
    recipe = recipe_of(source(*rows, long), overrides=overrides)
    report = validate(recipe, workers=0)
    assert report.valid
    assert [(c, severity) for c, severity, *_ in found(report)] == [("image_unreadable", "dropped"), ("too_long", "dropped")]
    train(recipe, tmp_path)
    recipe = recipe_of(source(*rows, long | {"image": "terabyte.png"}), overrides=overrides)
    assert [(c, severity) for c, severity, *_ in found(validate(recipe, workers=0))] == [("image_size", "fails")]
    with pytest.raises(DataError, match="q9"):
        train(recipe, tmp_path / "again")


@pytest.mark.parametrize("check", NOTED)
def test_notes_do_not_stop_training(source, recipe_of, tmp_path, check, capsys):
    """What is only odd is noted, by validate and at the start of a training, which goes on."""
    recipe = recipe_of(source(*with_row(NOTED[check])))
    report = validate(recipe, workers=0)
    expected = {"image_slots": ["image_slots", "control_tokens"]}.get(check, [check])
    assert report.valid and [(c, severity) for c, severity, *_ in found(report)] == [(c, "note") for c in expected]
    assert report.splits["train"]["used"] == 6
    train(recipe, tmp_path)
    said = capsys.readouterr().err
    assert all(said.count(f"{c}: 1 rows, ") == 1 for c in expected)


@pytest.mark.crossed
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("policy", ["error", "drop", "shrink_image"])
@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_lengths_are_those_of_training(source, recipe_of, folder, load_tiny, kind, policy, seed):
    """The rows that are too long are those that training drops or refuses, and all lengths are its own."""
    rng, base = random.Random(seed), load_tiny(kind)
    rows = [plain(n, question="why " * rng.randint(1, 120)) for n in range(12)]
    rows = [row | ({"image": f"{n % 6}.png"} if rng.random() < 0.5 else {}) for n, row in enumerate(rows)]
    overrides = [f"training.max_length={rng.randint(200, 500)}", f"training.long_samples={policy}", f"model.base={base.base}"]
    recipe = recipe_of(source(*rows), overrides=overrides)
    report = validate(recipe, bad_rows=folder / "bad", workers=0)
    lines = (folder / "bad").read_text().splitlines() if report.bad_rows else []
    long = [row["id"] for row in map(json.loads, lines) if row["check"] == "too_long"]

    cot_format = recipe.format.build()
    collator, (samples, _) = make_collator(recipe, base, cot_format), load_data(recipe.data, cot_format)
    limit = collator.limit
    whole = keep_fitting(samples, replace(limit, max_length=None), "data.train").lengths
    tokens = report.splits["train"]["tokens"]
    if policy != "shrink_image":
        assert (tokens["min"], tokens["max"], tokens["total"]) == (min(whole), max(whole), sum(whole))
    encoded = [encode(limit.encoder, sample, True, scale=limit.measure(sample).scale) for sample in samples]
    trained = sum(label >= 0 for one in encoded for label in one.labels)
    assert report.splits["train"]["label_share"] == pytest.approx(trained / sum(len(one.input_ids) for one in encoded))
    assert tokens["of_images"] == sum(one.input_ids.count(limit.encoder.image_token_id) for one in encoded)
    try:
        kept = keep_fitting(samples, limit, "data.train")
    except DataError as error:
        assert not report.valid
        if policy == "error":
            assert long == [problem.where.removeprefix("data.train · ") for problem in error.problems]
    else:
        assert long == kept.dropped and report.valid == bool(kept.samples)


def test_a_recipe_without_findings_trains(make_recipe, tmp_path):
    """The built-in data have none; and the report counts what there is."""
    recipe = make_recipe(tmp_path, "training.max_steps=1")
    report = validate(recipe, workers=0)
    assert report.valid and not report.findings.counts and report.bad_rows is None
    numbers = report.splits
    assert [numbers[split]["with_image"] for split in ("train", "eval")] == [16, 4]
    assert numbers["train"]["tokens"]["of_images"] == 16 * 4 and numbers["train"]["turns"] == 16
    assert sum(bucket["rows"] for bucket in numbers["train"]["tokens"]["histogram"]) == 16
    train(recipe, tmp_path)


@pytest.mark.parametrize("base", ["family", "processor", "nothing"])
def test_rows_are_checked_where_the_base_cannot_be_used(source, recipe_of, folder, base):
    """An unknown family is a mistake of its own; images, tags and ids are checked all the same."""
    (folder / "base").mkdir()
    if base != "nothing":
        kind = "gpt2" if base == "family" else "llava"
        (folder / "base" / "config.json").write_text(json.dumps({"model_type": kind}))
    rows = with_row(BAD["image_outside_root"])
    recipe = recipe_of(source(*rows, BAD["tags"]), overrides=[f"model.base={folder / 'base'}"])
    report = validate(recipe, workers=0)
    (problem,) = report.problems
    assert problem.where == f"model.base {folder / 'base'}"
    assert ("a model of type 'gpt2'" in problem.what) == (base == "family")
    assert found(report) == [
        ("tags", "fails", "rows.jsonl line 7", "q9"),
        ("image_outside_root", "fails", "rows.jsonl line 4", "q9"),
    ]
    assert report.splits["train"]["tokens"] is None and not report.valid


def test_a_source_that_cannot_be_read_does_not_hide_the_others(source, recipe_of, tmp_path):
    """A missing file is a finding of its source."""
    missing = {"source": "jsonl", "path": str(tmp_path / "none.jsonl")}
    report = validate(recipe_of(missing, source(*with_row(BAD["tags"]))), workers=0)
    assert not report.valid
    assert found(report) == [("source_unreadable", "fails", "", None), ("tags", "fails", "rows.jsonl line 4", "q9")]
    assert "none.jsonl · no such data file" in "\n".join(report.lines())


@pytest.mark.parametrize("bad", [7_000, pytest.param(70_000, marks=pytest.mark.slow)])
def test_a_line_far_down_is_named_and_the_rest_is_checked(folder, source, bad):
    """A file of data that is none at one line."""
    lines = [json.dumps(plain(number, answer="B", stages=STAGES)) for number in range(bad + 100)]
    lines[bad] = "\x00\x01 no JSON"
    lines[bad + 50] = json.dumps(plain(bad + 50, image="none.png"))
    path = folder / "big.jsonl"
    path.write_text("\n".join(lines))
    report = validate(path)
    assert found(report) == [
        ("row_unreadable", "fails", f"big.jsonl line {bad + 1}", None),
        ("image_missing", "fails", f"big.jsonl line {bad + 51}", f"q{bad + 50}"),
    ]
    assert report.splits["train"]["used"] == bad + 98


def test_workers_find_the_same(source, recipe_of, folder):
    """Three processes report what one does, in the same order."""
    rows = [plain(number, image=f"{number % 6}.png") if number % 3 else plain(number) for number in range(400)]
    for number, bad in zip(range(7, 400, 31), [*BAD.values(), *NOTED.values()], strict=False):
        rows[number] = bad
    recipe = recipe_of(source(*rows), overrides=["training.max_length=400"], data={"held_out": 40})
    reports = []
    for workers in (0, 3):
        report = validate(recipe, bad_rows=folder / f"bad{workers}", workers=workers)
        shown = report.to_json()
        del shown["seconds"], shown["bad_rows"]
        reports.append((shown, (folder / f"bad{workers}").read_text()))
    assert reports[0] == reports[1] and reports[0][1].count("\n") > 12


def test_what_checks_travels_to_workers(source, recipe_of):
    """It does where workers are started afresh too, and not only where they are copies of this process."""
    plan = plan_of_recipe(recipe_of(source(*with_row(BAD["tags"]))))
    chunks = _Chunks(plan.sources, plan.checker)
    assert list(pickle.loads(pickle.dumps(chunks))) == list(chunks) != []


# leaks and duplicates


def test_leaks_are_found_by_pixels_and_questions(source, recipe_of, folder, tmp_path, capsys):
    """A picture saved anew is the same picture; a question counts with its picture, whatever its case and spaces."""
    with Image.open("2.png") as image:
        image.save("other.bmp")
    train_rows = source(*[plain(number, image=f"{number}.png") for number in range(5)], plain(7))
    held = source(
        plain(0, question="Something else?", image="other.bmp"),
        plain(1, question="what  is 3?", image="3.png"),
        plain(2, question="What is 4?", image="5.png"),
        plain(3, question="WHAT IS 7?"),
        plain(4, question="What is 4?"),
        name="held.jsonl",
    )
    recipe = recipe_of(train_rows, held=[held])
    report = validate(recipe, workers=0)
    leaks = [(check, where[-1], name) for check, _, where, name in found(report, "leak_question", "leak_image")]
    assert leaks == [
        ("leak_question", "2", "q1"),
        ("leak_question", "4", "q3"),
        ("leak_image", "1", "q0"),
        ("leak_image", "2", "q1"),
    ]
    assert report.valid
    assert "LEAK: 2 held-out rows ask what is trained on, 2 show an image that is" in "\n".join(report.lines())
    train(recipe, tmp_path)
    said = capsys.readouterr().err
    assert "leak_question: 2 rows, q1, q3: " in said and "leak_image: 1 rows, q1: " in said, "by file at the start"


def test_held_out_rows_are_those_of_training(source, recipe_of, folder):
    """The rows that `held_out` keeps back are told apart, with weights, and without rows that are left out."""
    rows = [plain(number, question=f"What is {number % 20}?") for number in range(60)]
    rows[3], rows[50] = BAD["row_form"], "{"
    first = source(*rows, name="a.jsonl", bad_rows="drop", weight=1.5)
    second = source(*[plain(number, question=f"Why {number}?") for number in range(20)], name="b.jsonl")
    recipe = recipe_of(first, second, data={"held_out": 15})
    report = validate(recipe, bad_rows=folder / "bad", workers=0)
    samples, held = load_data(recipe.data, recipe.format.build())
    assert (report.splits["held_out"]["rows"], report.splits["train"]["rows"]) == (15, 80 - 15)
    trained = {sample.last.question for sample in samples}
    expected = sorted((sample.id, sample.last.question) for sample in held if sample.last.question in trained)
    leaked = [json.loads(line) for line in (folder / "bad").read_text().splitlines()]
    leaked = [(row["id"], row["split"]) for row in leaked if row["check"] == "leak_question"]
    assert sorted(leaked) == [(name, "held_out") for name, _ in expected] and expected


def test_holding_out_too_much_is_a_problem(source, recipe_of):
    """Where none would be left to train on, training stops; so says validate."""
    report = validate(recipe_of(source(plain(0), plain(1)), data={"held_out": 2}), workers=0)
    assert not report.valid and "2 of 2 rows are kept back" in report.problems[0].what


def test_dropping_every_image_is_a_problem(source, recipe_of, tmp_path):
    """Lengths that leave no image, or nothing at all, stop training at the whole of the data."""
    rows = [plain(number, image=f"{number}.png") for number in range(3)]
    long = [row | {"question": "why " * 200} for row in rows]
    for some, match in (([*long, plain(9)], "every sample with an image is longer"), (long, "every sample is too long")):
        recipe = recipe_of(source(*some), overrides=["training.max_length=300", "training.long_samples=drop"])
        report = validate(recipe, workers=0)
        assert not report.valid and match in report.problems[0].what
        with pytest.raises(DataError, match=match):
            train(recipe, tmp_path)


def test_rows_without_an_image_fail_where_only_what_sees_images_is_trained(source, recipe_of, tmp_path):
    """They would give the adapters no gradient."""
    rows = [plain(0, image="0.png"), plain(1)]
    held = source(plain(5), name="held.jsonl")
    recipe = recipe_of(source(*rows), held=[held], overrides=["lora.parts=[vision_encoder]"])
    assert found(validate(recipe, workers=0)) == [("no_image", "fails", "rows.jsonl line 2", "q1")], "held out it may be"
    with pytest.raises(DataError, match="q1"):
        train(recipe, tmp_path)


def test_both_passes_of_a_split_format_are_measured(source, recipe_of, tmp_path):
    """A row that is too long in one pass is said to be; the length is that of the longer pass."""
    rows = [plain(0), plain(1, stages={**STAGES, "REASONING": "so " * 90})]
    options = ["format.name=two_stage", "training.max_length=200", "training.long_samples=drop"]
    recipe = recipe_of(source(*rows), overrides=options, search={})
    report = validate(recipe, workers=0)
    assert [(check, severity, name) for check, severity, _, name in found(report)] == [("too_long", "dropped", "q1")]
    plan = plan_of_recipe(recipe)
    samples, _ = load_data(recipe.data, recipe.format.build())
    lengths = [[limit.measure(sample).length for limit in plan.checker.limits] for sample in samples]
    assert all(first != second for first, second in lengths)
    assert report.splits["train"]["tokens"]["total"] == sum(map(max, lengths))
    folder = train(recipe, tmp_path)
    passes = json.loads((folder / "report.json").read_text())["passes"]
    assert {name for one in passes for name in one["dropped"]} == {"q1"}


# files without a recipe


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("jsonl", plain(0), plain(1, stages={"SUMMARY": "x"})),
        (
            "llava_cot_100k",
            {"id": 0, "image": "0.png", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": REPLY}]},
            {"id": 1, "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "B"}]},
        ),
        (
            "messages",
            {"id": 0, "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": REPLY}]},
            {"id": 1, "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "B"}]},
        ),
    ],
)
def test_a_file_of_data_tells_its_kind(source, folder, kind, good, bad):
    """By the keys of its rows, without a recipe; lengths are not known then."""
    section = source("{", good, bad)
    report = validate(folder / "rows.jsonl", workers=0)
    assert (report.kind, report.splits["train"]["used"], report.splits["train"]["tokens"]) == (kind, 1, None)
    name = "q1" if kind == "jsonl" else "1"
    assert found(report, "row_unreadable", "tags") == [
        ("row_unreadable", "fails", "rows.jsonl line 1", None),
        ("tags", "fails", "rows.jsonl line 3", name),
    ]
    assert section["path"].endswith("rows.jsonl")


def test_the_published_examples_have_no_findings(shared_data, folder):
    """LLaVA-CoT's own two examples, in the form of its training data, with their real images."""
    examples = json.loads(shared_data("llavacot_readme_examples.json").read_text("utf-8"))
    rows = []
    for number, example in enumerate(examples):
        (folder / example["image"]).write_bytes(shared_data(example["image"]).read_bytes())
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": example["output"]}]
        rows.append({"id": number, "image": example["image"], "conversations": turns})
    path = folder / "examples.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    report = validate(path, workers=0)
    assert report.valid and not report.findings.counts and report.splits["train"]["with_image"] == 2


def test_the_file_of_findings_is_never_one_that_is_read(source, folder, recipe_of):
    """Nothing is written over data; an empty file is not left behind; a folder is refused in a sentence."""
    recipe = recipe_of(source(plain(0)))
    for bad, match in ((folder / "rows.jsonl", "written over the data"), (folder / "deep", "cannot be written")):
        with pytest.raises(RunError, match=match):
            validate(recipe, bad_rows=bad)
    assert json.loads((folder / "rows.jsonl").read_text()) == plain(0)
    assert validate(recipe, bad_rows=folder / "bad", workers=0).bad_rows is None and not (folder / "bad").exists()


def test_hostile_text_stays_text(source, recipe_of):
    """Escape sequences of a row are not printed; half a surrogate pair is a bad row for both."""
    rows = [
        plain(0),
        '{"id": "s", "question": "\\ud800", "answer": "x"}',
        {**plain(1), "id": "\x1b[31m\ud83d", "image": "\x1b.png"},
    ]
    report = validate(recipe_of(source(plain(0), rows[1], plain(2, image="\x1b[31m\n.png"))), workers=0)
    assert {check for check, *_ in found(report)} == {"row_unreadable", "image_missing"}
    text = "\n".join(report.lines())
    assert "\x1b" not in text and json.dumps(report.to_json(), ensure_ascii=False).encode()
    with pytest.raises(LoraCotError, match="an escape that stands for no character"):
        load_data(recipe_of(source(*rows)).data, recipe_of(source(*rows)).format.build())


PEAK = """
import json, resource, sys
from pathlib import Path
from lora_cot import load_recipe, validate
report = validate(load_recipe(sys.argv[1]), bad_rows=Path(sys.argv[1] + ".bad"))
peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps([report.splits["train"]["rows"], *peaks]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_rows(folder, make_recipe, tmp_path):
    """Ten times the rows, one in ten of them bad, take as much memory, in this process and in its workers."""
    peaks = []
    for count in (5_000, 50_000):
        rows = [json.dumps(plain(n) if n % 10 else {"id": f"q{n}"}) for n in range(count)]
        (folder / "rows.jsonl").write_text("\n".join(rows))
        data = {"train": [{"source": "jsonl", "path": str(folder / "rows.jsonl")}]}
        make_recipe(tmp_path, data=data)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PEAK, str(tmp_path / "recipe.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        rows_seen, *kilobytes = json.loads(done.stdout.splitlines()[-1])
        assert rows_seen == count
        peaks.append(kilobytes)
    for small, large in zip(*peaks, strict=True):
        assert large - small < 15_000


def test_base_weights_are_not_loaded(source, recipe_of, folder, make_base):
    """The processor is enough: a base without its weights is checked with."""
    shutil.copytree(make_base("llava"), folder / "light", ignore=shutil.ignore_patterns("*.safetensors"))
    recipe = recipe_of(source(plain(0)), overrides=[f"model.base={folder / 'light'}"])
    assert validate(recipe, workers=0).splits["train"]["tokens"]["total"] > 0
    with pytest.raises(OSError):
        load_backbone(recipe.model)


def test_what_a_t5_cannot_take_or_spell(source, recipe_of, make_base, tmp_path):
    """A row of two images stops training, and is told; characters that the vocabulary lacks are noted."""
    overrides = [f"model.base={make_base('t5_vision')}"]
    recipe = recipe_of(source(*with_row(plain(9, question="Is 2 < 3?"))), overrides=overrides)
    report = validate(recipe, workers=0)
    assert report.valid and [(check, severity) for check, severity, *_ in found(report)] == [("unknown_characters", "note")]
    recipe = recipe_of(source(*with_row(plain(9, images=["1.png", "3.png"]))), overrides=overrides)
    assert [(check, severity) for check, severity, *_ in found(validate(recipe, workers=0))] == [("not_taken", "fails")]
    with pytest.raises(DataError, match="2 images, and this model sees one"):
        train(recipe, tmp_path)
