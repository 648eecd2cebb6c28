"""Every error a user can meet: what is wrong, where, what is allowed, and the remedy.

One root, one class for each kind of input; each is also the built-in type a caller would expect to catch. A
`Problem` is one mistake; errors carry all the mistakes that were found, so that none is met one at a time.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Problem:
    """One mistake in somebody's input."""

    where: str
    """File, dotted key, row: as far as it is known, joined by ` · `."""
    what: str
    """What is wrong, in one sentence."""
    remedy: str = ""
    """What is allowed, or what to do."""
    kind: str = ""
    """Of a mistake in a row: which check finds it, a name in `validation.checks.CHECKS`."""
    row: str = ""
    """Id of the row, if it has one of its own."""

    def __str__(self) -> str:
        text = f"{self.where} · {self.what}" if self.where else self.what
        return f"{text} · {self.remedy}" if self.remedy else text


class LoraCotError(Exception):
    """Root of all errors raised on purpose. The command line shows its text and no traceback."""

    exit_code = 1
    """1: it failed. 2: the input is wrong. 143: stopped by SIGTERM, 130: by Ctrl-C."""

    def __init__(self, problems: str | Problem | Iterable[Problem]):
        if isinstance(problems, str):
            # A DataLoader raises its worker's error anew, with the whole traceback as its text.
            problems = [Problem("", problems.rpartition(f"{type(self).__name__}: ")[2].strip())]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def at(self, where: str) -> LoraCotError:
        """The same error, each problem placed inside `where`."""
        moved = type(self)([replace(p, where=" · ".join(filter(None, (where, p.where)))) for p in self.problems])
        vars(moved).update(vars(self) | {"problems": moved.problems})
        return moved

    def __reduce__(self) -> tuple[type, tuple[tuple[Problem, ...]], dict[str, object]]:
        return type(self), (self.problems,), vars(self)


class RecipeError(LoraCotError, ValueError):
    """A recipe that cannot be run as it stands."""

    exit_code = 2


class DataError(LoraCotError, ValueError):
    """Rows, images or files of a data set that cannot be used."""

    exit_code = 2


class FormatError(LoraCotError, ValueError):
    """A stage format that contradicts itself, or text that it cannot express."""

    exit_code = 2


class BackboneError(LoraCotError, ValueError):
    """A base model that is not one of ours, or lacks what a recipe asks of it."""

    exit_code = 2


class AdapterError(LoraCotError, ValueError):
    """An adapter that matches nothing, gets no gradient, or does not fit its base."""

    exit_code = 2


class RunError(LoraCotError, RuntimeError):
    """A run folder that is in use, missing or incomplete."""

    exit_code = 2


class TrainingError(LoraCotError, RuntimeError):
    """Training that was stopped because it could not have taught anything."""


class StoppedError(LoraCotError, RuntimeError):
    """Training that was asked to stop, and saved what it had."""

    def __init__(self, problems: str | Problem | Iterable[Problem], exit_code: int = 143):
        super().__init__(problems)
        self.exit_code = exit_code
        """128 and the signal's number, as schedulers expect of what may be started again: 143 for SIGTERM."""


class MergeError(LoraCotError, RuntimeError):
    """A merged model that is not the adapter's model."""


class UnprovenError(MergeError):
    """A merged model that was not shown to be the adapter's: what is finished is kept for the next call."""


class HubError(LoraCotError, RuntimeError):
    """The hub failed. Of a push: it did not come to its end, and the repository is at its old commit."""


class SearchError(LoraCotError, ValueError):
    """A search that is not defined for this format, engine or setting."""

    exit_code = 2


class EngineError(LoraCotError, RuntimeError):
    """A model server that gives no answer."""


class RejectedError(EngineError):
    """A request that a model server takes for wrong: it would be refused again."""

    def __init__(self, problems: str | Problem | Iterable[Problem], status: int = 0):
        super().__init__(problems)
        self.status = status
        """Of HTTP."""


class AccessError(RejectedError):
    """An address, key or name that a server does not take: no request of any kind would be answered."""

    exit_code = 2


def nearest(name: str, choices: Iterable[str]) -> str:
    """Sentence naming the closest of the choices, or all of them when none is close."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    listed = "allowed: " + ", ".join(choices)
    return f"did you mean '{close[0]}'? {listed}" if close else listed
