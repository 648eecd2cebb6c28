"""Rows of every source become samples; rows that cannot are refused together, each by file, line and key."""

import io
import json
import pickle
import random
from collections import Counter

import pytest
from PIL import Image

from lora_cot.data.images import image_size, open_image
from lora_cot.data.rows import collect
from lora_cot.data.sources import load_data, rows_of
from lora_cot.errors import DataError
from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import DataSection
from lora_cot.recipe.sources import JsonlSource, LlavaCotSource, MessagesSource, ShapesSource
from lora_cot.types import Exchange, StoredImage

FOUR_STAGE, DIRECT = FORMATS["four_stage"], FORMATS["direct"]
SECTIONS = {"jsonl": JsonlSource, "llava_cot_100k": LlavaCotSource, "messages": MessagesSource}
STAGES = {"SUMMARY": "a plan", "CAPTION": "a cat", "REASONING": "hence", "CONCLUSION": "B"}
REPLY = " \n\n ".join(f"<{name}> {text} </{name}>" for name, text in STAGES.items())


@pytest.fixture
def folder(tmp_path):
    """A folder of images that no source may open; one lies outside."""
    (tmp_path / "data" / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png", "deep/c.png", "../outside.png"):
        (tmp_path / "data" / name).write_bytes(b"not opened when rows are read")
    return tmp_path / "data"


@pytest.fixture
def source(folder):
    """The recipe's section of a source whose file holds these rows; a row can be a line of text as well."""

    def make(kind, *rows, name="rows.jsonl", **keys):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / name).write_text(f"[{','.join(lines)}]" if name.endswith(".json") else "\n".join(lines), "utf-8")
        path = folder / name
        return SECTIONS[kind](source=kind, path=str(path) if kind == "messages" else path, **keys)

    return make


@pytest.fixture
def load(source):
    """The samples of a source whose file holds these rows."""

    def samples(kind, *rows, cot_format=FOUR_STAGE, **keys):
        return load_source(source(kind, *rows, **keys), cot_format)

    return samples


def record(*turns, **keys):
    """A row of LLaVA-CoT-100k; turns are question and reply in turn."""
    roles = ("human", "gpt") * len(turns)
    return {"conversations": [{"from": role, "value": t} for role, t in zip(roles, turns, strict=False)], **keys}


def chat(*turns, **keys):
    """A row of the hub's chat form."""
    roles = ("user", "assistant") * len(turns)
    return {"messages": [{"role": role, "content": t} for role, t in zip(roles, turns, strict=False)], **keys}


def plain(number=0, **keys):
    """A good row of our own form."""
    return {"id": f"q{number}", "question": "What is it?", "answer": "B", **keys}


GOOD = {"jsonl": plain(), "llava_cot_100k": record("What is it?", REPLY), "messages": chat("What is it?", REPLY)}


def load_source(section, cot_format):
    """The samples of one source, in the order of its rows."""
    return collect(rows_of(section, cot_format), section)


def problems(error):
    return [str(problem) for problem in error.value.problems]


def png(size=(8, 8), noise=False):
    """Bytes of an image file; noise cannot be made smaller and differs by size."""
    buffer, area = io.BytesIO(), size[0] * size[1]
    pixels = random.Random(area).randbytes(3 * area) if noise else b"\xff\0\0" * area
    Image.frombytes("RGB", size, pixels).save(buffer, "PNG")
    return buffer.getvalue()


# LLaVA-CoT-100k


def test_a_llava_cot_record(load, folder):
    """A record's stages are known by name, its answer is the conclusion, its image is a path below the root."""
    (sample,) = load("llava_cot_100k", record("What is it?", REPLY, id=17, image="deep/c.png"))
    assert (sample.id, sample.images) == ("17", (folder / "deep/c.png",))
    assert sample.exchanges == (Exchange("What is it?", stages=STAGES, answer="B"),)


