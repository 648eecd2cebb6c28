"""What is known of all rows, in a temporary file of SQLite's: memory does not grow with them.

Questions to all rows at once are asked here: which are held out, which occur twice, what leaks, how long they are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from lora_cot.validation.checks import digest
from lora_cot.validation.stream import CheckedRow, RecipeSource

BUCKETS = 12
"""Bars of a histogram at most."""

TABLES = """
CREATE TABLE rows (number INTEGER PRIMARY KEY, source INTEGER, split TEXT, place TEXT, id TEXT, sample INTEGER, state TEXT,
    images INTEGER, turns INTEGER, question INTEGER, content INTEGER,
    tokens INTEGER, image_tokens INTEGER, trained INTEGER, encoded INTEGER, fits INTEGER);
CREATE TABLE images (key INTEGER, row INTEGER);
CREATE TABLE ids (source INTEGER, key INTEGER, PRIMARY KEY (source, key)) WITHOUT ROWID;
"""

INSERT = "INSERT INTO rows VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Twin(NamedTuple):
    """A row with the place of an earlier one that it equals in something."""

    source: int
    split: str
    where: str
    id: str
    first: str


class RowStore:
    """Facts of rows, in the order they were added."""

    def __init__(self, sources: Sequence[RecipeSource]):
        self._sources = sources
        self._samples = [0] * len(sources)
        self._database = sqlite3.connect("")  # a file of its own, gone when it is closed
        self._database.executescript(TABLES)

    def is_new(self, row: CheckedRow) -> bool:
        """Whether the row's id occurs for the first time in its source."""
        key = (row.source, digest(row.facts.id.encode("utf-8", "surrogatepass")))
        return self._database.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", key).rowcount == 1

    def add(self, row: CheckedRow, state: str, is_sample: bool) -> None:
        """Keep a row.

        Args:
            row: with its place.
            state: what training makes of it: used, dropped or failed.
            is_sample: whether it could be read and its id is its own.
        """
        facts, number = row.facts, None
        keys = facts.keys if is_sample else None
        if is_sample:
            number = self._samples[row.source]
            self._samples[row.source] += 1
        split = self._sources[row.source].split
        values = (row.source, split, row.where, clean(facts.id), number, state, facts.images, facts.turns)
        same = (keys.question, keys.content) if keys else (None, None)
        lengths = (facts.tokens, facts.image_tokens, facts.trained, facts.encoded, facts.fits)
        execute = self._database.execute
        new = execute(INSERT, (*values, *same, *lengths)).lastrowid
        if keys and keys.images:
            self._database.executemany("INSERT INTO images VALUES (?, ?)", ((key, new) for key in keys.images))

    def samples(self, split: str) -> list[int]:
        """Rows of each source of a split that became samples."""
        return [count for source, count in zip(self._sources, self._samples, strict=True) if source.split == split]

    def unusable(self, source: int) -> tuple[int, int]:
        """Rows of a source that became no samples, and all its rows."""
        total = self._one("COUNT(*) FROM rows WHERE source = ?", source)[0]
        return total - self._samples[source], total

    def hold_out(self, numbers: Iterable[int]) -> None:
        """Move samples of train to the split held_out; numbers count through all its sources."""
        self._database.execute("CREATE TABLE chosen (number INTEGER PRIMARY KEY)")
        self._database.executemany("INSERT INTO chosen VALUES (?)", ((number,) for number in numbers))
        first = 0
        for source, count in enumerate(self._samples):
            if self._sources[source].split == "train":
                self._database.execute(
                    "UPDATE rows SET split = 'held_out' WHERE source = ? AND sample + ? IN (SELECT number FROM chosen)",
                    (source, first),
                )
                first += count

    def duplicates(self) -> Iterator[Twin]:
        """Rows that say and show what an earlier row of their split does."""
        yield from self._twins(
            "FROM (SELECT split, content, MIN(number) AS number FROM rows WHERE content NOT NULL "
            "GROUP BY split, content HAVING COUNT(*) > 1) d JOIN rows f ON f.number = d.number "
            "JOIN rows a ON a.content = d.content AND a.split = d.split AND a.number > d.number ORDER BY a.number"
        )

    def leaked_questions(self) -> Iterator[Twin]:
        """Rows that are held out and ask what a row of train asks, about the same images."""
        self._database.execute("CREATE INDEX IF NOT EXISTS questions ON rows (question)")
        yield from self._twins(
            "FROM rows a JOIN rows f ON f.number = (SELECT MIN(number) FROM rows t WHERE t.question = a.question "
            "AND t.split = 'train') WHERE a.split != 'train' AND a.question NOT NULL ORDER BY a.number"
        )

    def leaked_images(self) -> Iterator[Twin]:
        """Rows that are held out and show an image that a row of train shows."""
        self._database.execute("CREATE INDEX IF NOT EXISTS pictures ON images (key)")
        yield from self._twins(
            "FROM (SELECT i.row AS held, MIN(j.row) AS first FROM images i JOIN images j ON i.key = j.key "
            "JOIN rows r ON r.number = i.row JOIN rows t ON t.number = j.row "
            "WHERE r.split != 'train' AND t.split = 'train' GROUP BY i.row) "
            "JOIN rows a ON a.number = held JOIN rows f ON f.number = first ORDER BY a.number"
        )

    def _twins(self, query: str) -> Iterator[Twin]:
        yield from map(Twin._make, self._database.execute(f"SELECT a.source, a.split, a.place, a.id, f.place {query}"))

    def kept(self, number: int, split: str) -> tuple[int, int, int, int]:
        """Of a split's samples: how many could be measured, how many of those pass `number` keeps, how many of these have
        images, and the fewest tokens that the images of any sample take, 0 if none has one.
        """
        counts = self._one(
            "SUM(tokens NOT NULL), SUM(fits >> ?1 & 1), SUM(images > 0 AND fits >> ?1 & 1), "
            "MIN(CASE WHEN image_tokens > 0 THEN image_tokens END) FROM rows WHERE sample NOT NULL AND split = ?2",
            number,
            split,
        )
        measured, kept, with_images, least = (count or 0 for count in counts)
        return measured, kept, with_images, least

    def statistics(self, split: str) -> dict[str, Any]:
        """Counts of a split's rows, and how long those are that could be measured."""
        names = ("rows", "used", "dropped", "failed", "with_image", "without_image", "turns")
        counts = self._one(
            "COUNT(*), SUM(state = 'used'), SUM(state = 'dropped'), SUM(state = 'failed'), SUM(turns > 0 AND images > 0), "
            "SUM(turns > 0 AND images = 0), SUM(turns) FROM rows WHERE split = ?",
            split,
        )
        report = dict(zip(names, (count or 0 for count in counts), strict=True))
        measured, total, images, trained, encoded = self._one(
            "COUNT(*), SUM(tokens), SUM(image_tokens), SUM(trained), SUM(encoded) FROM rows "
            "WHERE split = ? AND tokens NOT NULL",
            split,
        )
        if not measured:
            return {**report, "tokens": None, "label_share": None}
        tokens = {"total": total, "of_images": images, "mean": total / measured, **self._lengths(split, measured)}
        return {**report, "tokens": tokens, "label_share": trained / encoded}

    def _lengths(self, split: str, measured: int) -> dict[str, Any]:
        of_split = "FROM rows WHERE split = ? AND tokens NOT NULL"
        places = {"min": 0, "median": (measured - 1) // 2, "p95": -(-measured * 95 // 100) - 1, "max": measured - 1}
        found = {
            name: self._one(f"tokens {of_split} ORDER BY tokens LIMIT 1 OFFSET {place}", split)[0]
            for name, place in places.items()
        }
        width = bucket_width(found["max"] - found["min"] + 1)
        query = f"SELECT tokens / {width}, COUNT(*) {of_split} GROUP BY 1"
        counts = dict(self._database.execute(query, (split,)).fetchall())
        bars = range(min(counts), max(counts) + 1)
        histogram = [{"from": n * width, "to": (n + 1) * width - 1, "rows": counts.get(n, 0)} for n in bars]
        return {**found, "histogram": histogram}

    def _one(self, query: str, *values: Any) -> Any:
        return self._database.execute(f"SELECT {query}", values).fetchone()


def bucket_width(span: int) -> int:
    """A round number of tokens, so that no more than BUCKETS of them cover a span."""
    power = 1
    while True:
        for step in (1, 2, 5):
            if span <= (BUCKETS - 1) * step * power:
                return step * power
        power *= 10


def clean(text: str) -> str:
    """A text that can be written as UTF-8, whatever was in the row."""
    return text.encode("utf-8", "backslashreplace").decode()
