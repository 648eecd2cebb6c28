"""The built-in data set: the same everywhere, never shared between splits, and right."""

import re
from collections import Counter

import pytest

from lora_cot.data.images import open_image
from lora_cot.data.shapes import CELL, COLOURS, PLACES, SPLITS, iterate, make_sample
from lora_cot.data.sources import rows_of
from lora_cot.formats import FORMATS
from lora_cot.recipe.sources import ShapesSource

ROWS = 1500
BESIDE = {"right of": (0, 1), "left of": (0, -1), "below": (1, 0), "above": (-1, 0)}
"""Row and column from a shape to the one that is asked for."""
SKILLS = {"count": 1, "existence": 1, "attribute": 1, "same_as": 2, "relation": 2, "comparison": 2}


@pytest.fixture(scope="module")
def samples():
    return list(iterate("train", ROWS, seed=3))


def seen(sample):
    """{place: (colour, kind)} read from the caption."""
    cells = re.findall(r"(top left|top right|bottom left|bottom right): (\w+)(?: (\w+))?\.", sample.meta["caption"])
    assert [place for place, _, _ in cells] == list(PLACES)
    return {place: (colour, kind) for place, colour, kind in cells if colour != "nothing"}


def expected(skill, question, things):
    """The answer to a question, worked out from what is where and the words of the question alone."""
    counts = Counter(word for thing in things.values() for word in thing)
    words = [word.removesuffix("s") for word in re.findall(r"\w+(?= shapes)|circles|squares|triangles", question)]
    kind = 0 if "colour" in question else 1
    place = next((place for place in PLACES if question.endswith(f"at the {place}?")), None)
    if skill == "count":
        return str(counts[words[0]])
    if skill == "existence":
        return "yes" if tuple(re.search(r"a (\w+) (\w+)\?", question).groups()) in things.values() else "no"
    if skill == "attribute":
        return things[place][kind]
    if skill == "same_as":
        return str(counts[things[place][kind]])
    if skill == "comparison":
        first, second = (counts[word] for word in words)
        return words[0] if first > second else words[1] if second > first else "equal"
    side, *anchor = re.search(r"shape (right of|left of|below|above) the (\w+) (\w+)\?", question).groups()
    (at,) = [PLACES.index(place) for place, thing in things.items() if thing == tuple(anchor)]
    row, column = at // 2 + BESIDE[side][0], at % 2 + BESIDE[side][1]
    assert row in (0, 1)
    assert column in (0, 1)
    return things[PLACES[2 * row + column]][kind]


def test_a_row_is_always_the_same():
    """A row follows from its index, split and seed, and from each of them."""
    row = make_sample(5, "train", 0)
    assert row == make_sample(5, "train", 0) == list(iterate("train", 6, 0))[5]
    others = [make_sample(6, "train", 0), make_sample(5, "test", 0), make_sample(5, "train", 1)]
    assert all(row.images != other.images and row.id != other.id for other in others)


def test_splits_share_no_scene():
    """No scene of one split appears in another, under any seed."""
    captions = {split: {s.meta["caption"] for seed in (0, 1) for s in iterate(split, 400, seed)} for split in SPLITS}
    assert captions["train"].isdisjoint(captions["validation"] | captions["test"])
    assert captions["validation"].isdisjoint(captions["test"])
    assert all(len(scenes) > 300 for scenes in captions.values())


@pytest.mark.parametrize("skill", SKILLS)
def test_answers_are_right(samples, skill):
    """Answers worked out anew from caption and question are those of the data set, for every skill."""
    asked = [sample for sample in samples if sample.meta["skill"] == skill]
    assert len(asked) > 50
    for sample in asked:
        assert expected(skill, sample.last.question, seen(sample)) == sample.last.answer, sample
        assert sample.meta["steps"] == SKILLS[skill]


def test_the_picture_shows_the_caption(samples):
    """Every cell of the picture holds one shape of the colour that the caption names, or nothing."""
    for sample in samples[:200]:
        image, things = open_image(sample.images[0]), seen(sample)
        for index, place in enumerate(PLACES):
            left, top = index % 2 * CELL, index // 2 * CELL
            cell = image.crop((left, top, left + CELL, top + CELL))
            drawn = [pixel for _, pixel in cell.getcolors() if min(pixel) < 225]
            assert len(drawn) == (place in things), (sample.id, place)
            if drawn:
                colour = COLOURS[things[place][0]]
                assert all(abs(a - b) <= 12 for a, b in zip(drawn[0], colour, strict=True))


def test_images_are_56_by_56(samples):
    """Each row has one image, of four 28-pixel cells."""
    assert {open_image(image).size for sample in samples[:100] for image in sample.images} == {(56, 56)}
    assert {len(sample.images) for sample in samples} == {1}


def test_half_of_the_questions_need_two_steps(samples):
    """One step and two are about equally frequent."""
    assert sum(sample.meta["steps"] == 2 for sample in samples) / ROWS == pytest.approx(0.5, abs=0.05)


def test_yes_and_no_are_balanced(samples):
    """A model that always says yes is right half of the time, and ties are a third of comparisons at most."""
    answers = {skill: Counter(s.last.answer for s in samples if s.meta["skill"] == skill) for skill in SKILLS}
    assert answers["existence"]["yes"] / answers["existence"].total() == pytest.approx(0.5, abs=0.08)
    assert 0 < answers["comparison"]["equal"] / answers["comparison"].total() < 1 / 3


@pytest.mark.parametrize("cot_format", FORMATS.values(), ids=FORMATS)
def test_every_format_finds_its_gold(samples, cot_format):
    """Rows have gold text for every built-in format, with the answer in the answer stage, or at its end."""
    for sample in samples[:50]:
        gold = cot_format.gold(sample.last)[cot_format.answer_stage.name]
        assert (gold.splitlines()[-1] if cot_format.answer_stage.ends_in_answer else gold) == sample.last.answer


def test_the_reasoning_leads_to_the_answer(samples):
    """The last word or number of the reasoning is the answer; for yes and no it is how many there are."""
    for sample in samples:
        last, answer = sample.last.stages["REASONING"].rstrip(".").split()[-1], sample.last.answer
        assert last == answer if answer not in ("yes", "no") else (last != "0") == (answer == "yes")


def test_a_recipe_asks_for_rows():
    """Split, seed and limit of a source are those of its rows."""
    rows = [read() for _, read in rows_of(ShapesSource(source="shapes", split="test", seed=7, limit=3), FORMATS["direct"])]
    assert [row.id for row in rows] == ["test-7-0", "test-7-1", "test-7-2"]