def test_several_turns_are_several_exchanges(load):
    """A conversation keeps its turns in order; the last one is the one asked."""
    turns = ("<image>\nFirst?", REPLY, "Second?", REPLY.replace("a cat", "a dog"))
    (sample,) = load("llava_cot_100k", record(*turns, image="a.png"))
    assert [exchange.question for exchange in sample.exchanges] == ["First?", "Second?"]
    assert [exchange.stages["CAPTION"] for exchange in sample.exchanges] == ["a cat", "a dog"]
    assert len(sample.images) == 1


@pytest.mark.parametrize(
    "question",
    [
        "<image>\nWhat?",
        "What?\n<image>",
        " <image>\nWhat? \n",
        "<image>\n\nWhat?",
        "<image> What?",
        "<image>\n<image>\nWhat?",
    ],
)
def test_placeholders_at_the_ends_are_dropped(load, question):
    """The image has its own slot, so its placeholder before or after the question is no text."""
    (sample,) = load("llava_cot_100k", record(question, REPLY, image="a.png"))
    assert sample.last.question == "What?"


def test_a_placeholder_inside_a_question_stays(load):
    """Text that speaks of the placeholder is the user's."""
    (sample,) = load("llava_cot_100k", record("What does <image> mean?", REPLY))
    assert sample.last.question == "What does <image> mean?"


@pytest.mark.parametrize("keys", [{}, {"image": None}, {"image": ""}])
def test_rows_without_an_image_are_text_only(load, keys):
    """They are kept, not skipped."""
    (sample,) = load("llava_cot_100k", record("What?", REPLY, **keys))
    assert sample.images == ()


def test_all_bad_records_are_reported_together(load):
    """Every row that cannot be used is named with file, line and key; empty lines count as lines."""
    first, rest = REPLY.split(" \n\n ", 1)
    with pytest.raises(DataError) as error:
        load(
            "llava_cot_100k",
            {"id": 1},
            record("What?", REPLY),
            "",
            record("What?", REPLY, "And?"),
            record("What?", "B"),
            record("What?", REPLY, "And?", f"{rest} {first}"),
            record("What?", REPLY, image="none.png"),
            record("What?", REPLY, image="../outside.png"),
            {"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]},
        )
    expected = [
        "rows.jsonl line 1 · conversations · Field required",
        "rows.jsonl line 4 · conversations · expected pairs",
        "rows.jsonl line 5 · conversations.1.value · not a text in the format four_stage: no stage tag in the text",
        "rows.jsonl line 6 · conversations.3.value · not a text in the format four_stage: <CAPTION> where <SUMMARY> was",
        "rows.jsonl line 7 · none.png · no such image file under ",
        "rows.jsonl line 8 · ../outside.png · the image lies outside the image root ",
        "rows.jsonl line 9 · conversations · expected pairs of a turn from 'human'",
    ]
    assert [found[: len(text)] for found, text in zip(problems(error), expected, strict=True)] == expected


def test_the_real_examples_load(load, shared_data, folder):
    """The published model's two answers, in the form of its training data, have all four stages and their images."""
    path = shared_data("llavacot_readme_examples.json")
    examples = json.loads(path.read_text("utf-8"))
    rows = [record("<image>\nWhat?", example["output"], image=example["image"]) for example in examples]
    samples = load("llava_cot_100k", *rows, image_root=path.parent)
    assert [list(sample.last.stages) for sample in samples] == [list(STAGES)] * 2
    assert all(text for sample in samples for text in sample.last.stages.values())
    assert [sample.last.answer for sample in samples] == ["B", "B: 5 MPa"]
    assert [sample.images for sample in samples] == [((path.parent / example["image"]).resolve(),) for example in examples]


# our own form


@pytest.mark.parametrize(
    ("keys", "exchange"),
    [
        ({"answer": "B"}, {"answer": "B"}),
        ({"stages": STAGES, "answer": "b"}, {"stages": STAGES, "answer": "b"}),
        ({"stages": STAGES, "answer": None}, {"stages": STAGES, "answer": "B"}),
        ({"stages": {"CAPTION": "c"}, "answer": None}, {"stages": {"CAPTION": "c"}, "answer": None}),
    ],
)
def test_a_plain_row(load, keys, exchange):
    """Stages, an answer or both; without one, the answer is the answer stage's text."""
    (sample,) = load("jsonl", plain(**keys))
    assert (sample.id, sample.exchanges, sample.images) == ("q0", (Exchange("What is it?", **exchange),), ())


@pytest.mark.parametrize(
    ("keys", "names"),
    [({"image": "a.png"}, ["a.png"]), ({"images": ["b.png", "a.png"]}, ["b.png", "a.png"]), ({"images": []}, [])],
)
def test_images_of_a_plain_row(load, folder, keys, names):
    """One image or a list of them, in order, below the file's own folder."""
    (sample,) = load("jsonl", plain(**keys))
    assert sample.images == tuple(folder / name for name in names)


def test_an_image_root_of_its_own(load, folder):
    """Images can lie elsewhere than the rows."""
    (sample,) = load("jsonl", plain(image="c.png"), image_root=folder / "deep")
    assert sample.images == (folder / "deep/c.png",)


def test_choices_are_kept(load):
    """The options of a question come along in order."""
    (sample,) = load("jsonl", plain(choices=["5 MPa", "2 MPa"]))
    assert sample.choices == ("5 MPa", "2 MPa")


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (plain(anwser="B"), "anwser · unknown key · did you mean 'answer'[?] allowed: answer, choices"),
        ({"question": "What?"}, "line 1 · the row has no answer · give it 'stages' or 'answer'"),
        (plain(answer=""), "line 1 · the row has no answer"),
        ({"answer": "B"}, "line 1 · question · Field required"),
        (plain(question=" "), "line 1 · question · empty"),
        (plain(answer=3), "line 1 · answer · Input should be a valid string"),
        (plain(stages=["a"]), "line 1 · stages · Input should be a valid dictionary"),
        (plain(stages={"CAPTION": 1}), r"line 1 · stages\.CAPTION · Input should be a valid string"),
        (plain(image="none.png"), "line 1 · none.png · no such image file"),
        (plain(images=["a.png", "../outside.png"]), "line 1 · ../outside.png · the image lies outside"),
        (plain(images=[3]), "line 1 · images.0 · Input should be a valid string"),
    ],
)
def test_a_bad_plain_row_is_refused(load, row, match):
    """The error names the row, the key and what is expected."""
    with pytest.raises(DataError, match=match):
        load("jsonl", row)


