"""Multi30K (Elliott et al. 2016, 2017), task 1: captions of photographs in English, German and French, to be translated.

Its published folder `task1` holds `raw/SPLIT.LANGUAGE.gz` (or the same without `.gz`), a sentence a line, and
`image_splits/SPLIT.txt`, the photograph of each line; those of MSCOCO name the caption too, after a `#`. The photographs are
Flickr30k's and COCO's, and come from there. A table has the columns `en`, `de`, `fr` and `image`.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lora_cot.data.questions import Use, image_folder, images_of, needed, to_answer, to_train
from lora_cot.data.rows import (
    Row,
    RowReader,
    SampleReader,
    StrictRow,
    checked,
    not_empty,
    sample_readers,
)
from lora_cot.data.tables import is_table, open_table, table_rows
from lora_cot.errors import DataError, Problem
from lora_cot.recipe.sources import Multi30kSource
from lora_cot.types import Exchange, Sample, StoredImage

SPLITS = ("test_2016_flickr", "test_2017_flickr", "test_2017_mscoco", "val", "train")
"""By their published names."""
LANGUAGES = {"de": "German", "fr": "French"}


class Multi30kRow(StrictRow):
    """A caption in two languages, and its photograph."""

    id: str
    en: str
    translation: str
    image: str | StoredImage | None = None


def readers(source: Multi30kSource, use: Use, _reasons: bool) -> Iterator[SampleReader]:
    """The captions of a split; they have no reasoning.

    Raises:
        DataError: no such file, or files of different lengths. Of a row, when it is read: an empty sentence, an image that is
            missing.
    """
    return sample_readers(_rows(source), _maker(source, use))


rows, questions = to_train(readers), to_answer(readers)


def _rows(source: Multi30kSource) -> Iterator[RowReader]:
    if is_table(source.path):
        split = {"val": "validation", "test_2016_flickr": "test"}.get(source.split, source.split)
        found = table_rows(open_table(source.path, split), source.path, ("image",))
        return ((where, partial(_of_table, read, source, number)) for number, (where, read) in enumerate(found, 1))
    folder = Path(source.path)
    english, other = (_lines(folder / "raw" / f"{source.split}.{language}") for language in ("en", source.language))
    images = _lines(folder / "image_splits" / f"{source.split}.txt")
    counts = {"en": len(english), source.language: len(other), "image_splits": len(images)}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(Problem(str(folder), f"the files of {source.split} differ in length: {told}", "download them again"))
    triples = zip(english, other, images, strict=True)
    return (
        (f"{source.split} line {number}", partial(_row, source, number, *triple)) for number, triple in enumerate(triples, 1)
    )


def _lines(path: Path) -> list[str]:
    """The lines of a text file, packed or not."""
    packed = path.with_name(f"{path.name}.gz")
    if not packed.is_file() and not path.is_file():
        raise DataError(Problem(str(path), "no such data file, packed or not", "name the folder data/task1 of Multi30K"))
    try:
        data = gzip.decompress(packed.read_bytes()) if packed.is_file() else path.read_bytes()
        return data.decode("utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(Problem(str(path), f"cannot be read: {' '.join(str(error).split())}", "download it again")) from None


def _row(source: Multi30kSource, number: int, english: str, other: str, image: str) -> Row:
    name = image.partition("#")[0].strip()
    return {"id": f"{source.split}-{source.language}-{number}", "en": english, "translation": other, "image": name}


def _of_table(read: Callable[[], Row], source: Multi30kSource, number: int) -> Row:
    row = read()
    name = f"{source.split}-{source.language}-{number}"
    return {"id": name, "en": row.get("en"), "translation": row.get(source.language), "image": row.get("image")}


def _maker(source: Multi30kSource, use: Use) -> Callable[[str, Row], Sample]:
    root = image_folder(source)

    def make(_where: str, row: Row) -> Sample:
        record = checked(Multi30kRow, row)
        english = not_empty(record.en, "en").strip()
        translation = not_empty(record.translation, source.language).strip()
        question = f"translate English to {LANGUAGES[source.language]}: {english}"
        exchange = Exchange(question, {"TRANSLATION": translation}, translation)
        images = images_of(needed(record.image), root, "", use)
        return Sample(record.id, (exchange,), images, meta={"language": source.language, "rationales": []})

    return make
