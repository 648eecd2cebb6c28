"""Every training checks a sample of its rows first, as validate checks all of them."""

import itertools
from dataclasses import replace

import pytest

from lora_cot.data.collate import Collator
from lora_cot.data.lengths import LengthLimit
from lora_cot.data.shapes import make_sample
from lora_cot.errors import DataError
from lora_cot.formats import FORMATS
from lora_cot.types import Exchange
from lora_cot.validation import start
from lora_cot.validation.start import check_start, spread


@pytest.fixture(scope="module")
def collator(tiny):
    """What encodes samples on the tiny base."""
    return Collator(LengthLimit(tiny.encoder(FORMATS["four_stage"]), tiny.family.image_tokens), tiny.family.image_inputs)


def samples(count, split="train"):
    return [make_sample(number, split, 0) for number in range(count)]


def test_all_failing_rows_are_named_together(collator):
    """Damaged images and missing stages, among trained and held-out rows alike."""
    rows, held = samples(6), samples(3, "validation")
    rows[1], held[2] = replace(rows[1], images=(b"junk",)), replace(held[2], images=(b"\x89PNG\r\n\x1a\n",))
    rows[4] = replace(rows[4], exchanges=(Exchange("?"),))
    with pytest.raises(DataError) as error:
        check_start(collator, rows, held)
    assert [problem.where.split(" · ")[0] for problem in error.value.problems] == [rows[1].id, rows[4].id, held[2].id]


def test_what_the_processor_refuses_is_named(collator, monkeypatch):
    """Samples go through the processor too, as training will send them."""

    def refuse(self, sample, scale=None):
        raise DataError("the processor takes no such image").at(sample.id)

    monkeypatch.setattr(Collator, "encode", refuse)
    with pytest.raises(DataError, match="train-0-0 · the processor takes no such image"):
        check_start(collator, samples(2), [])


def test_a_sample_is_evenly_spread():
    """From first to last, whatever there is of them; all where they are few."""
    assert spread(range(150)) == range(150)
    for count in (400, 1234, 10_000):
        numbers = list(spread(range(count)))
        gaps = {later - earlier for earlier, later in itertools.pairwise(numbers)}
        assert numbers[0] == 0 and count - numbers[-1] <= max(gaps) and len(gaps) == 1
        assert start.SAMPLED <= len(numbers) < 2 * start.SAMPLED


def test_notes_name_each_kind_once(collator):
    """Rows that occur twice and leaks are found among all rows; a row that is taken twice by its weight is no duplicate."""
    rows, held = samples(8), samples(4, "validation")
    rows += [rows[0], replace(rows[3], id="copy")]
    held[1] = replace(rows[2], id="leak")
    held[3] = replace(held[3], images=rows[5].images)
    rows[6] = replace(rows[6], exchanges=(replace(rows[6].last, question="What is <|end|>?"),))
    notes = check_start(collator, rows, held)
    expected = {"leak_question": ["leak"], "leak_image": ["leak", held[3].id], "duplicate_row": ["copy"]}
    expected["control_tokens"] = [rows[6].id]
    assert {note.split(":")[0]: note.split(": ")[1].split(", ")[1:] for note in notes} == expected
    assert check_start(collator, samples(8), samples(4, "validation")) == []
