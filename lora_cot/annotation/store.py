"""The files that `annotate` writes row by row, so that it can be stopped anywhere and go on.

`FILE` holds what is used, `FILE.aside.jsonl` the rest with the reasons, `FILE.meta.json` who wrote it and how. A row is in
one of the two as soon as it is done, and never in both.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from filelock import FileLock, Timeout

from lora_cot.annotation.verdicts import Aside
from lora_cot.errors import DataError, Problem, RunError


class Store:
    """The output, locked and open for more rows."""

    def __init__(self, output: Path, setting: Mapping[str, Any]):
        """
        Args:
            output: a JSONL file; beside it lie the others.
            setting: what must be the same for all rows of a file.

        Raises:
            RunError: another process writes there; a file of another setting, or of somebody else; it cannot be written.
            DataError: a row in it is damaged (a last line that was cut off is mended), or there twice.
        """
        if output.suffix == ".json" or output.is_dir():
            raise RunError(Problem(str(output), "rows are written as JSONL", "name a file that ends with .jsonl"))
        self.output, self.aside = output, output.with_suffix(".aside.jsonl")
        self.meta = output.with_suffix(".meta.json")
        self._files: dict[Path, IO[str]] = {}
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(output.with_name(f".{output.name}.lock"), blocking=False)
            self._lock.acquire()
        except Timeout:
            raise RunError(Problem(str(output), "another process writes to it", "wait, or name another file")) from None
        except OSError as error:
            raise RunError(Problem(str(output), f"cannot be written: {error.strerror}", "name another file")) from None
        try:
            self._check(setting)
            self.done = set(self._read(output))
            self.reasons = {name: str(row.get("reason", "")) for name, row in self._read(self.aside).items()}
            if both := sorted(self.done & set(self.reasons)):
                raise DataError(Problem(str(self.aside), f"'{both[0]}' is in {output.name} too", "remove one of the two rows"))
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()
        self._lock.release()

    def take(self, name: str, row: Mapping[str, Any]) -> None:
        """Write a row that is used."""
        self._append(self.output, row)
        self.done.add(name)

    def put_aside(self, name: str, aside: Aside) -> None:
        """Write a row that is not."""
        self._append(self.aside, {"id": name, "reason": aside.reason, "detail": aside.detail, "text": aside.text})
        self.reasons[name] = aside.reason

    def forget_aside(self, names: Collection[str]) -> None:
        """Take rows out of the file of those aside, since they will be asked again."""
        kept = {name: row for name, row in self._read(self.aside).items() if name not in names}
        if len(kept) < len(self.reasons):
            if file := self._files.pop(self.aside, None):  # it is another file then
                file.close()
            _write_whole(self.aside, "".join(map(_line, kept.values())))
            self.reasons = {name: self.reasons[name] for name in kept}

    def counts(self) -> dict[str, int]:
        """How many rows are aside, by reason."""
        return dict(sorted(Counter(self.reasons.values()).items()))

    def _append(self, path: Path, row: Mapping[str, Any]) -> None:
        try:
            if path not in self._files:
                self._files[path] = path.open("a", encoding="utf-8")
            self._files[path].write(_line(row))
            self._files[path].flush()
        except OSError as error:
            remedy = "what is there is kept: the same command goes on from here"
            raise RunError(Problem(str(path), f"cannot be written: {error.strerror}", remedy)) from None

    def _check(self, setting: Mapping[str, Any]) -> None:
        """See that what is there was written with the same setting; write down whose it is."""
        if not self.meta.is_file():
            used = [path for path in (self.output, self.aside) if path.is_file() and path.stat().st_size]
            if used:
                what = f"the file is there, and not from this command: there is no {self.meta.name}"
                raise RunError(Problem(str(used[0]), what, "name another file"))
            _write_whole(self.meta, json.dumps(dict(setting), indent=2, ensure_ascii=False) + "\n")
            return
        try:
            before = dict(json.loads(self.meta.read_text("utf-8")))
        except (ValueError, TypeError):
            raise RunError(Problem(str(self.meta), "it cannot be read", "name another output")) from None
        changed = [key for key in {**setting, **before} if before.get(key) != setting.get(key)]
        if changed:
            remedy = "name another output, or go on as it was begun"
            raise RunError(
                Problem(str(self.output), f"begun with {key} {before.get(key)!r}, now {setting.get(key)!r}", remedy)
                for key in changed
            )

    def _read(self, path: Path) -> dict[str, Any]:
        """Rows by id, after a last line that was cut off has been taken away."""
        if not path.is_file():
            return {}
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):  # killed while it was written: the row is asked again
            with path.open("r+b") as file:
                file.truncate(end)
        rows: dict[str, Any] = {}
        for number, line in enumerate(data[:end].splitlines(), 1):
            where = f"{path} line {number}"
            try:
                row = json.loads(line)
                name = str(row["id"])
            except (ValueError, TypeError, KeyError):
                raise DataError(Problem(where, "no row of this command", "remove the line: it is then asked again")) from None
            if name in rows:
                raise DataError(Problem(where, f"'{name}' is there twice", "remove one of the two rows"))
            rows[name] = row
        return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row), ensure_ascii=False).encode("utf-8", "replace").decode() + "\n"


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
