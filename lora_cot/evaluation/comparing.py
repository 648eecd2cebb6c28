"""`compare`: evaluations of the same questions side by side, each held against the first, question by question.

What differs by chance is told by a paired test: for answers that are right or wrong McNemar's exact one, for credits in parts
the permutation test on the signs of the differences (10,000 draws), of which McNemar's is the special case. The interval of a
difference is the paired bootstrap's over questions. Both take questions for independent. Nothing is corrected for the number
of comparisons, and shares of sets of questions are not tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_cot.errors import Problem, RunError
from lora_cot.evaluation.benchmarks import find
from lora_cot.evaluation.entries import Entry, asked_of, check_same, read_entry
from lora_cot.evaluation.metrics import Metric, Paired, Share, paired
from lora_cot.evaluation.summary import Counted, shares
from lora_cot.pages import Dots, check_writable, dot_plot, render
from lora_cot.recipe.search import UNSCORED

ANSWERS = "evaluation.jsonl"
"""What a run that was measured after its training keeps its answers in."""
MOST_ROWS = 30
"""Of a plot by group; the table has all."""


@dataclass(frozen=True)
class Measured:
    """The figures of one evaluation."""

    name: str
    model: str
    search: str
    data: str | None
    """Where the questions came from; None: from where the recipe says, or with the benchmark."""
    accuracy: Share
    groups: dict[str, Share]
    format_validity: Share
    tokens_per_question: float
    seconds_per_question: float
    unanswered: int
    """Questions in which no answer could be read; they count as wrong."""
    stopped: int
    """Questions whose search ended early; what it had written by then is judged."""
    failed: int
    """Questions that the engine gave no text for; they count as wrong."""
    ungraded: int
    """Answers that the judge gave no grade for; they count as wrong."""
    left_out: int | None
    """See `Entry.left_out`."""

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
    shared: Sequence[str]
    """Kinds of sets, see `Benchmark.together`, of which one holds several questions that count to the accuracy."""

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        told = {key: getattr(self, key) for key in ("benchmark", "split", "graded_by", "questions", "metric", "shared")}
        against = {name: asdict(one) for name, one in self.against_first.items()}
        return {**told, "measured": [one.to_json() for one in self.measured], "against_first": against}

    def tables(self) -> list[tuple[str, list[list[str]]]]:
        """For people: (what it shows, rows of cells, the first of names); shares with their 95 % intervals."""
        head = ["", self.metric, "ahead of the first, points", "p", "valid format", "tokens a question", "seconds a question"]
        rows = [head if len(self.measured) > 1 else [*head[:2], *head[4:]]]
        for one in self.measured:
            against = self._against(one.name) if len(self.measured) > 1 else []
            costs = [one.format_validity.text, f"{one.tokens_per_question:.1f}", f"{one.seconds_per_question:.3f}"]
            rows.append([one.name, one.accuracy.text, *against, *costs])
        found = [
            (f"{self.benchmark} {self.split}, {self.questions} questions", rows),
            ("Without a whole answer", self._lacking()),
        ]
        names = list(self.measured[0].groups)
        totals = {name: share.total for name, share in self.measured[0].groups.items()}
        by_group = [
            [f"{name} ({totals[name]})", *(one.groups[name].text if totals[name] else "" for one in self.measured)]
            for name in names
        ]
        return [*found, ("By group", [["", *(one.name for one in self.measured)], *by_group])] if names else found

    def notes(self) -> list[str]:
        """What the tables do not say."""
        how = "by the benchmark's rule (exact)" if self.graded_by == "exact" else f"by the judge {self.graded_by}"
        notes = [f"Graded {how}. Intervals are 95 %: Wilson's of a share, the bootstrap's of parts and of a difference."]
        tests = sorted({one.test for one in self.against_first.values()})
        if tests:
            notes.append(f"p is that of {' and '.join(tests)}, two-sided, not corrected for the number of comparisons.")
        if tests and (sets := find(self.benchmark).together):
            notes.append(f"{', '.join(sets)}: shares of sets of questions, whose difference is not tested.")
        if tests and self.shared:
            what = "are not independent: p can be too small, and the interval of the difference too narrow"
            notes.append(f"Questions of one set ({', '.join(self.shared)}) {what}.")
        apart = len({one.data for one in self.measured}) > 1
        for one in self.measured:
            data = f", data {one.data or 'as the recipe has them'}" if apart else ""
            notes.append(f"{one.name}: {one.model}, {one.search}{data}.")
        again = "call eval again with its --output, which asks for them once more"
        for one in self.measured:
            lost = [f"{count} {what}" for what, count in (("failed", one.failed), ("ungraded", one.ungraded)) if count]
            notes += [f"{one.name}: {' and '.join(lost)} of {self.questions} count as wrong: {again}."] if lost else []
        return notes

    def _lacking(self) -> list[list[str]]:
        """Cells: how many questions of each count as wrong for another reason than their answer, or were not asked."""
        names = ["unanswered", "stopped", "failed", "ungraded"]
        names += ["left_out"] if self.measured[0].left_out is not None else []
        cells = ([one.name, *(str(getattr(one, name)) for name in names)] for one in self.measured)
        return [["", *(name.replace("_", " ") for name in names)], *cells]

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
        DataError: no such file, one that `eval` did not write, or rows that contradict each other.
        RunError: they answer other questions, or were graded otherwise; the page cannot be written.
    """
    check_page(output)
    paths = [Path(place) / ANSWERS if Path(place).is_dir() else Path(place) for place in places]
    names = [Path(place).name if Path(place).is_dir() else path.stem for place, path in zip(places, paths, strict=True)]
    if len(set(names)) < len(names):
        names = [str(place) for place in places]
    found = comparison([read_entry(name, path) for name, path in zip(names, paths, strict=True)])
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
        DataError: a question counts otherwise in one than in another.
    """
    if len({entry.name for entry in entries}) < len(entries):
        raise RunError(Problem(entries[0].name, "it is named twice", "name each evaluation once"))
    first = entries[0]
    check_same(first, entries[1:])
    benchmark, split, graded_by = asked_of(first).values()
    credits = [{str(row["id"]): float(row["credit"]) for row in entry.rows if row["counts"]} for entry in entries]
    against = {
        entry.name: paired(list(credits[0].values()), [own[name] for name in credits[0]])
        for entry, own in zip(entries[1:], credits[1:], strict=True)
    }
    measured, metric = [_measured(entry) for entry in entries], find(benchmark).metric
    return Comparison(benchmark, split, graded_by, len(first.rows), metric, measured, against, _shared(first))


def write_page(found: Comparison, path: Path) -> None:
    """The tables and plots as a page that opens offline."""
    colours = [f"C{number}" for number in range(len(found.measured))]
    whole = [Dots(one.name, [_dot(one.accuracy)], colour) for one, colour in zip(found.measured, colours, strict=True)]
    names = [name for name, share in found.measured[0].groups.items() if share.total][:MOST_ROWS]
    groups = [
        Dots(one.name, [_dot(one.groups[name]) for name in names], colour)
        for one, colour in zip(found.measured, colours, strict=True)
    ]
    unit = f"{found.metric}, %"
    plots = [dot_plot("All questions", unit, ["all"], whole), dot_plot("By group", unit, names, groups)]
    title = f"{'Evaluation' if len(found.measured) == 1 else 'Comparison'} on {found.benchmark}"
    text = render("figures.html", title=title, tables=found.tables(), notes=found.notes(), plots=[one for one in plots if one])
    path.write_text(text, encoding="utf-8", errors="replace")


def _measured(entry: Entry) -> Measured:
    rows, setting = entry.rows, entry.setting
    counted = [Counted(row["credit"], row["counts"], row["groups"], row["sets"]) for row in rows]
    accuracy, groups = shares(find(str(setting.get("benchmark"))), counted)
    return Measured(
        entry.name,
        str(setting.get("model")),
        _search(setting),
        setting.get("data"),
        accuracy,
        groups,
        Share.of([float(row["format"] == "complete") for row in rows]),
        sum(row["totals"].get("generated_tokens", 0) for row in rows) / len(rows),
        sum(row["totals"].get("seconds", 0) for row in rows) / len(rows),
        sum(row["answer"] is None for row in rows),
        sum(row["stopped"] != "complete" and not row["failed"] for row in rows),
        sum(row["failed"] for row in rows),
        sum(not row["graded"] for row in rows),
        entry.left_out,
    )


def _shared(entry: Entry) -> list[str]:
    """The kinds of sets of which one holds several questions that count."""
    sets = [row["sets"] for row in entry.rows if row["counts"]]
    names = {kind: [of[kind] for of in sets if of[kind] is not None] for kind in entry.rows[0]["sets"]}
    return [kind for kind, found in names.items() if len(set(found)) < len(found)]


def _search(setting: Mapping[str, Any]) -> str:
    strategy = str(setting.get("search.strategy"))
    return strategy if strategy in UNSCORED else f"{strategy} of {setting.get('search.candidates')} candidates"


def _dot(share: Share) -> tuple[float, float, float]:
    low, high = share.interval
    return 100 * share.value, 100 * low, 100 * high
