"""Pieces of a card: text that others wrote goes in here and does no harm, whatever is in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml


def text(value: Any) -> str:
    """A value on one line, shown letter by letter: neither markdown, nor HTML, nor a link, nor the end of a table's cell."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    line = re.sub(r"([\\`*_\[\]|~$])|^[#+=\-]", r"\\\g<0>", line)
    line = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)
    return re.sub(r"(?i)(https?|ftp|mailto|xmpp|www)(?=[:.])", r"\1\\", line)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; every cell is escaped."""
    lines = [head, ["---"] * len(head), *([text(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fence(language: str, body: str) -> str:
    """A block of code, its fence longer than any inside."""
    longest = max((len(found) for found in re.findall(r"`+", body)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{body.rstrip()}\n{marks}"


def front_matter(values: dict[str, Any]) -> str:
    """The YAML that the hub reads; what is None or empty is left out."""
    kept = {key: value for key, value in values.items() if value}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=False)}---"
