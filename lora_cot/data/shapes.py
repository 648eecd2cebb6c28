"""The built-in data set: small scenes of coloured shapes, questions about them, and exact four-stage answers.

A scene is a grid of 2×2 cells, each empty or holding one shape; drawn at 56×56 pixels, so that one cell is one
28-pixel patch of the miniature models. Everything follows from a seed. A scene belongs to one split for good: which,
is decided by a hash of what the scene holds, so no test scene was ever seen in training, whatever the seeds.

Half of the questions need one step (look at a cell, count one property), half need two (find a property first, then
count or compare by it); `meta["steps"]` says which.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from PIL import Image as PILImage
from PIL import ImageDraw

from lora_cot.data.rows import SampleReader
from lora_cot.formats import CotFormat
from lora_cot.recipe.sources import ShapesSource
from lora_cot.types import Exchange, Sample

COLOURS = {"red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 119, 220), "yellow": (240, 200, 20)}
SHAPES = ("circle", "square", "triangle")
PLACES = ("top left", "top right", "bottom left", "bottom right")
THING_NAMES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
NEIGHBOURS = (
    *((0, 1, "right of"), (1, 0, "left of"), (2, 3, "right of"), (3, 2, "left of")),
    *((0, 2, "below"), (1, 3, "below"), (2, 0, "above"), (3, 1, "above")),
)
"""(cell, its neighbour, where the neighbour is)."""
CELL = 28
"""Pixels of a cell's side."""
SPLITS = {"train": range(0, 80), "validation": range(80, 90), "test": range(90, 100)}
"""Percentiles of the scene's hash that belong to each split."""


@dataclass(frozen=True)
class Thing:
    """A coloured shape in a cell."""

    colour: str
    shape: str
    place: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Four cells in reading order; None is an empty one."""

    cells: tuple[Thing | None, ...]

    @property
    def things(self) -> list[Thing]:
        """The shapes in reading order."""
        return [cell for cell in self.cells if cell is not None]

    def caption(self) -> str:
        """What is where, in reading order."""
        return " ".join(f"{place}: {cell or 'nothing'}." for place, cell in zip(PLACES, self.cells, strict=True))

    def split(self) -> str:
        """The one split this scene belongs to."""
        percentile = int(hashlib.sha256(self.caption().encode()).hexdigest(), 16) % 100
        return next(name for name, percentiles in SPLITS.items() if percentile in percentiles)


@dataclass(frozen=True)
class Task:
    """A question with its gold stages."""

    skill: str
    steps: int
    question: str
    summary: str
    reasoning: str
    answer: str


def random_scene(rng: random.Random, split: str) -> Scene:
    """A scene of that split with at least two shapes."""
    while True:
        cells = tuple(
            Thing(rng.choice(list(COLOURS)), rng.choice(SHAPES), place) if rng.random() < 0.85 else None for place in PLACES
        )
        scene = Scene(cells)
        if len(scene.things) >= 2 and scene.split() == split:
            return scene


def draw(scene: Scene, rng: random.Random) -> bytes:
    """PNG of the scene; size, position and shade of every shape vary a little."""
    return placed(scene, rng)[0]


Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, right and bottom outside."""


