"""What published sets of questions share: files in JSON, ids of a split, options with a right one, who may be left out.

For training, a question must have its image, a right option and a rationale; for an evaluation it needs no rationale, and
for scoring answers that were made elsewhere no image either.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from lora_cot.data.images import inside
from lora_cot.data.rows import Collected, SampleReader, gather
from lora_cot.errors import DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.recipe.sources import QuestionSource
from lora_cot.types import Image, StoredImage

Use = Literal["training", "evaluation", "scoring"]
Cell = TypeVar("Cell", bound=str | StoredImage)
Readers = Callable[[Any, Use, bool], Iterator[SampleReader]]
"""The rows of a source's section, for a use, and whether they must have reasoning."""


def to_train(readers: Readers) -> Callable[[Any, CotFormat], Iterator[SampleReader]]:
    """What gives a set's rows to train on; they need a rationale where the format has a stage beside the answer.

    What it gives raises DataError: no such file. Of a row, when it is read: what the set's own readers say.
    """
    return lambda source, cot_format: readers(source, "training", any(not stage.is_answer for stage in cot_format.stages))


def to_answer(readers: Readers) -> Callable[[Any, Use], Collected]:
    """What gives a set's questions to be asked or scored, and what is wrong with those that cannot be.

    What it gives raises DataError: the files cannot be read.
    """
    return lambda source, use: gather(readers(source, use, False))


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: no such file, or it holds something else.
    """
    if not path.is_file():
        raise DataError(Problem(str(path), "no such data file", "check the path"))
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        what = f"not JSON that can be read: {' '.join(str(error).split())}"
        raise DataError(Problem(str(path), what, "copy it again from its source")) from None
    if not isinstance(value, dict):
        raise DataError(Problem(str(path), "the file holds no JSON object", "copy it again from its source"))
    return value


def right_option(index: int | None, choices: Sequence[str], key: str) -> int:
    """The index.

    Raises:
        DataError: there are no options, an empty one, or none of that index.
    """
    if len(choices) < 2 or len(choices) > 26 or not all(choice.strip() for choice in choices):
        raise DataError(Problem("choices", f"expected 2 to 26 options with text, got {list(choices)!r}", kind="row_form"))
    if index is None or not 0 <= index < len(choices):
        raise DataError(
            Problem(key, f"{index} is no index of its {len(choices)} options", f"0 to {len(choices) - 1}", "row_form")
        )
    return index


def right_letter(answer: str, choices: Sequence[str]) -> int:
    """Index of the option that a gold letter names.

    Raises:
        DataError: it is no capital letter, or there is no such option.
    """
    if not (len(answer) == 1 and "A" <= answer <= "Z"):
        raise DataError(Problem("answer", f"{answer!r} names no option", "expected a letter: A", "row_form"))
    return right_option(ord(answer) - ord("A"), choices, "answer")


def needed(cell: Cell | None) -> Cell:
    """The image's name or place.

    Raises:
        DataError: the row has none.
    """
    if not cell:
        raise DataError(Problem("image", "the row has no image", kind="row_form"))
    return cell


def images_of(cell: str | StoredImage | None, root: Path, folder: str, use: Use) -> tuple[Image, ...]:
    """The question's image.

    Args:
        cell: its name, or where it lies in a table.
        root: of all images.
        folder: of the name, under the root.
        use: scoring opens no image, so a file that is not there is none.

    Raises:
        DataError: no such file.
    """
    if not cell or (use == "scoring" and isinstance(cell, str)):
        return ()
    return (cell,) if isinstance(cell, StoredImage) else (inside(root, f"{folder}{cell}"),)


def image_folder(source: QuestionSource) -> Path:
    """Folder of a source's images: the one that it names, else `images/` beside its files, or where they lie themselves."""
    path = Path(source.path)
    folder = path if path.is_dir() else path.parent
    return source.image_root or (folder / "images" if (folder / "images").is_dir() else folder)


def as_list(value: Any) -> Any:
    """A list that a hub table holds as the text of a Python list; other values as they are."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            return ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return value
    return value
