"""Statistics over all rows, asked of a file on disk, are those one would compute in memory."""

import itertools
from collections import Counter

import numpy
from hypothesis import given
from hypothesis import strategies as st

from lora_cot.validation.checks import Keys, RowFacts
from lora_cot.validation.store import BUCKETS, RowStore, bucket_width
from lora_cot.validation.stream import CheckedRow, RecipeSource

SOURCES = [RecipeSource("train", 0, None), RecipeSource("train", 1, None), RecipeSource("eval", 0, None)]
ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5000), st.integers(0, 9)), min_size=1, max_size=60)


def store_of(rows):
    """A store of rows (source, tokens, picture); 0 is none."""
    store = RowStore(SOURCES)
    for number, (source, tokens, picture) in enumerate(rows):
        keys = Keys((picture,) if picture else (), picture, picture * tokens)
        facts = RowFacts((), str(number), int(picture > 0), 1, keys, tokens, picture, tokens // 2, tokens, fits=1)
        store.add(CheckedRow(source, f"line {number}", facts), "used", True)
    return store


@given(ROWS)
def test_statistics(rows):
    """Counts, quantiles, histogram and shares, for each split."""
    store = store_of(rows)
    for split, sources in (("train", (0, 1)), ("eval", (2,))):
        mine = [row for row in rows if row[0] in sources]
        found = store.statistics(split)
        assert (found["rows"], found["with_image"]) == (len(mine), sum(picture > 0 for *_, picture in mine))
        if not mine:
            assert found["tokens"] is None
            continue
        lengths = [tokens for _, tokens, _ in mine]
        expected = numpy.quantile(lengths, [0, 0.5, 0.95, 1], method="inverted_cdf")
        assert [found["tokens"][name] for name in ("min", "median", "p95", "max")] == list(expected)
        assert found["tokens"]["total"] == sum(lengths)
        assert found["label_share"] == sum(length // 2 for length in lengths) / sum(lengths)
        bars = found["tokens"]["histogram"]
        assert len(bars) <= BUCKETS and all(a["to"] + 1 == b["from"] for a, b in itertools.pairwise(bars))
        counted = Counter(next(n for n, bar in enumerate(bars) if bar["from"] <= length <= bar["to"]) for length in lengths)
        assert [bar["rows"] for bar in bars] == [counted[n] for n in range(len(bars))]


@given(ROWS)
def test_twins(rows):
    """Duplicates, leaked questions and leaked images name the first row that they equal."""
    store = store_of(rows)

    def expected(pairs):
        return [(f"line {late}", f"line {early}") for late, early in pairs]

    def first(test):
        return next((number for number, row in enumerate(rows) if test(row)), None)

    same = [
        (n, first(lambda r, row=row: (r[0] == 2) == (row[0] == 2) and r[1] * r[2] == row[1] * row[2]))
        for n, row in enumerate(rows)
    ]
    assert [(twin.where, twin.first) for twin in store.duplicates()] == expected((n, m) for n, m in same if m != n)
    held = [(n, first(lambda r, row=row: r[0] != 2 and r[2] == row[2])) for n, row in enumerate(rows) if row[0] == 2]
    leaked = [(n, m) for n, m in held if m is not None]
    assert [(twin.where, twin.first) for twin in store.leaked_questions()] == expected(leaked)
    assert [(twin.where, twin.first) for twin in store.leaked_images()] == expected((n, m) for n, m in leaked if rows[n][2])


@given(ROWS, st.sets(st.integers(0, 59)))
def test_held_out_rows(rows, numbers):
    """Numbers count through the samples of train, source by source, whatever order they came in."""
    rows = sorted(rows)
    store = store_of(rows)
    store.hold_out(numbers)
    train = [row for row in rows if row[0] < 2]
    held = [row for number, row in enumerate(train) if number in numbers]
    assert store.statistics("held_out")["rows"] == len(held)
    if held:
        assert store.statistics("held_out")["tokens"]["total"] == sum(tokens for _, tokens, _ in held)
    assert store.samples("train") == [sum(row[0] == source for row in rows) for source in (0, 1)]


@given(st.integers(1, 10**7))
def test_buckets_are_round(span):
    """No more bars than fit, and no wider than they must."""
    width = bucket_width(span)
    assert -(-span // width) + 1 <= BUCKETS and str(width).strip("0") in ("1", "2", "5")
    assert width == 1 or -(-span // (width // 2)) + 1 > BUCKETS * 0.8
