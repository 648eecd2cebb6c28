"""`compare`: evaluations of the same questions side by side, each held against the first, question by question.

What differs by chance is told by a paired test: for answers that are right or wrong McNemar's exact one, for credits in parts
the permutation test on the signs of the differences (10,000 draws), of which McNemar's is the special case. The interval of a
difference is the paired bootstrap's over questions. Nothing is corrected for the number of comparisons.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_cot.data.rows import StrictRow, checked, read_json_rows, shortened
from lora_cot.errors import DataError, Problem, RunError
from lora_cot.evaluation.benchmarks import find
from lora_cot.evaluation.metrics import Metric, Paired, Share, paired
from lora_cot.pages import Dots, check_writable, dot_plot, render
from lora_cot.recipe.search import UNSCORED

ANSWERS = "evaluation.jsonl"
"""What a run that was measured after its training keeps its answers in."""
SAME = ("benchmark", "split", "graded by")
"""Settings that evaluations must share to be compared."""
MOST_ROWS = 30
"""Of a plot by group; the table has all."""


class ComparedRow(StrictRow):
    """What of an answer's row is compared."""

    id: str
    question: str
    credit: float
    graded_by: str
    groups: list[str]
    sets: dict[str, str]
    counts: bool
    format: str
    totals: dict[str, float]


@dataclass(frozen=True)
class Entry:
    """One evaluation: what `eval --output` wrote."""

    name: str
    setting: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Measured:
    """The figures of one evaluation."""

    name: str
    model: str
    search: str
    accuracy: Share
    groups: dict[str, Share]
    format_validity: Share
    tokens_per_question: float
    seconds_per_question: float

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        plain = {key: value for key, value in vars(self).items() if not isinstance(value, Share | dict)}
        shares = {"accuracy": self.accuracy.to_json(), "format_validity": self.format_validity.to_json()}
        return {**plain, **shares, "groups": {name: share.to_json() for name, share in self.groups.items()}}


@dataclass(frozen=True)
class Comparison:
    """Evaluations of the same questions, the first of which the others are held against."""

    benchmark: str
    split: str
    graded_by: str
    questions: int
    metric: Metric
    measured: list[Measured]
    against_first: dict[str, Paired]
    """By name; over the questions that count to the accuracy."""

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        told = {key: getattr(self, key) for key in ("benchmark", "split", "graded_by", "questions", "metric")}
        against = {name: asdict(one) for name, one in self.against_first.items()}
        return {**told, "measured": [one.to_json() for one in self.measured], "against_first": against}

    def tables(self) -> list[tuple[str, list[list[str]]]]:
        """For people: (what it shows, rows of cells, the first of names); shares with their 95 % intervals."""
        head = ["", self.metric, "less the first, points", "p", "valid format", "tokens a question", "seconds a question"]
        rows = [head if len(self.measured) > 1 else [*head[:2], *head[4:]]]
        for one in self.measured:
            against = self._against(one.name) if len(self.measured) > 1 else []
            costs = [one.format_validity.text, f"{one.tokens_per_question:.1f}", f"{one.seconds_per_question:.3f}"]
            rows.append([one.name, one.accuracy.text, *against, *costs])
        found = [(f"{self.benchmark} {self.split}, {self.questions} questions", rows)]
        names = list(dict.fromkeys(name for one in self.measured for name in one.groups))
        totals = {name: max(one.groups[name].total for one in self.measured if name in one.groups) for name in names}
        by_group = [
            [f"{name} ({totals[name]})", *(one.groups[name].text if name in one.groups else "" for one in self.measured)]
            for name in names
        ]
        return [*found, ("By group", [["", *(one.name for one in self.measured)], *by_group])] if names else found

    def notes(self) -> list[str]:
        """What the tables do not say."""
        how = "by the benchmark's rule (exact)" if self.graded_by == "exact" else f"by the judge {self.graded_by}"
        notes = [f"Graded {how}. Intervals are 95 %: Wilson's of a share, the paired bootstrap's of a difference."]
        tests = sorted({one.test for one in self.against_first.values()})
        if tests:
            notes.append(f"p is that of {' and '.join(tests)}, two-sided, not corrected for the number of comparisons.")
        return notes + [f"{one.name}: {one.model}, {one.search}." for one in self.measured]

    def lines(self) -> list[str]:
        """For a terminal."""
        found: list[str] = []
        for title, rows in self.tables():
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            cells = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
            found += [title, *("  ".join(row).rstrip() for row in cells)]
            found.append("")
        return found + self.notes()

    def _against(self, name: str) -> list[str]:
        one = self.against_first.get(name)
        if one is None:
            return ["", ""]
        low, high = (100 * bound for bound in one.interval)
        p = "< 0.0001" if one.p < 0.0001 else f"{one.p:.4f}"
        return [f"{100 * one.difference:+.1f} [{low:+.1f}, {high:+.1f}]", p]


def compare(*places: str | Path, output: Path | None = None) -> Comparison:
    """Evaluations of the same questions, side by side.

    Args:
        places: files that `eval --output` wrote, or runs that were measured after training; the others are held against the
            first.
        output: an HTML file for tables and plots.

    Raises:
        DataError: no such file, or one that `eval` did not write.
        RunError: they answer other questions, or were graded otherwise; the page cannot be written.
    """
    check_page(output)
    paths = [Path(place) / ANSWERS if Path(place).is_dir() else Path(place) for place in places]
    names = [Path(place).name if Path(place).is_dir() else path.stem for place, path in zip(places, paths, strict=True)]
    if len(set(names)) < len(names):
        names = [str(place) for place in places]
    found = comparison([_entry(name, path) for name, path in zip(names, paths, strict=True)])
    if output:
        write_page(found, output)
    return found


