"""What a pushed file must not tell: keys to anything, and where things lie on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from lora_cot.checkpoints.layout import INDEX
from lora_cot.errors import Problem
from lora_cot.recipe import Recipe, dump

TOKEN = re.compile(
    r"\b(hf_|api_org_)[A-Za-z0-9]{20,}|\bsk-[\w-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\b(github_pat_|glpat-|xox[abprs]-)[\w-]{20,}"
    r"|\bAIza[\w-]{35}|\b(AKIA|ASIA)[A-Z0-9]{16}\b|(?i:aws_secret_access_key\W{1,4})[A-Za-z0-9/+]{40}"
    r"|(?i:\bbearer)\s+(?=\S*\d)[\w.~+/=-]{16,}|(?i:\bauthorization\W{1,4}basic)\s+[A-Za-z0-9+/=]{16,}"
    r"|://[^\s/:@]+:[^\s/:@]+@|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""Keys of the hubs and clouds that people meet here, by their form; and what stands before a key."""
SECRET_KEY = re.compile(
    r"^token$|(^|_)((hub|hf|auth|access|api|refresh|session|bearer)_token|(token_)?secrets?|passw(or)?d|passphrase"
    r"|api_?key|(secret_)?access_key(_id)?|(secret|private)_key|credentials?|authorization)$"
)
"""Of a key in small letters, its words joined by `_`. Most that end in `_token` name one of the vocabulary."""
ABSOLUTE = re.compile(r"(/|~[\w.-]*/|[A-Za-z]:[\\/]|\\\\|file:/)[^\s/\\][^\n]*")
HOME = re.compile(r"(file:/+)?([A-Za-z]:)?[/\\]+(home|Users)[/\\]+[^/\\]+[/\\]*")
END = r"[^\s\"'`)\]}>,;|]*"
"""To where a path goes on in a text."""
ABSOLUTE_IN_TEXT = (
    r"file:/+\w", r"(?<![\w/\\])[A-Za-z]:[/\\]+\w", r"(?<!\\)\\{2,4}\w[\w.$-]*\\", r"(?<![\w/])~[\w.-]*/\w",
    r"(?<![\w/.~<}])/(?!v\d+/)[\w.@+\\-]+/+[\w.@+-]",
)  # fmt: skip
"""How one begins; of a single part, or as `/v1/…`, it is rather a route of a server."""
ADDRESS = r"(?P<address>[A-Za-z][\w+.-]*://[^\s/]\S*)"
PLACES = ("base", "folder", "base_model_name_or_path", "_name_or_path", "name_or_path")
"""Keys of JSON files that say where something lies, in words that may be a hub id."""
VOCABULARY = ("tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json", INDEX)
"""Files whose texts are tokens and names of tensors: what looks like a path there is none."""


def is_place(value: str) -> bool:
    """Whether a text is a path of this machine: an absolute one of any system, or one at which something lies."""
    if ABSOLUTE.fullmatch(value) or value.startswith(("./", "../")):
        return True
    try:
        return "/" in value and "\n" not in value and len(value) < 1024 and Path(value).exists()
    except (OSError, ValueError):
        return False


def file_name(place: str, separator: str = r"[/\\]") -> str:
    """What is kept of a path: its last part; of somebody's home not even that, for it is a name."""
    if HOME.fullmatch(place) or Path(place) == Path.home():
        return "~"
    return re.split(separator, place.rstrip("/\\"))[-1]


def public_recipe(recipe: Recipe) -> tuple[str, dict[str, str]]:
    """A recipe as others may read it; and key → value of the paths that were shortened to file names."""
    values = recipe.model_dump(mode="json")
    typed = {key for key, value in _leaves(recipe) if isinstance(value, Path)}
    changed: dict[str, str] = {}

    def shorten(key: str, value: str) -> str:
        if key == "model.base" or not (key in typed or is_place(value)):  # whoever asks has judged the base
            return value
        name = file_name(value)
        changed.update({key: value} if name != value else {})
        return name

    return dump(Recipe.model_validate(_mapped(values, shorten))), changed


