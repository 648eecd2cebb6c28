"""What the documents say to type: their blocks, commands and links, as data for `test_docs.py`."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("lora-cot", "accelerate", "python", "make", "pip", "curl", "vllm", "torchrun", "kill")
ASSIGNMENT = re.compile(r"[A-Z_]+=\S+")


@dataclass(frozen=True)
class Block:
    """A fenced or indented block."""

    page: Path
    line: int
    language: str
    """Of the fence; "" for an indented block."""
    lines: tuple[str, ...]
    before: str
    """The last line with text above it."""

    @property
    def text(self):
        return "\n".join(self.lines) + "\n"

    def __str__(self):
        return f"{self.page.name}:{self.line}"


def blocks(page):
    """All blocks of a page, in order, and its text without them."""
    found, prose, block, fence, before, first = [], [""], [], None, "", 0

    def close():
        if block:
            while not block[-1].strip():
                block.pop()
            margin = min(len(line) - len(line.lstrip()) for line in block if line)
            lines = tuple(line[margin:] for line in block)
            found.append(Block(page, first, fence or "", lines, before))
            block.clear()

    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        first = first if block else number
        prose.append("")  # the text keeps its numbers of lines
        if fence is not None:
            if line.startswith("```"):
                close()
                fence, before = None, ""
            else:
                block.append(line)
        elif line.startswith("```"):
            fence = line[3:]
        elif block and not line.strip():
            block.append("")  # a gap inside, or its end
        elif line.startswith("    ") and (block or not prose[-2].strip() or prose[-2].startswith("<!--")):
            block.append(line)
        else:
            close()
            prose[-1] = line
            before = line or before
    close()
    return found, "\n".join(prose[1:])


@dataclass(frozen=True)
class Command:
    """One command, as words, without what is set for it and without comments."""

    page: Path
    line: int
    words: tuple[str, ...]
    marked: bool = False
    """Whether its block has the marker `<!-- run -->`."""

    @property
    def text(self):
        return shlex.join(self.words)

    def __str__(self):
        return f"{self.page.name}:{self.line} {self.text}"


def commands(block):
    """The commands of a block of them; none if it is another kind of block."""
    if block.language or not block.lines[0].startswith((*PROGRAMS, "OMP_NUM_THREADS=")):
        return
    line = block.line
    for text in re.sub(r"\\\n", "  ", block.text).splitlines():
        words, rest = [], shlex.split(text, comments=True)
        while rest and ASSIGNMENT.fullmatch(rest[0]):
            rest.pop(0)
        for word in [*rest, "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield Command(block.page, line, tuple(words), block.before.startswith("<!-- run -->"))
                words = []
        line += 1


def mentioned(page, prose):
    """Commands in the middle of a text. Brackets are what may be left out, `…` is what is not told."""
    for found in re.finditer(rf"`((?:{'|'.join(PROGRAMS)})\s[^`]+)`", prose):
        text = re.sub(r"(?<= )\[(--[^\]]+)\]", r"\1", " ".join(found[1].split()))
        line = prose[: found.start()].count("\n") + 1
        yield Command(page, line, tuple(word for word in shlex.split(text) if word != "…"))


def slug(heading):
    """GitHub's anchor of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(page):
    """Those of all headings of a page."""
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", blocks(page)[1], re.M)}


def links(prose):
    """Targets of links and pictures that lead to files, not to addresses."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if not re.match(r"\w+:", target)]