# the hub's chat form


@pytest.mark.parametrize("content", ["What is it?", [{"type": "image"}, {"type": "text", "text": "What is it?"}]])
def test_a_chat_row(load, folder, content):
    """Content is a text or a list of parts; the answer is read by the recipe's format."""
    (sample,) = load("messages", chat(content, REPLY, id="x", images=["a.png", "b.png"]))
    assert (sample.id, sample.images) == ("x", (folder / "a.png", folder / "b.png"))
    assert sample.exchanges == (Exchange("What is it?", stages=FORMATS["four_stage"].read(REPLY), answer="B"),)


def test_another_format_reads_another_answer(load):
    """The same row answers with its whole text where the format is direct."""
    (sample,) = load("messages", chat("What?", "B", image="a.png"), cot_format=DIRECT)
    assert (sample.last.answer, len(sample.images)) == ("B", 1)


def test_an_answer_at_the_end_of_a_text_is_its_last_line(load):
    """What a model's answer is compared with is not the whole text."""
    untagged = FORMATS["four_stage_untagged"]
    (chatted,) = load("messages", chat("What?", "It is round.\nB", image="a.png"), cot_format=untagged)
    (written,) = load(
        "jsonl", {"question": "What?", "stages": {"TEXT": "It is round.\nB"}, "image": "a.png"}, cot_format=untagged
    )
    assert [(one.last.answer, one.last.stages) for one in (chatted, written)] == [("B", {"TEXT": "It is round.\nB"})] * 2