def placed(scene: Scene, rng: random.Random) -> tuple[bytes, list[Box]]:
    """The same, and where each shape is, in reading order."""
    image = PILImage.new("RGB", (2 * CELL, 2 * CELL), tuple(rng.randint(225, 255) for _ in range(3)))
    pen, boxes = ImageDraw.Draw(image), []
    for index, thing in enumerate(scene.cells):
        if thing is None:
            continue
        size = rng.randint(15, 21)
        left = (index % 2) * CELL + rng.randint(2, CELL - 2 - size)
        top = (index // 2) * CELL + rng.randint(2, CELL - 2 - size)
        colour = tuple(min(255, max(0, channel + rng.randint(-12, 12))) for channel in COLOURS[thing.colour])
        box = (left, top, left + size, top + size)
        boxes.append((left, top, left + size + 1, top + size + 1))
        if thing.shape == "circle":
            pen.ellipse(box, fill=colour)
        elif thing.shape == "square":
            pen.rectangle(box, fill=colour)
        else:
            pen.polygon([(left + size / 2, top), (left, top + size), (left + size, top + size)], fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue(), boxes


def _has(thing: Thing, word: str) -> bool:
    return word in (thing.colour, thing.shape)


def _plural(word: str) -> str:
    return word + "s" if word in SHAPES else word + " shapes"


def _walk(scene: Scene, test: Callable[[Thing], bool]) -> tuple[str, int]:
    """Count in words, thing by thing, and the number."""
    steps, count = [], 0
    for thing in scene.things:
        if test(thing):
            count += 1
            steps.append(f"{thing}: yes {count}")
        else:
            steps.append(f"{thing}: no")
    return ", ".join(steps) + f". That makes {count}.", count


def count(scene: Scene, rng: random.Random) -> Task | None:
    """How many shapes have a property."""
    word = rng.choice([*COLOURS, *SHAPES])
    walk, number = _walk(scene, lambda thing: _has(thing, word))
    question = f"How many {_plural(word)} are there?"
    return Task("count", 1, question, f"I will count the {_plural(word)}.", f"Looking for {word}. {walk}", str(number))


def existence(scene: Scene, rng: random.Random) -> Task | None:
    """Is there such a thing. Half of the answers are yes."""
    names = {str(thing) for thing in scene.things}
    absent = [name for name in THING_NAMES if name not in names]
    name = rng.choice(sorted(names) if rng.random() < 0.5 else absent)
    walk, number = _walk(scene, lambda thing: str(thing) == name)
    answer = "yes" if number else "no"
    return Task("existence", 1, f"Is there a {name}?", f"I will look for a {name}.", f"Looking for {name}. {walk}", answer)


def attribute(scene: Scene, rng: random.Random) -> Task | None:
    """Colour or kind of the shape in a cell."""
    thing = rng.choice(scene.things)
    kind, answer = rng.choice([("colour", thing.colour), ("kind", thing.shape)])
    question = f"What is the {kind} of the shape at the {thing.place}?"
    reasoning = f"At the {thing.place}: {thing}. The {kind} is {answer}."
    return Task("attribute", 1, question, f"I will look at the {thing.place}.", reasoning, answer)


def same_as(scene: Scene, rng: random.Random) -> Task | None:
    """How many shapes have the colour (or kind) of the shape in a cell."""
    thing = rng.choice(scene.things)
    kind, word = rng.choice([("colour", thing.colour), ("kind", thing.shape)])
    question = f"How many shapes have the {kind} of the shape at the {thing.place}?"
    summary = f"I will find the {kind} of the shape at the {thing.place}, then count."
    walk, number = _walk(scene, lambda other: _has(other, word))
    return Task("same_as", 2, question, summary, f"At the {thing.place}: {thing}. Looking for {word}. {walk}", str(number))


def relation(scene: Scene, rng: random.Random) -> Task | None:
    """Colour or kind of the neighbour of a thing that is named, not placed."""
    pairs = [(scene.cells[a], scene.cells[b], word) for a, b, word in NEIGHBOURS]
    names = [str(thing) for thing in scene.things]
    pairs = [(a, b, word) for a, b, word in pairs if a and b and names.count(str(a)) == 1]
    if not pairs:
        return None
    anchor, other, word = rng.choice(pairs)
    assert anchor and other
    kind, answer = rng.choice([("colour", other.colour), ("kind", other.shape)])
    question = f"What is the {kind} of the shape {word} the {anchor}?"
    summary = f"I will find the {anchor}, then the shape {word} it."
    seen = scene.things[: scene.things.index(anchor) + 1]
    walk = ". ".join(f"{thing.place}: {thing}, {'yes' if thing == anchor else 'no'}" for thing in seen)
    reasoning = f"Looking for {anchor}. {walk}. {word} it is the {other.place}: {other}. The {kind} is {answer}."
    return Task("relation", 2, question, summary, reasoning, answer)


def comparison(scene: Scene, rng: random.Random) -> Task | None:
    """Which of two properties more shapes have. Ties are a third of the answers at most."""
    first, second = rng.sample(list(COLOURS), 2) if rng.random() < 0.5 else rng.sample(SHAPES, 2)
    walk_a, a = _walk(scene, lambda thing: _has(thing, first))
    walk_b, b = _walk(scene, lambda thing: _has(thing, second))
    if a == b and (a == 0 or rng.random() < 0.5):
        return None
    answer = first if a > b else second if b > a else "equal"
    question = f"Are there more {_plural(first)} or {_plural(second)}, or equal?"
    summary = f"I will count the {_plural(first)} and the {_plural(second)}, then compare."
    reasoning = f"Looking for {first}. {walk_a} Looking for {second}. {walk_b} {first} {a}, {second} {b}: {answer}."
    return Task("comparison", 2, question, summary, reasoning, answer)


ONE_STEP = (count, existence, attribute)
TWO_STEPS = (same_as, relation, comparison)


def random_task(scene: Scene, rng: random.Random) -> Task:
    """A question about the scene; one step or two with equal chance."""
    while True:
        skill = rng.choice(rng.choice([ONE_STEP, TWO_STEPS]))
        if (task := skill(scene, rng)) is not None:
            return task


def stages(scene: Scene, task: Task) -> dict[str, str]:
    """The gold text of each of the four stages."""
    return {"SUMMARY": task.summary, "CAPTION": scene.caption(), "REASONING": task.reasoning, "CONCLUSION": task.answer}


def scene_of(index: int, split: str, seed: int) -> tuple[Scene, random.Random]:
    """The scene of one row, and the generator that its question and drawing go on from."""
    rng = random.Random(f"{split}-{seed}-{index}")
    return random_scene(rng, split), rng


def make_sample(index: int, split: str, seed: int) -> Sample:
    """One row, the same for the same index, split and seed."""
    scene, rng = scene_of(index, split, seed)
    task = random_task(scene, rng)
    exchange = Exchange(task.question, stages=stages(scene, task), answer=task.answer)
    reasoning = "\n".join((task.summary, scene.caption(), task.reasoning))
    meta = {"skill": task.skill, "steps": task.steps, "caption": scene.caption(), "rationales": [reasoning]}
    image, boxes = placed(scene, rng)
    meta["boxes"] = [{"name": str(thing), "box": box} for thing, box in zip(scene.things, boxes, strict=True)]
    return Sample(f"{split}-{seed}-{index}", (exchange,), (image,), meta=meta)


def iterate(split: str, limit: int, seed: int) -> Iterator[Sample]:
    """The first `limit` rows of a split."""
    return (make_sample(index, split, seed) for index in range(limit))


def rows(source: ShapesSource, cot_format: CotFormat) -> Iterator[SampleReader]:
    """The rows a recipe asks for."""
    names = ((index, f"{source.split} row {index + 1}") for index in range(source.limit))
    return ((where, partial(make_sample, index, source.split, source.seed)) for index, where in names)
