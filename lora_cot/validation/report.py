"""What `lora-cot validate` has to tell: collected as rows come in, as JSON, as lines for people, and as a file of bad rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_cot.errors import Problem, RunError
from lora_cot.validation.checks import CHECKS, Finding
from lora_cot.validation.store import clean

EXAMPLES = 5
"""Rows of each check that are kept for the table; all of them go into the file of bad rows."""
BAR = 40
"""Characters of a histogram's longest bar."""


class Findings:
    """Counts the findings, keeps the first of each check, and writes all to a file as they come."""

    def __init__(self, path: Path | None = None):
        """
        Raises:
            RunError: the file cannot be written.
        """
        try:
            self.path, self._file = path, None if path is None else path.open("w", encoding="utf-8")
        except OSError as error:
            raise RunError(Problem(str(path), f"cannot be written: {error.strerror}", "name another file")) from None
        self.counts: Counter[tuple[str, str]] = Counter()
        self.examples: dict[str, list[dict[str, Any]]] = {}

    def add(self, split: str, source: int, where: str, name: str, finding: Finding) -> None:
        """Take a finding of a row."""
        self.counts[finding.check, finding.severity] += 1
        row = {"split": split, "source": source, "row": where, "id": None if name in ("", where) else clean(name)}
        row |= {"check": finding.check, "severity": finding.severity, "reason": clean(finding.reason)}
        if len(kept := self.examples.setdefault(finding.check, [])) < EXAMPLES:
            kept.append(row)
        if self._file is not None:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> Path | None:
        """The file, if anything was written; an empty one is not left behind."""
        if self._file is None or self.path is None:
            return None
        self._file.close()
        if self.counts:
            return self.path
        self.path.unlink()
        return None


@dataclass(frozen=True)
class ValidationReport:
    """What was found in all rows of a recipe, or of a file of data."""

    name: str
    """Of the recipe, or of the file."""
    kind: str
    """recipe, or the source that reads the file."""
    setting: str
    """Format, base and limit in a line."""
    splits: dict[str, dict[str, Any]]
    """Statistics of train, eval and held_out."""
    findings: Findings
    problems: Sequence[Problem] = ()
    """Mistakes that are not a row's; training would stop at each."""
    bad_rows: Path | None = None
    """The file of all findings, if one was written."""
    seconds: float = field(default=0.0)

    @property
    def valid(self) -> bool:
        """Whether training would not stop at what was checked."""
        return not self.problems and not any(severity == "fails" for _, severity in self.findings.counts)

    def to_json(self) -> dict[str, Any]:
        """The object that --json prints."""
        return {
            "recipe" if self.kind == "recipe" else "file": self.name,
            "setting": self.setting,
            "valid": self.valid,
            "problems": [clean(str(problem)) for problem in self.problems],
            "checks": {
                check: {
                    "meaning": meaning,
                    **{severity: self.findings.counts[check, severity] for severity in ("fails", "dropped", "note")},
                    "examples": self.findings.examples.get(check, []),
                }
                for check, meaning in CHECKS.items()
            },
            "splits": self.splits,
            "bad_rows": None if self.bad_rows is None else str(self.bad_rows),
            "seconds": round(self.seconds, 3),
        }

    def lines(self) -> list[str]:
        """The report for people."""
        found = [f"{self.kind} {self.name} · {self.setting}", ""]
        found += self._split_table()
        for split, numbers in self.splits.items():
            if numbers["tokens"]:
                found += ["", f"tokens of {split} rows, image slots expanded", *_bars(numbers["tokens"]["histogram"])]
        found += ["", *self._check_table()]
        questions, images = (self.findings.counts[f"leak_{what}", "note"] for what in ("question", "image"))
        if questions or images:
            shown = f"{questions:,} held-out rows ask what is trained on, {images:,} show an image that is"
            found += ["", f"LEAK: {shown}: scores on them mean little"]
        if self.problems:
            found += ["", *(f"fails: {clean(str(problem))}" for problem in self.problems)]
        if self.bad_rows is not None:
            found += ["", f"every finding with its row: {self.bad_rows}"]
        rows = sum(numbers["rows"] for numbers in self.splits.values())
        verdict = "valid: training would not stop at this" if self.valid else "not valid: training would stop"
        return [*found, "", f"{rows:,} rows checked in {self.seconds:.1f} s · {verdict}"]

    def _split_table(self) -> list[str]:
        names = ("rows", "used", "dropped", "failed", "with_image", "without_image", "turns")
        header = ["split", *(name.replace("_", " ") for name in names)]
        header += ["min", "median", "p95", "max", "image tokens", "label share"]
        rows = [header]
        for split, numbers in self.splits.items():
            row = [split, *(f"{numbers[name]:,}" for name in names)]
            if tokens := numbers["tokens"]:
                row += [f"{tokens[name]:,}" for name in ("min", "median", "p95", "max", "of_images")]
                row.append(f"{numbers['label_share']:.0%}")
            else:
                row += ["-"] * 6
            rows.append(row)
        return aligned(rows)

    def _check_table(self) -> list[str]:
        rows = [["check", "fails", "dropped", "noted", "what it finds"]]
        for check, meaning in CHECKS.items():
            counts = [self.findings.counts[check, severity] for severity in ("fails", "dropped", "note")]
            rows.append([check, *(f"{count:,}" if count else "·" for count in counts), meaning])
        lines = aligned(rows, left=(0, 4))
        for number, check in reversed(list(enumerate(CHECKS, 1))):
            lines[number + 1 : number + 1] = self._examples(check)
        return lines

    def _examples(self, check: str) -> list[str]:
        shown = self.findings.examples.get(check, [])
        total = sum(self.findings.counts[check, severity] for severity in ("fails", "dropped", "note"))
        lines = []
        for row in shown:
            name = f" ({row['id']})" if row["id"] else ""
            place = " · ".join(filter(None, (f"{row['split']} {row['source']}", row["row"])))
            lines.append("    " + printable(f"{place}{name} · {row['reason']}"))
        return [*lines, *([f"    and {total - len(shown):,} more"] if total > len(shown) else [])]


def _bars(histogram: Sequence[dict[str, int]]) -> list[str]:
    most = max(bucket["rows"] for bucket in histogram)
    rows = []
    for bucket in histogram:
        bar = "█" * round(BAR * bucket["rows"] / most) or ("▏" if bucket["rows"] else "")
        rows.append([f"{bucket['from']:,}–{bucket['to']:,}", f"{bucket['rows']:,}", bar])
    return ["  " + line for line in aligned(rows, left=(2,))]


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Rows of cells as lines, columns aligned to the right but for those named."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def printable(text: str, most: int = 300) -> str:
    """One line of text without control characters, cut if it is long: rows can hold anything."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown if len(shown) <= most else shown[:most] + " …"