def test_a_system_message_is_refused(load):
    """Prompts have no system message here, and none is dropped in silence."""
    row = chat("First?", REPLY, "Second?", REPLY)
    row["messages"].insert(0, {"role": "system", "content": "Be brief."})
    with pytest.raises(DataError, match=r"messages\.0\.role · Input should be 'user' or 'assistant'"):
        load("messages", row)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({}, "line 1 · messages · Field required"),
        ({"messages": []}, "line 1 · messages · List should have at least 2 items"),
        (chat("What?"), "line 1 · messages · List should have at least 2 items"),
        ({"messages": chat("What?", REPLY)["messages"][::-1]}, "line 1 · messages · expected pairs"),
        (chat("What?", None), r"line 1 · messages\.1\.content · Input should be a valid string"),
        (chat("What?", REPLY, image="none.png"), "line 1 · none.png · no such image file"),
        (chat("What?", REPLY, images=[{"bytes": None, "path": "../outside.png"}]), "lies outside the image root"),
    ],
)
def test_a_bad_chat_row_is_refused(load, row, match):
    """Wrong roles, missing halves and missing images are errors that name the row."""
    with pytest.raises(DataError, match=match):
        load("messages", row)


@pytest.fixture
def parquet(folder, monkeypatch):
    """The samples of a parquet file whose rows have these cells in one column."""
    import datasets

    def samples(column, *cells, declared=True, **keys):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
        table = datasets.Dataset.from_list([{**chat("What is it?", REPLY), column: cell} for cell in cells])
        if declared:  # as images, which the hub does, else as what they are made of
            kind = datasets.List(datasets.Image()) if column == "images" else datasets.Image()
            table = table.cast(datasets.Features({**table.features, column: kind}))
        table.to_parquet(folder / "rows.parquet")
        return load_source(MessagesSource(source="messages", path=str(folder / "rows.parquet"), **keys), FOUR_STAGE)

    return samples


def stored(*images):
    """Cells of a column of images whose files lie in the table."""
    return [{"bytes": image, "path": None} for image in images]


def pixels(image):
    return image.size, image.tobytes()


NOISE = [png((size, 8), noise=True) for size in (40, 56, 72)]


@pytest.mark.parametrize("column", ["images", "image"])
def test_parquet_from_the_hub(parquet, column):
    """An image in a row of a parquet file opens to the pixels that were stored, whether a row has one or a list."""
    groups = [NOISE[:2], NOISE[2:], NOISE[:1]] if column == "images" else [[image] for image in NOISE]
    cells = [stored(*group) if column == "images" else stored(*group)[0] for group in groups]
    samples = parquet(column, *cells, limit=2)
    assert len(samples) == 2
    for sample, group in zip(samples, groups, strict=False):
        assert [pixels(open_image(image)) for image in sample.images] == [pixels(open_image(image)) for image in group]
        assert [image_size(image) for image in sample.images] == [open_image(image).size for image in group]
        assert sample.exchanges == (Exchange("What is it?", stages=FORMATS["four_stage"].read(REPLY), answer="B"),)
    assert samples[0].id != samples[1].id


@pytest.mark.parametrize("column", ["images", "image"])
def test_images_of_parquet_are_references(parquet, column):
    """A sample holds the place of its image and no bytes, also when it travels to a worker."""
    big = png((300, 300), noise=True)
    samples = parquet(column, *[stored(big) if column == "images" else stored(big)[0]] * 4)
    assert all(type(image) is StoredImage for sample in samples for image in sample.images)
    sent = pickle.dumps(samples)
    assert len(big) > 200_000 > 10 * len(sent)
    (first, *_) = pickle.loads(sent)
    assert pixels(open_image(first.images[0])) == pixels(open_image(big))


@pytest.mark.parametrize("declared", [True, False])
def test_parquet_rows_may_lack_images(parquet, declared):
    """Rows without an image are kept as text, beside those that have one."""
    none, empty, some = parquet("images", None, [], stored(NOISE[0]), declared=declared)
    missing, there = parquet("image", None, stored(NOISE[1])[0], declared=declared)
    assert (none.images, empty.images, missing.images) == ((), (), ())
    assert [image_size(image) for image in (*some.images, *there.images)] == [(40, 8), (56, 8)]