def check_page(path: Path | None) -> None:
    """See that a page can have this name, and be written.

    Raises:
        RunError: it does not end with .html; it cannot be written.
    """
    if path is None:
        return
    if path.suffix != ".html":
        raise RunError(Problem(str(path), "tables and plots are written as a page", "name a file that ends with .html"))
    check_writable(path)


def comparison(entries: Sequence[Entry]) -> Comparison:
    """The figures of evaluations that are at hand.

    Raises:
        RunError: they answer other questions, or were graded otherwise; all that differs.
    """
    if len({entry.name for entry in entries}) < len(entries):
        raise RunError(Problem(entries[0].name, "it is named twice", "name each evaluation once"))
    first = entries[0]
    if problems := [problem for other in entries[1:] for problem in _apart(first, other)]:
        raise RunError(problems)
    benchmark, split, graded_by = (_told(first)[name] for name in SAME)
    credits = [{str(row["id"]): float(row["credit"]) for row in entry.rows if row["counts"]} for entry in entries]
    against = {
        entry.name: paired(list(credits[0].values()), [own[name] for name in credits[0]])
        for entry, own in zip(entries[1:], credits[1:], strict=True)
    }
    measured, metric = [_measured(entry) for entry in entries], find(benchmark).metric
    return Comparison(benchmark, split, graded_by, len(first.rows), metric, measured, against)


def write_page(found: Comparison, path: Path) -> None:
    """The tables and plots as a page that opens offline."""
    colours = [f"C{number}" for number in range(len(found.measured))]
    whole = [Dots(one.name, [_dot(one.accuracy)], colour) for one, colour in zip(found.measured, colours, strict=True)]
    names = list(dict.fromkeys(name for one in found.measured for name in one.groups))[:MOST_ROWS]
    groups = [
        Dots(one.name, [_dot(one.groups[name]) if name in one.groups else None for name in names], colour)
        for one, colour in zip(found.measured, colours, strict=True)
    ]
    unit = f"{found.metric}, %"
    plots = [dot_plot("All questions", unit, ["all"], whole), dot_plot("By group", unit, names, groups)]
    title = f"{'Evaluation' if len(found.measured) == 1 else 'Comparison'} on {found.benchmark}"
    text = render("figures.html", title=title, tables=found.tables(), notes=found.notes(), plots=[one for one in plots if one])
    path.write_text(text, encoding="utf-8", errors="replace")


def _entry(name: str, path: Path) -> Entry:
    """What `eval` wrote."""
    meta = path.with_suffix(".meta.json")
    if not path.is_file() or not meta.is_file():
        missing = path if not path.is_file() else meta
        raise DataError(Problem(str(missing), "no such file of an evaluation", "make it with eval --output FILE.jsonl"))
    try:
        setting = dict(json.loads(meta.read_text("utf-8")))
    except (ValueError, TypeError):
        raise DataError(Problem(str(meta), "it cannot be read", "evaluate again, into another file")) from None
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for where, read in read_json_rows(path):
        try:
            rows.append(checked(ComparedRow, read()).model_dump())
        except DataError as error:
            problems += error.at(f"{path} · {where}").problems
    if problems or not rows:
        remedy = "call eval again with this --output: it asks nothing twice, and writes what is missing"
        raise DataError([*shortened(problems), Problem(str(path), "rows that cannot be compared, or none", remedy)])
    return Entry(name, setting, rows)


def _told(entry: Entry) -> dict[str, str]:
    graded = " and ".join(sorted({str(row["graded_by"]) for row in entry.rows}))
    return {"benchmark": str(entry.setting.get("benchmark")), "split": str(entry.setting.get("split")), "graded by": graded}


def _apart(first: Entry, other: Entry) -> list[Problem]:
    """In what an evaluation is of something else than the first."""
    one, two = _told(first), _told(other)
    found = [f"{name} {two[name]}, and {one[name]} in {first.name}" for name in SAME if one[name] != two[name]]
    known, given = ({str(row["id"]): row["question"] for row in entry.rows} for entry in (first, other))
    sides = [(other.name, set(given) - set(known)), (first.name, set(known) - set(given))]
    found += [f"{len(ids)} questions only in {name}: {_few(ids)}" for name, ids in sides if ids]
    changed = {name for name in known if name in given and known[name] != given[name]}
    found += [f"{len(changed)} questions with another text than in {first.name}: {_few(changed)}"] if changed else []
    return [Problem(other.name, what, "compare evaluations of the same questions") for what in found]


def _few(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")


def _measured(entry: Entry) -> Measured:
    rows, setting = entry.rows, entry.setting
    credits: dict[str, list[float]] = {}
    for row in rows:
        for group in row["groups"]:
            credits.setdefault(group, []).append(row["credit"])
    shares = {name: Share.of(found) for name, found in credits.items()}
    shares |= {name: Share.of_sets((row["sets"][name], row["credit"]) for row in rows) for name in rows[0]["sets"]}
    return Measured(
        entry.name,
        str(setting.get("model")),
        _search(setting),
        Share.of([row["credit"] for row in rows if row["counts"]]),
        {name: shares[name] for name in sorted(shares)},
        Share.of([float(row["format"] == "complete") for row in rows]),
        sum(row["totals"].get("generated_tokens", 0) for row in rows) / len(rows),
        sum(row["totals"].get("seconds", 0) for row in rows) / len(rows),
    )


def _search(setting: Mapping[str, Any]) -> str:
    strategy = str(setting.get("search.strategy"))
    return strategy if strategy in UNSCORED else f"{strategy} of {setting.get('search.candidates')} candidates"


def _dot(share: Share) -> tuple[float, float, float]:
    low, high = share.interval
    return 100 * share.value, 100 * low, 100 * high