def public_json(name: str, text: str, private: Iterable[str] = ()) -> tuple[str, list[str]]:
    """A JSON file as others may read it, with the keys whose paths were shortened; as it is where there are none."""
    changed: list[str] = []

    def shorten(key: str, value: str) -> str:
        if ABSOLUTE.fullmatch(value) or (key.rpartition(".")[2] in PLACES and is_place(value)):
            changed.append(key)
            return file_name(value)
        value, found = public_prose(value, private)
        changed.extend([key] if found else [])
        return value

    values = json.loads(text)
    if name in VOCABULARY:
        return text, []
    values = _mapped(values, shorten, {"added_tokens_decoder", "chat_template"})
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n", changed) if changed else (text, [])


def public_prose(text: str, private: Iterable[str] = ()) -> tuple[str, list[str]]:
    """A text for people, its paths shortened to file names, with what is left of each.

    Args:
        text: markdown or plain; addresses and hub ids in it stay.
        private: paths that are known not to be for others, though they may be relative.
    """
    found: list[str] = []

    def shorten(match: re.Match[str]) -> str:
        if match["address"]:
            return match[0]
        found.append(file_name(match[0], r"/|\\(?!_)"))  # markdown writes \_ for _
        return found[-1]

    named = {place for place in private if sum(bool(part.strip(".")) for part in re.split(r"[/\\]", place)) > 1}
    roots = {place for place in (str(Path.home()), str(Path.cwd())) if len(place) > 1}
    own = [re.escape(place).replace("_", r"\\?_") for place in sorted(named | roots, key=len, reverse=True)]
    begins = "|".join([*(rf"(?<!\w){place}" for place in own), *ABSOLUTE_IN_TEXT])
    return re.sub(f"{ADDRESS}|(?:{begins}){END}", shorten, text), found


def path_problems(name: str, text: str, private: Iterable[str]) -> list[Problem]:
    """Paths in a text that a model is run with, so that it cannot be another for others.

    Args:
        name: of the file.
        text: its content.
        private: see `public_prose`.
    """
    lines = [number for number, line in enumerate(text.splitlines(), 1) if public_prose(line, private)[1]]
    return [Problem(f"{name} line {number}", "a path of this machine stands here", "take it out") for number in lines]


def secret_problems(name: str, text: str, token: str | None) -> list[Problem]:
    """Keys to something in a text, without showing them.

    Args:
        name: of the file.
        text: its content.
        token: this user's own.
    """
    remedy = "take it out, and make a new one if anybody else has seen it"
    lines = [number for number, line in enumerate(text.splitlines(), 1) if TOKEN.search(line) or (token and token in line)]
    problems = [Problem(f"{name} line {number}", "this looks like an access token", remedy) for number in lines]
    if name.endswith((".yaml", ".json")) and name not in VOCABULARY and not problems:
        values = yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
        for key, value in _texts(values):
            if value and SECRET_KEY.search(_snake(key.rpartition(".")[2])):
                problems.append(Problem(f"{name} · {key}", "a secret stands here", remedy))
    return problems


def _snake(key: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|-", "_", key).lower()


def _mapped(values: Any, change: Any, skipped: Any = (), prefix: str = "") -> Any:
    """The same with every text changed by (dotted key, text)."""
    if isinstance(values, dict):
        return {k: v if k in skipped else _mapped(v, change, skipped, f"{prefix}.{k}".strip(".")) for k, v in values.items()}
    if isinstance(values, list):
        return [_mapped(value, change, skipped, f"{prefix}.{number}".strip(".")) for number, value in enumerate(values)]
    return change(prefix, values) if isinstance(values, str) else values


def _texts(values: Any) -> Iterator[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    _mapped(values, lambda key, value: found.append((key, value)))
    yield from found


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in a recipe."""
    if isinstance(values, BaseModel):
        values = dict(values)
    if isinstance(values, dict | list | tuple):
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in pairs:
            yield from _leaves(value, f"{prefix}.{key}".strip("."))
    else:
        yield prefix, values