def test_parquet_rows_may_name_files(parquet, folder):
    """A cell without bytes names a file below the root, beside one that has its own."""
    (sample,) = parquet("images", [{"bytes": None, "path": "a.png"}, *stored(NOISE[0])], declared=False)
    assert sample.images[0] == folder / "a.png"
    assert pixels(open_image(sample.images[1])) == pixels(open_image(NOISE[0]))
    with pytest.raises(DataError, match=r"outside\.png · the image lies outside the image root"):
        parquet("image", {"bytes": None, "path": "../outside.png"}, declared=False)


def test_a_damaged_image_of_a_parquet_file_is_refused(parquet):
    """Bytes that are no image are an error of the image, not of the table."""
    (sample,) = parquet("image", stored(b"junk")[0])
    for use in (open_image, image_size):
        with pytest.raises(DataError, match="image · not an image in a known format"):
            use(sample.images[0])


# all files


@pytest.mark.parametrize("kind", SECTIONS)
def test_rows_without_an_id_are_named_by_their_line(load, kind):
    """File and line stand in for an id, so that rows can still be told apart."""
    row = {key: value for key, value in GOOD[kind].items() if key != "id"}
    assert [sample.id for sample in load(kind, row, "", row)] == ["rows.jsonl line 1", "rows.jsonl line 3"]


@pytest.mark.parametrize("kind", SECTIONS)
def test_an_id_must_not_occur_twice(load, kind):
    """The second row of an id is refused, also where one is a number and one a text."""
    with pytest.raises(DataError, match=r"rows.jsonl line 3 · id · '7' occurs twice · give every row") as error:
        load(kind, {**GOOD[kind], "id": 7}, {**GOOD[kind], "id": 8}, {**GOOD[kind], "id": "7"})
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("kind", SECTIONS)
def test_a_list_in_a_json_file(load, kind):
    """A .json file holds one list of rows."""
    rows = [{**GOOD[kind], "id": number} for number in range(3)]
    assert [sample.id for sample in load(kind, *rows, name="rows.json")] == ["0", "1", "2"]


@pytest.mark.parametrize("beyond", [{}, "not JSON"])
@pytest.mark.parametrize("kind", SECTIONS)
def test_a_limit_takes_the_first_rows(load, kind, beyond):
    """Rows beyond the limit are not looked at: they may be as bad as they like."""
    rows = [{**GOOD[kind], "id": number} for number in range(2)]
    assert [sample.id for sample in load(kind, *rows, beyond, limit=2)] == ["0", "1"]


def test_problems_beyond_20_are_counted(load):
    """A file full of mistakes is told in 21 lines."""
    with pytest.raises(DataError) as error:
        load("jsonl", *[plain(number) if number == 5 else {} for number in range(24)])
    assert len(problems(error)) == 21
    assert problems(error)[-1] == "and 3 more problems"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_lines_that_are_no_rows_are_reported_with_the_others(load, name):
    """A line that is no object, or no JSON, does not hide the mistakes of other rows."""
    rows = [plain(answer=3), "[]", plain(1), plain(2, image="none.png")] + ["{broken"] * (name == "rows.jsonl")
    with pytest.raises(DataError) as error:
        load("jsonl", *rows, name=name)
    unit = "line" if name == "rows.jsonl" else "row"
    places = [text.split(" · ")[0] for text in problems(error)]
    assert places == [f"{name} {unit} {number}" for number in ((1, 2, 4, 5) if name == "rows.jsonl" else (1, 2, 4))]


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("jsonl", plain(images=5)),
        ("jsonl", plain(choices=5)),
        ("llava_cot_100k", record("What?", REPLY, image=5)),
        ("llava_cot_100k", {"conversations": ["What?", REPLY]}),
        ("messages", {"messages": ["What?", REPLY]}),
        ("messages", chat(5, REPLY)),
        ("messages", chat(["What?"], REPLY)),
        ("messages", chat([{"type": "text", "text": 5}], REPLY)),
        ("messages", chat("What?", REPLY, images=5)),
        ("messages", chat("What?", REPLY, images=[{"bytes": "text"}])),
    ],
)
def test_values_of_another_type_are_refused(load, kind, row):
    """A value of the wrong type is an error in the row's name, never a traceback and never a sample."""
    with pytest.raises(DataError, match=r"rows\.jsonl line 1"):
        load(kind, row)


