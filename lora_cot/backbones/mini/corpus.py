"""What the miniature bases are taught before any fine-tuning, and nothing else.

All of it comes from the training split of `shapes`; no scene of the other splits is among it:

- captions: the image's caption;
- direct: a question's short answer, from the image;
- reasoning: from a caption in *text*, with no image, the reasoning to a question (a real language model can reason
  over its own caption before it is fine-tuned; a base that never reasoned in text does not learn it in 200 steps);
- words (for T5 bracket_words): repeating a line, so that every token that formats and prompts use has been seen;
- judging (left out of the `-nojudge` bases): which of two conclusions follows from the stages before it.

No four-stage text is among them: the format is what fine-tuning teaches. Judging captions and reasoning was tried too and
is not among them: a model of this size was still at chance after 600 steps of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from lora_cot.data import shapes
from lora_cot.data.shapes import Scene, Task
from lora_cot.formats import FORMATS
from lora_cot.formats.judging import VERDICTS, judge_question
from lora_cot.types import Exchange, Sample

SEED = 90_000
"""First seed of the scenes that bases see; recipes use small seeds."""

Maker = Callable[[Scene, Task, random.Random], Sample]


def _sample(question: str, answer: str, image: bytes | None = None) -> Sample:
    return Sample("", (Exchange(question, answer=answer),), (image,) if image else ())


def _caption(scene: Scene, task: Task, rng: random.Random) -> Sample:
    return _sample("Describe the image.", scene.caption(), shapes.draw(scene, rng))


def _direct(scene: Scene, task: Task, rng: random.Random) -> Sample:
    return _sample(task.question, task.answer, shapes.draw(scene, rng))


def _reasoning(scene: Scene, task: Task, rng: random.Random) -> Sample:
    return _sample(f"{scene.caption()} {task.question}", f"{task.reasoning} {task.answer}")


def _words(scene: Scene, task: Task, rng: random.Random) -> Sample:
    """Tags and stage texts in a shuffled order, so that no format can be learned from them.

    The separators are the formats' own: a line break after a tag is another token than one after a space.
    """
    four_stage = FORMATS["four_stage"]
    tags = [tag for stage in four_stage.stages for tag in (four_stage.opening(stage), four_stage.closing(stage))]
    pieces = rng.sample(tags, 4) + rng.sample([task.summary, task.answer, *map(str, range(10))], 3)
    rng.shuffle(pieces)
    text = "".join(piece + rng.choice([" ", "\n\n"]) for piece in pieces).strip()
    return _sample(f"Repeat: {text}", text)


def _bracket_words(scene: Scene, task: Task, rng: random.Random) -> Sample:
    """The same with tags as T5 writes them, with the words of Multimodal-CoT's prompts, and single spaces."""
    formats = [FORMATS[name].spelled("brackets") for name in ("four_stage", "one_stage")]
    tags = [tag for f in formats for stage in f.stages for tag in (f.opening(stage), f.closing(stage))]
    pieces = rng.sample([*tags, "Question:", "Context:", "Options:", "Solution:", "Answer:"], 4)
    pieces += rng.sample([task.summary, task.answer, *map(str, range(10))], 3)
    rng.shuffle(pieces)
    text = " ".join(pieces)
    return _sample(f"Repeat: {text}", text)


def corrupted(text: str, rng: random.Random) -> str:
    """The text with one word replaced by another of its kind."""
    kinds = [[*shapes.COLOURS, "equal"], list(shapes.SHAPES), ["yes", "no"], list("01234")]
    words = text.split(" ")
    places = [(i, kind) for i, word in enumerate(words) for kind in kinds if word.strip(".,:") in kind]
    index, kind = rng.choice(places)
    bare = words[index].strip(".,:")
    words[index] = words[index].replace(bare, rng.choice([word for word in kind if word != bare]))
    return " ".join(words)


def _judging(scene: Scene, task: Task, rng: random.Random) -> Sample:
    """The right conclusion beside one with another word; which comes first is a coin's choice."""
    gold, stages = shapes.stages(scene, task), FORMATS["four_stage"].stages
    given = " ".join(gold[stage.name] for stage in stages[:-1])
    right, wrong = gold["CONCLUSION"], corrupted(gold["CONCLUSION"], rng)
    first = rng.random() < 0.5
    question = judge_question(task.question, stages[-1], given, *((right, wrong) if first else (wrong, right)))
    sample = _sample(question, VERDICTS[0 if first else 1], shapes.draw(scene, rng))
    return replace(sample, meta={"is_verdict": True})


MAKERS: dict[str, Maker] = {
    "captions": _caption,
    "direct": _direct,
    "reasoning": _reasoning,
    "words": _words,
    "judging": _judging,
    "bracket_words": _bracket_words,
}
TOKENIZED = ("captions", "direct", "reasoning", "words", "judging")
"""Kinds that the chat families' tokenizer is made from."""


def make(kind: str, index: int) -> Sample:
    """One sample of a kind, the same for the same index."""
    scene, rng = shapes.scene_of(index, "train", SEED)
    return MAKERS[kind](scene, shapes.random_task(scene, rng), rng)


def draw_batch(mixture: Mapping[str, float], size: int, start: int) -> list[Sample]:
    """The `size` samples from number `start` on, kinds drawn by their weights."""
    rng = random.Random(f"mixture-{start}")
    kinds = rng.choices(list(mixture), weights=list(mixture.values()), k=size)
    return [make(kind, start + offset) for offset, kind in enumerate(kinds)]


def tokenizer_texts(count: int = 2000) -> list[str]:
    """Text the tokenizer is made from: both halves of the exchanges."""
    samples = draw_batch(dict.fromkeys(TOKENIZED, 1.0), count, 0)
    return [text for sample in samples for text in (sample.last.question, sample.last.answer or "")]
