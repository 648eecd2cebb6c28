"""The files that `annotate` writes row by row, so that it can be stopped anywhere and go on.

`FILE` holds what is used, `FILE.aside.jsonl` the rest with the reasons, `FILE.meta.json` who wrote it and how. A row is in
one of the two as soon as it is done, and never in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lora_cot.annotation.verdicts import Aside
from lora_cot.data.kept import KeptRows
from lora_cot.errors import DataError, Problem


class Store:
    """The output, locked and open for more rows."""

    def __init__(self, output: Path, setting: Mapping[str, Any]):
        """
        Args:
            output: a JSONL file; beside it lie the others.
            setting: what must be the same for all rows of a file.

        Raises:
            RunError: see `KeptRows`.
            DataError: a row in it is damaged (a last line that was cut off is mended), or there twice.
        """
        self.output, self.aside = output, output.with_suffix(".aside.jsonl")
        self._kept = KeptRows(output, setting, (self.aside,))
        try:
            self.done = set(self._kept.read(output))
            self.reasons = {name: str(row.get("reason", "")) for name, row in self._kept.read(self.aside).items()}
            if both := sorted(self.done & set(self.reasons)):
                raise DataError(Problem(str(self.aside), f"'{both[0]}' is in {output.name} too", "remove one of the two rows"))
        except BaseException:
            self._kept.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._kept.close()

    def take(self, name: str, row: Mapping[str, Any]) -> None:
        """Write a row that is used."""
        self._kept.append(self.output, row)
        self.done.add(name)

    def put_aside(self, name: str, aside: Aside) -> None:
        """Write a row that is not."""
        self._kept.append(self.aside, {"id": name, "reason": aside.reason, "detail": aside.detail, "text": aside.text})
        self.reasons[name] = aside.reason

    def forget_aside(self, names: Collection[str]) -> None:
        """Take rows out of the file of those aside, since they will be asked again."""
        kept = {name: row for name, row in self._kept.read(self.aside).items() if name not in names}
        if len(kept) < len(self.reasons):
            self._kept.rewrite(self.aside, kept.values())
            self.reasons = {name: self.reasons[name] for name in kept}

    def counts(self) -> dict[str, int]:
        """How many rows are aside, by reason."""
        return dict(sorted(Counter(self.reasons.values()).items()))
