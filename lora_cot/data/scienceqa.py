"""ScienceQA (Lu et al. 2022) as Multimodal-CoT asks it (Zhang et al. 2023, `utils_prompt.py`).

Its original files are `problems.json` (records by id), `pid_splits.json` (ids by split) and images in
`[images/]SPLIT/ID/image.png`; the hub's parquet has no ids, there a row's number is its id. The question's `Context:` is the
hint and, if asked for, a caption, or `N/A`; the rationale is lecture and solution (LE) or the solution alone (E); the
answer is `The answer is (B).`

Where we differ from the released code: what the rationale is, is the same in both stages and in training and inference;
no dot is put after it; its line breaks stay line breaks (the code writes a backslash and an n); the cue `Solution:` is not
repeated in the target; a missing image or solution is counted, not trained on as zeros or as an empty text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lora_cot.data.questions import Use, image_folder, images_of, read_json_object, right_option, to_answer, to_train
from lora_cot.data.rows import Row, RowReader, SampleReader, StrictRow, checked, not_empty, sample_readers
from lora_cot.data.tables import is_table, open_table, table_rows
from lora_cot.errors import DataError, Problem, nearest
from lora_cot.formats.answers import letter
from lora_cot.recipe.sources import ScienceqaSource
from lora_cot.types import Exchange, Sample, StoredImage

SPLITS = ("test", "val", "train", "minitest", "minival", "minitrain", "trainval")
PROBLEMS, ID_SPLITS = "problems.json", "pid_splits.json"


class ScienceqaRow(StrictRow):
    """A record of the original file; its other keys are left alone."""

    question: str
    choices: list[str]
    answer: int
    hint: str = ""
    image: str | StoredImage | None = None
    grade: str
    subject: Literal["natural science", "social science", "language science"]
    lecture: str = ""
    solution: str = ""
    split: str = ""


def readers(source: ScienceqaSource, use: Use, reasons: bool) -> Iterator[SampleReader]:
    """The questions of a split.

    Raises:
        DataError: no such file or split. Of a row, when it is read: an id without a problem, an image that is missing, a
            right option that is not there, an empty solution where there must be a rationale.
    """
    return sample_readers(_rows(source), _maker(source, use, reasons))


rows, questions = to_train(readers), to_answer(readers)


def _rows(source: ScienceqaSource) -> Iterator[RowReader]:
    path = _problems_file(Path(source.path))
    if path.is_file() or not is_table(source.path):
        return _original(path, source.split)
    hub_split = {"val": "validation"}.get(source.split, source.split)
    table = enumerate(table_rows(open_table(source.path, hub_split), source.path, ("image",)))
    return ((where, partial(_numbered, read, source.split, number)) for number, (where, read) in table)


def _numbered(read: Callable[[], Row], split: str, number: int) -> Row:
    return {"id": f"{split}-{number}", **read(), "split": split}


def _original(path: Path, split: str) -> Iterator[RowReader]:
    problems = read_json_object(path)
    for number in _ids(path, problems, split):
        where = f"{path.name if number in problems else ID_SPLITS} · {number}"
        yield where, partial(_record, path.name, problems, number)


def _record(name: str, problems: Mapping[str, Any], number: str) -> Row:
    row = problems.get(number)
    if number not in problems:
        raise DataError(Problem("", f"{name} has no problem of this id", kind="row_missing"))
    if not isinstance(row, dict):
        raise DataError(Problem("", "not a JSON object", kind="row_unreadable"))
    return {**row, "id": number}


def _problems_file(path: Path) -> Path:
    """The file of problems: the path itself, or in that folder `problems.json`, or the only one whose name says so."""
    if path.is_file():
        return path
    named = sorted(path.glob("*problems*.json"))
    return named[0] if len(named) == 1 else path / PROBLEMS


def _ids(path: Path, problems: Mapping[str, Any], split: str) -> list[str]:
    """Ids of a split by `pid_splits.json`; where there is none, by the records themselves."""
    beside = path.parent / ID_SPLITS
    if beside.is_file():
        splits = read_json_object(beside)
    else:
        splits = {}
        for number, row in problems.items():
            splits.setdefault(row.get("split", "") if isinstance(row, dict) else "", []).append(number)
    if not isinstance(splits.get(split), list):
        where = str(beside if beside.is_file() else path)
        raise DataError(Problem(where, f"no split '{split}'", nearest(split, map(str, splits))))
    return [str(number) for number in splits[split]]


def _maker(source: ScienceqaSource, use: Use, reasons: bool) -> Callable[[str, Row], Sample]:
    captions = {} if source.captions is None else _captions(source.captions)
    root = image_folder(source)

    def make(_where: str, row: Row) -> Sample:
        record = checked(ScienceqaRow, row)
        gold = right_option(record.answer, record.choices, "answer")
        if reasons:
            not_empty(record.solution, "solution")
        number = str(record.id)
        images = images_of(record.image, root, f"{record.split}/{number}/", use)
        parts = (record.lecture, record.solution) if source.rationale == "LE" else (record.solution,)
        stages = {"RATIONALE": _joined(*parts), "ANSWER": f"The answer is ({letter(gold)})."}
        context = _joined(record.hint, captions.get(number, "")) or "N/A"
        question = f"{not_empty(record.question, 'question').strip()}\nContext: {context}"
        exchange = Exchange(question, {name: text for name, text in stages.items() if text}, letter(gold))
        meta = record.model_dump(include={"grade", "subject", "hint", "split"}) | {
            "gold": gold,
            "has_image": record.image is not None,
            "rationales": [stages["RATIONALE"]] if stages["RATIONALE"] else [],
        }
        return Sample(number, (exchange,), images, tuple(record.choices), meta)

    return make


def _joined(*texts: str) -> str:
    return " ".join(filter(None, (text.strip() for text in texts)))


def _captions(path: Path) -> dict[str, str]:
    """Captions by id: `{"captions": {id: text}}`, or the object alone, as the released code writes it, with lists of texts."""
    value = read_json_object(path)
    value = value["captions"] if isinstance(value.get("captions"), dict) else value
    found = {number: " ".join(text) if isinstance(text, list) else text for number, text in value.items()}
    if wrong := [number for number, text in found.items() if not isinstance(text, str)]:
        raise DataError(Problem(str(path), f"no caption is a text under {', '.join(wrong[:5])}", "expected {id: caption}"))
    return found
