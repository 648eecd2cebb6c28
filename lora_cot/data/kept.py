"""Rows that are written as they come, so that what makes them can be stopped anywhere and go on.

Beside `FILE` lies `FILE.meta.json`: what must be the same for all rows of a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from filelock import FileLock, Timeout

from lora_cot.errors import DataError, Problem, RunError


class KeptRows:
    """JSONL files of one setting, locked and open for more rows. Each row has an `id`."""

    def __init__(self, output: Path, setting: Mapping[str, Any], others: Sequence[Path] = ()):
        """
        Args:
            output: a JSONL file; beside it lies what is written about it.
            setting: what must be the same for all rows; values as JSON has them.
            others: more files of the same setting.

        Raises:
            RunError: another process writes there; a file of another setting, or of somebody else; a name that does not end
                with .jsonl; it cannot be written.
        """
        if output.suffix != ".jsonl" or output.is_dir():
            raise RunError(Problem(str(output), "rows are written as JSONL", "name a file that ends with .jsonl"))
        self.output, self.meta = output, meta_of(output)
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
            self._check(setting, [path for path in (output, *others) if path.is_file() and path.stat().st_size])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> KeptRows:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Others may write there."""
        for file in self._files.values():
            file.close()
        self._lock.release()

    def append(self, path: Path, row: Mapping[str, Any]) -> None:
        """Write a row; it lies on disk when this returns.

        Raises:
            RunError: it cannot be written.
        """
        try:
            if path not in self._files:
                self._files[path] = path.open("a", encoding="utf-8")
            self._files[path].write(_line(row))
            self._files[path].flush()
        except OSError as error:
            remedy = "what is there is kept: the same command goes on from here"
            raise RunError(Problem(str(path), f"cannot be written: {error.strerror}", remedy)) from None

    def rewrite(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Put these rows in the place of all that were there."""
        if file := self._files.pop(path, None):  # it is another file then
            file.close()
        _write_whole(path, "".join(map(_line, rows)))

    def read(self, path: Path) -> dict[str, Any]:
        """Rows by id, after a last line that was cut off has been taken away.

        Raises:
            DataError: a row is damaged, or there twice.
        """
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

    def _check(self, setting: Mapping[str, Any], used: Sequence[Path]) -> None:
        """See that what is there was written with the same setting; write down whose it is."""
        if not used:
            _write_whole(self.meta, json.dumps(dict(setting), indent=2, ensure_ascii=False) + "\n")
            return
        if not self.meta.is_file():
            what = f"the file is there, and not from this command: there is no {self.meta.name}"
            raise RunError(Problem(str(used[0]), what, "name another file"))
        try:
            before = dict(json.loads(self.meta.read_text("utf-8")))
        except (ValueError, TypeError):
            raise RunError(Problem(str(self.meta), "it cannot be read", "name another output")) from None
        changed = [key for key in {**setting, **before} if before.get(key) != setting.get(key)]
        if changed:
            remedy = "name another output, or go on as it was begun; where the file is deleted, it begins anew"
            raise RunError(
                Problem(str(self.output), f"begun with {key} {before.get(key)!r}, now {setting.get(key)!r}", remedy)
                for key in changed
            )


def meta_of(output: Path) -> Path:
    """What lies beside a file of rows."""
    return output.with_suffix(".meta.json")


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row), ensure_ascii=False).encode("utf-8", "replace").decode() + "\n"


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