@pytest.mark.parametrize("kind", SECTIONS)
def test_a_file_that_is_not_utf_8_is_refused(source, folder, kind):
    """The error names the file."""
    section = source(kind)
    (folder / "rows.jsonl").write_bytes(json.dumps(GOOD[kind]).encode() + b"\n\xff\n")
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        load_source(section, FOUR_STAGE)


@pytest.mark.parametrize("name", ["none.jsonl", "none.json", "none.parquet"])
def test_a_missing_file_is_refused(folder, name):
    """The error names the file, whatever kind it would have been."""
    with pytest.raises(DataError, match=f"{name} · no such data file"):
        load_source(MessagesSource(source="messages", path=str(folder / name)), FOUR_STAGE)


# mixtures


def mixed(*sections):
    """The samples of these sources, as a recipe trains on them."""
    return load_data(DataSection(train=list(sections)), FOUR_STAGE)[0]


@pytest.mark.parametrize(("weight", "times"), [(0.5, {0: 5, 1: 5}), (1, {1: 10}), (1.5, {1: 5, 2: 5}), (2, {2: 10})])
def test_a_weight_is_the_number_of_passes(source, weight, times):
    """Weight 1 takes every row once, 2 twice; a fraction takes so many different rows, the same in every run."""
    rows = [plain(number) for number in range(10)]
    data = DataSection(train=[source("jsonl", *rows, weight=weight)])
    ids = [sample.id for sample in load_data(data, FOUR_STAGE)[0]]
    taken = Counter(ids)
    assert Counter(taken[f"q{number}"] for number in range(10)) == times
    assert ids == [sample.id for sample in load_data(data, FOUR_STAGE)[0]]


def test_sources_are_mixed(source):
    """Every source is taken with its own weight, and the same row ids may occur in two of them."""
    first = source("jsonl", *[plain(number) for number in range(4)], weight=2)
    second = source("llava_cot_100k", *[record("And?", REPLY, id=f"q{n}") for n in range(2)], name="b.jsonl")
    third = ShapesSource(source="shapes", limit=6, weight=0.5)
    mixed = load_data(DataSection(train=[first, second, third]), FOUR_STAGE)[0]
    questions = Counter("shapes" if s.id.startswith("train-") else s.last.question for s in mixed)
    assert questions == {"What is it?": 8, "And?": 2, "shapes": 3}


def test_a_mistake_names_its_source(source):
    """The source's place in the list and its kind come before file and line, also for what is only counted."""
    good, bad = source("jsonl", plain()), source("llava_cot_100k", *[{}] * 22, name="bad.jsonl")
    with pytest.raises(DataError) as error:
        load_data(DataSection(train=[good, bad]), FOUR_STAGE)
    place = "data.train.1 (llava_cot_100k)"
    assert problems(error)[0].startswith(f"{place} · bad.jsonl line 1 · conversations · Field required")
    assert problems(error)[-1] == f"{place} · and 2 more problems"


def test_any_format_takes_what_it_needs(load):
    """Rows with stages train a format of fewer stages too."""
    (sample,) = load("llava_cot_100k", record("What?", REPLY), cot_format=DIRECT)
    assert DIRECT.gold(sample.last) == {"ANSWER": "B"}
    assert FOUR_STAGE.gold(sample.last) == STAGES


