"""Options that several verbs of the command line share, what their values may be, and how a verb prints what it found."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_cot.errors import Problem, RecipeError, RunError, nearest

if TYPE_CHECKING:
    from lora_cot.engines.opening import Server
    from lora_cot.engines.teacher import Teacher

ModelArgument = Annotated[str, typer.Argument(help="A run, an adapter, a merged folder, mini/NAME or a hub id.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
DataOption = Annotated[str | None, typer.Option(help="Where the benchmark's files are; shapes has none.")]
SplitOption = Annotated[str | None, typer.Option(help="The benchmark's first split if not given.")]
StrategyOption = Annotated[str | None, typer.Option(help="greedy, stage_beam, majority, …; the recipe's if not given.")]
CandidatesOption = Annotated[int | None, typer.Option(min=1, help="Texts drawn at each step.")]
ScorerOption = Annotated[str | None, typer.Option(help="logprob, self_judge, reward or package.module:function.")]
JudgeAdapterOption = Annotated[str | None, typer.Option(help="on: the fine-tuned model judges; off: its base.")]
InterleaveOption = Annotated[
    str | None,
    typer.Option(help="Show patches of the image again as it reasons: attention, random, boxes, package.module:function."),
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other key of a recipe's search section, as keep=2; repeatable."),
]
OntoOption = Annotated[str, typer.Option(help="full, dequantized, or auto: of a 4-bit run, the better of both.")]
VerifyOption = Annotated[
    bool, typer.Option(" /--no-verify", help="Load no model: the result is not held against the adapter.")
]
PushOption = Annotated[str | None, typer.Option("--push", metavar="REPO", help="Then push it to this repository of the hub.")]
PublicOption = Annotated[bool, typer.Option("--public", help="Of a push: open to everybody; private if not given.")]
QuantizationOption = Annotated[str, typer.Option("--quantization", help="auto (as trained or saved), nf4 or none.")]
FormatOption = Annotated[str | None, typer.Option("--format", help="Ask in a built-in format; the recipe's if not given.")]
DemonstrationsOption = Annotated[
    Path | None, typer.Option(help="File of worked examples, text and image regions in turn, shown before each question.")
]
EngineOption = Annotated[str | None, typer.Option(help="Address of a server that runs the model; this process if not given.")]
EngineModelOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Its name there; PASS=NAME,base=NAME of several; the only one if not given.")
]
EngineKeyFileOption = Annotated[Path | None, typer.Option(help="That server's key, one line; OPENAI_API_KEY if not given.")]
JudgeOption = Annotated[str | None, typer.Option(help="Address of a server that grades the answers of mmvet and mathvista.")]
JudgeModelOption = Annotated[str | None, typer.Option(metavar="NAME", help="The judge's name there.")]
JudgeKeyFileOption = Annotated[Path | None, typer.Option(help="The judge's key, one line; OPENAI_API_KEY if not given.")]


def search_keys(
    strategy: str | None,
    candidates: int | None,
    scorer: str | None,
    judge_adapter: str | None,
    settings: list[str] | None,
    interleave: str | None = None,
) -> dict[str, Any]:
    """Search keys given on the command line, by dotted key.

    Raises:
        RunError: a name or key that does not exist, a value that cannot be, or one key twice.
    """
    from typing import get_args

    from lora_cot.recipe.load import change_search, parse_overrides
    from lora_cot.recipe.search import ScorerName, SearchSection, StrategyName
    from lora_cot.recipe.sections import OWN_FUNCTION

    given = {"strategy": strategy, "candidates": candidates, "scorer": scorer}
    names = {"strategy": get_args(StrategyName), "scorer": get_args(ScorerName)}
    for key, allowed in names.items():
        named = key == "scorer" and re.fullmatch(OWN_FUNCTION, str(scorer))
        if given[key] is not None and given[key] not in allowed and not named:
            raise RunError(Problem(f"--{key}", f"no {key} '{given[key]}'", nearest(str(given[key]), allowed)))
    if judge_adapter not in (None, "on", "off"):
        raise RunError(
            Problem("--judge-adapter", f"'{judge_adapter}' is neither on nor off", "name one of them, or leave it out")
        )
    keys = {key: value for key, value in given.items() if value is not None}
    keys |= {} if judge_adapter is None else {"judge_adapter": judge_adapter == "on"}
    keys |= {} if interleave is None else {"interleave.selector": interleave}
    changes, problems = parse_overrides(settings or ())
    told = [*keys, *(key for key, _ in changes)]
    problems += [Problem(key, "it is given twice", "give it once") for key in dict.fromkeys(told) if told.count(key) > 1]
    if problems:
        raise RunError([replace(problem, where=f"--set {problem.where}") for problem in problems])
    keys |= dict(changes)
    try:
        change_search(SearchSection(), keys)  # before a model is loaded for nothing
    except RecipeError as error:
        raise RunError([replace(p, where=p.where.replace("search.", "--set ", 1)) for p in error.problems]) from None
    return keys


def server_of(engine: str | None, model: str | None, key_file: Path | None) -> Server | None:
    """The server that runs the model; None if this process does.

    Args:
        engine: its address, if there is one.
        model: its name there.
        key_file: holds its key.

    Raises:
        RunError: it is said how a server is asked, and none is named.
        AccessError: the file holds no key.
    """
    key = _key_of("engine", engine, model, key_file)
    if engine is None:
        return None
    from lora_cot.engines.opening import Server

    return Server(engine, model, key)


def judge_of(judge: str | None, model: str | None, key_file: Path | None) -> Teacher | None:
    """The judge that grades the answers; None if there is none.

    Args:
        judge: its server's address, if there is one.
        model: its name there.
        key_file: holds its key.

    Raises:
        RunError: it is said how a server is asked, and none is named; or it has no name.
        AccessError: the file holds no key.
    """
    key = _key_of("judge", judge, model, key_file)
    if judge is None:
        return None
    if model is None:
        raise RunError(Problem("--judge-model", "a judge has a name", "add --judge-model NAME"))
    from lora_cot.engines.teacher import Teacher

    return Teacher(judge, model, key)


def _key_of(role: str, url: str | None, model: str | None, key_file: Path | None) -> str | None:
    """The key of the server that `--ROLE` names, if it has one; without a server, nothing else may be said of it."""
    if url is None:
        what, remedy = "it says how a server is asked, and none is named", f"add --{role} URL"
        odd = {f"--{role}-model": model, f"--{role}-key-file": key_file}
        if problems := [Problem(option, what, remedy) for option, given in odd.items() if given is not None]:
            raise RunError(problems)
        return None
    from lora_cot.engines.chat import read_key

    return read_key(key_file)


def recipe_or_path(path: Path) -> Any:
    """The recipe, if the path's name is that of one; the path else.

    Raises:
        RecipeError: all mistakes in it.
    """
    if path.suffix not in (".yaml", ".yml"):
        return path
    from lora_cot.recipe import load_recipe

    return load_recipe(path)


def print_found(values: dict[str, Any], as_json: bool, lines: Sequence[str] | Sequence[tuple[str, Any]]) -> None:
    """Print what a verb found: one JSON object, or lines for people, names in a column of their own."""
    if as_json:
        print(json.dumps(values, ensure_ascii=False))
        return
    width = max((len(line[0]) for line in lines if not isinstance(line, str)), default=0)
    print(*(line if isinstance(line, str) else f"{line[0].ljust(width)}  {line[1]}" for line in lines), sep="\n")
