"""Every legal key of a data source. A source is one section here and one file in `lora_cot/data/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lora_cot.recipe.sections import Section


class SourceSection(Section):
    """What all sources have in common."""

    weight: float = Field(1.0, gt=0, le=1000)
    """Passes over this source in one epoch: 1 takes every row once, 0.5 half of them, 2 every row twice."""
    limit: int | None = Field(None, gt=0)
    """Take only the first so many rows."""
    bad_rows: Literal["error", "drop"] = "error"
    """What happens to rows that cannot be used: drop leaves them out, counted and named."""
    max_bad_share: float = Field(1.0, ge=0, le=1)
    """Of the rows, the largest share that drop may leave out, and that `rationales` may lack; above it, they are refused."""
    rationales: Path | None = None
    """JSONL with `id` and `output`: rationales that a model wrote, which take the place of the gold ones, by id. The data
    then need none of their own."""
    rationales_for: Literal["all", "missing"] = "all"
    """Which rows take theirs from that file: all, or those alone that have no gold one."""


class ShapesSource(SourceSection):
    """The built-in data set."""

    source: Literal["shapes"]
    split: Literal["train", "validation", "test"] = "train"
    seed: int = 0
    limit: int = Field(1000, gt=0)


class FileSource(SourceSection):
    """Rows in a file of ours or somebody else's."""

    path: Path
    image_root: Path | None = None
    """Folder that image names are relative to; the file's own folder if not given."""


class JsonlSource(FileSource):
    """Rows of our own plain form: id, image or images, question, and stages or answer."""

    source: Literal["jsonl"]


class LlavaCotSource(FileSource):
    """LLaVA-CoT-100k's own file."""

    source: Literal["llava_cot_100k"]


class MessagesSource(SourceSection):
    """A data set with the columns `messages` and `images`."""

    source: Literal["messages"]
    path: str
    """Local JSON, JSONL or parquet file, or a hub id."""
    split: str = "train"
    image_root: Path | None = None


class QuestionSource(SourceSection):
    """A published set of questions, whose real files have rows that cannot be trained on."""

    path: str
    """Folder of its original files, a parquet file or a folder of them, or a hub id."""
    split: str = "train"
    image_root: Path | None = None
    """Folder of the images, where they do not come in the table."""
    bad_rows: Literal["error", "drop"] = "drop"
    max_bad_share: float = Field(0.15, ge=0, le=1)
    """The largest share of the split's ids that may be left out: 8 % of the first 1,772 of ScienceQA have no solution."""


class ScienceqaSource(QuestionSource):
    """ScienceQA: `problems.json` and `pid_splits.json`, or the hub's parquet."""

    source: Literal["scienceqa"]
    captions: Path | None = None
    """JSON of captions by id, which stand in the question's context after its hint."""
    rationale: Literal["LE", "E"] = "LE"
    """What the rationale is: the lecture and the explanation (the solution), or the explanation alone."""


class AokvqaSource(QuestionSource):
    """A-OKVQA: `aokvqa_v1p0_SPLIT.json` and COCO's images, or the hub's parquet."""

    source: Literal["aokvqa"]
    task: Literal["multiple_choice", "direct_answer"] = "multiple_choice"
    """Whether the question is asked with its four options."""


class M3cotSource(QuestionSource):
    """M3CoT: `SPLIT.jsonl` and `images/ID.png`, or the hub's parquet."""

    source: Literal["m3cot"]


class LlavaWildSource(QuestionSource):
    """LLaVA-Bench (In-the-Wild): `questions.jsonl`, `answers_gpt4.jsonl` and its images, or the hub's parquet."""

    source: Literal["llava_wild"]
    split: Literal["test"] = "test"


class Multi30kSource(QuestionSource):
    """Multi30K: the folder `data/task1` as it is published, or a table of the columns en, de, fr and image."""

    source: Literal["multi30k"]
    language: Literal["de", "fr"] = "de"
    """That is translated to, from English."""


AnySource = Annotated[
    ShapesSource
    | JsonlSource
    | LlavaCotSource
    | MessagesSource
    | ScienceqaSource
    | AokvqaSource
    | M3cotSource
    | LlavaWildSource
    | Multi30kSource,
    Field(discriminator="source"),
]
