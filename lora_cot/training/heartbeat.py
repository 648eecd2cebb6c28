"""Where every rank is, in a file of its own, so that a run which hangs says which rank and which samples it hangs at."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_cot.checkpoints.folders import HEARTBEAT

PERIOD = 1.0
"""Seconds between two looks."""
MOST_NAMED = 8


class Heartbeat:
    """A thread that keeps this rank's file up to date, and speaks on standard error when nothing moves any more.

    All ranks go through the same places in the same order: the one that has passed fewest is what the others wait for.
    """

    def __init__(self, folder: Path, rank: int, limit: float, samples: Callable[[int], Sequence[str]]):
        """
        Args:
            folder: of the run, seen by all ranks.
            rank: this process's.
            limit: seconds in one place, after which it speaks; then after twice as many, and so on.
            samples: number of a batch, of this rank in this epoch, to the ids of its samples.
        """
        self._folder, self._rank, self._limit, self._samples = folder / HEARTBEAT, rank, limit, samples
        self._passed, self._since, self._place, self._step = 0, time.time(), "starting", 0
        self._batch: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._file.unlink(missing_ok=True)

    def at(self, place: str, step: int, batch: int | None = None) -> None:
        """This rank is somewhere else now.

        Args:
            place: in a few words.
            step: optimizer steps done.
            batch: what it works on, as `samples` takes it.
        """
        self._place, self._step, self._batch = place, step, batch
        self._passed, self._since = self._passed + 1, time.time()

    @property
    def _file(self) -> Path:
        return self._folder / f"rank{self._rank}.json"

    def _watch(self) -> None:
        limit, passed = self._limit, -1
        while not self._done.wait(min(PERIOD, self._limit / 4)):
            if self._passed != passed:
                passed, limit = self._passed, self._limit
            self._write()
            if time.time() - self._since > limit:
                limit *= 2
                self._speak()

    def _write(self) -> None:
        row = {"rank": self._rank, "host": socket.gethostname(), "pid": os.getpid(), "place": self._place}
        row |= {"step": self._step, "passed": self._passed, "since": self._since, "samples": self._ids()}
        staged = self._file.with_suffix(".tmp")
        try:
            staged.write_text(json.dumps(row), encoding="utf-8")
            staged.rename(self._file)
        except OSError:
            return  # a disk that is full now is the checkpoint's to complain of

    def _ids(self) -> list[str]:
        return [] if self._batch is None else list(self._samples(self._batch))

    def _speak(self) -> None:
        """Tell it once for all: the lowest rank whose thread still runs does."""
        rows = read(self._folder)
        alive = [row["rank"] for row in rows if row["age"] < 5 * PERIOD]
        if rows and self._rank == min(alive, default=self._rank):
            print("\n".join(report(rows)), file=sys.stderr, flush=True)


def read(folder: Path) -> list[dict[str, Any]]:
    """Every rank's last word, with the age of its file in seconds."""
    rows = []
    for path in sorted(folder.glob("rank*.json")):
        try:
            rows.append({**json.loads(path.read_text(encoding="utf-8")), "age": time.time() - path.stat().st_mtime})
        except (OSError, ValueError):
            continue
    return rows


def report(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What hangs, in lines: the ranks that are behind, with their samples, and who waits for them."""
    least = min(row["passed"] for row in rows)
    lines = []
    for row in (row for row in rows if row["passed"] == least):
        named = ", ".join(row["samples"][:MOST_NAMED]) + (" …" if len(row["samples"]) > MOST_NAMED else "")
        of = f" of {named}" if named else ""
        what = f"rank {row['rank']} (process {row['pid']} on {row['host']}) has been in {row['place']}{of}"
        lines.append(f"no progress: {what} for {time.time() - row['since']:.0f} s, after step {row['step']}")
    if waiting := [str(row["rank"]) for row in rows if row["passed"] > least]:
        lines.append(f"  waiting for it: rank {', '.join(waiting)}")
    return lines