def test_bad_rows_can_be_left_out(tmp_path, capsys):
    """With `bad_rows: drop` the good rows are taken, and the others counted and named; without, nothing is."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1, "question": "?", "answer": "a"}\n{"id": 2}\n{"id": 3, "question": "?", "answer": "b"}\n')
    source = JsonlSource(source="jsonl", path=path, bad_rows="drop")
    assert [sample.id for sample in load_source(source, FORMATS["direct"])] == ["1", "3"]
    assert "1 problems in rows that are left out" in (said := capsys.readouterr().err) and "rows.jsonl line 2" in said
    with pytest.raises(DataError, match=r"rows\.jsonl line 2"):
        load_source(source.model_copy(update={"bad_rows": "error"}), FORMATS["direct"])


def test_held_out_rows_are_kept_back():
    """They come out of train by chance, whole: no copy of a row that occurs twice stays behind."""
    section = DataSection(train=[{"source": "shapes", "limit": 20, "weight": 2}], held_out=5)
    train, held_out = load_data(section, FORMATS["four_stage"])
    assert (len(train), len(held_out)) == (30, 5)
    assert not {sample.id for sample in train} & {sample.id for sample in held_out}
    assert load_data(section, FORMATS["four_stage"])[1] == held_out
    with pytest.raises(DataError, match=r"data.held_out · 20 of 20 rows are kept back"):
        load_data(section.model_copy(update={"held_out": 20}), FORMATS["four_stage"])


# Rationales from a file


@pytest.mark.parametrize("rationales_for", ["all", "missing"])
def test_rationales_from_a_file_need_none_in_the_data(tmp_path, rationales_for):
    """Of no source; a gold one is kept where it is asked for, and broken stages are no answer."""
    two = FORMATS["two_stage"]
    turn = lambda text: [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]  # noqa: E731
    whole = "<RATIONALE> gold </RATIONALE>\n\n<ANSWER> B </ANSWER>"
    forms = {
        "jsonl": [{"question": "?", "answer": "A"}, {"question": "?", "stages": {"RATIONALE": "gold", "ANSWER": "B"}}],
        "messages": [{"messages": turn("A")}, {"messages": turn(whole)}],
    }
    written = tmp_path / "rationales.jsonl"
    written.write_text("".join(json.dumps({"id": str(n), "output": f"written {n}"}) + "\n" for n in range(2)))
    keys = {"rationales": str(written), "rationales_for": rationales_for}
    for source, rows in forms.items():
        path = tmp_path / f"{source}.jsonl"
        path.write_text("\n".join(json.dumps({"id": str(n), **row}) for n, row in enumerate(rows)))
        data = DataSection.model_validate({"train": [{"source": source, "path": str(path), **keys}]})
        found = [two.gold(sample.last) for sample in load_data(data, two)[0]]
        second = "gold" if rationales_for == "missing" else "written 1"
        assert found == [{"RATIONALE": "written 0", "ANSWER": "A"}, {"RATIONALE": second, "ANSWER": "B"}]
    path.write_text(json.dumps({"id": "0", "messages": turn("<RATIONALE> half </RATIONALE> B")}))
    with pytest.raises(DataError, match="not a text in the format two_stage: <ANSWER> is missing"):
        load_data(data, two)


def test_plain_answers_in_llavas_form_serve_where_nothing_is_reasoned(tmp_path):
    """A format with stages refuses them, and half of the stages are an answer to none."""
    row = lambda text: {"id": "0", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": text}]}  # noqa: E731
    path = tmp_path / "rows.json"
    data = DataSection.model_validate({"train": [{"source": "llava_cot_100k", "path": str(path)}]})
    path.write_text(json.dumps([row(" B ")]))
    assert load_data(data, FORMATS["direct"])[0][0].last.answer == "B"
    with pytest.raises(DataError, match="no stage tag in the text"):
        load_data(data, FORMATS["four_stage"])
    for text in ("<SUMMARY> s </SUMMARY> B", " "):
        path.write_text(json.dumps([row(text)]))
        with pytest.raises(DataError):
            load_data(data, FORMATS["direct"])


@pytest.mark.parametrize(("keys", "row"), [({"id": 0}, "0"), ({"id": "7"}, "7"), ({"id": None}, "")])
def test_a_problem_knows_the_id_of_its_row(source, keys, row):
    """A number as well as a text, 0 among them; a row without one has none."""
    (_, read), *_ = rows_of(source("jsonl", {**plain(), **keys, "answer": 3}), FOUR_STAGE)
    with pytest.raises(DataError) as error:
        read()
    assert [problem.row for problem in error.value.problems] == [row]
