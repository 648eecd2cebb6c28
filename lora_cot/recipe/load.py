"""Reading a recipe: YAML and `key=value` overrides to a `Recipe`, with every mistake reported at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from lora_cot.errors import FormatError, Problem, RecipeError, nearest
from lora_cot.formats import FORMATS
from lora_cot.recipe.libraries import OWNED, key_model
from lora_cot.recipe.schema import (
    AnySource,
    FormatSection,
    LibrarySection,
    LoraSection,
    QuantizationSection,
    Recipe,
    SearchSection,
    TrainingSection,
)
from lora_cot.recipe.shipped import shipped
from lora_cot.recipe.yaml import parse_yaml

LIBRARY_SECTIONS: dict[str, type[LibrarySection]] = {
    "quantization": QuantizationSection,
    "lora": LoraSection,
    "training": TrainingSection,
}
SOURCES = tuple(get_args(kind.model_fields["source"].annotation)[0] for kind in get_args(get_args(AnySource)[0]))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, with overrides.

    Args:
        path: a YAML file; `recipes/…` is the package's own where no such file is there.
        overrides: `dotted.key=value`, the value in YAML.

    Raises:
        RecipeError: all mistakes together, each as file · dotted key · what is wrong · what is allowed.
    """
    values = _read(shipped(Path(path)))
    problems = _override(values, overrides)
    recipe, found = _validated(values)
    problems += found + _library_problems(values) + _format_problems(values) + _search_problems(values)
    if problems:
        raise RecipeError(problems).at(str(path))
    assert recipe is not None
    return recipe


def load_saved(path: Path) -> Recipe:
    """A recipe that a run wrote: not checked against the libraries again, which may have moved on.

    Raises:
        RecipeError: it is no recipe.
    """
    recipe, problems = _validated(_read(path))
    if recipe is None or problems:
        raise RecipeError(problems).at(str(path))
    return recipe


def change_search(
    section: SearchSection, changes: Mapping[str, Any], cot_format: FormatSection | None = None
) -> SearchSection:
    """The section with other values under some dotted keys, such as `keep` or `stages.CAPTION.candidates`.

    Args:
        section: a recipe's.
        changes: value by key; a value that holds keys itself takes the place of all that were there. A number of
            candidates is meant for every stage that gets no other among the changes.
        cot_format: has the stages that keys may name; not looked at if None.

    Raises:
        RecipeError: all mistakes together.
    """
    values = section.model_dump(mode="json")
    for stage in values["stages"].values() if "candidates" in changes else ():
        stage["candidates"] = None
    problems = [found for key, value in changes.items() for found in _place(values, key, value, "search.")]
    if cot_format is not None:
        problems += _format_problems({"format": cot_format.model_dump(mode="json"), "search": values})
    try:
        changed = SearchSection.model_validate(values)
    except ValidationError as error:
        problems += _problems(error, SearchSection, ("search",))
    if problems:
        raise RecipeError(problems)
    return changed


def dump(recipe: Recipe) -> str:
    """The recipe as YAML with every key."""
    values = recipe.model_dump(mode="json")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(Problem(str(path), "no such recipe file", "recipes/README.md lists those that come along"))
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(Problem(str(path), "not YAML", " ".join(str(error).split()))) from None
    if not isinstance(values, dict):
        raise RecipeError(Problem(str(path), "a recipe is a mapping of sections", nearest("", Recipe.model_fields)))
    return values


def _override(values: dict[str, Any], overrides: Iterable[str]) -> list[Problem]:
    changes, problems = parse_overrides(overrides)
    return problems + [found for key, value in changes for found in _place(values, key, value)]


def parse_overrides(overrides: Iterable[str]) -> tuple[list[tuple[str, Any]], list[Problem]]:
    """(Dotted key, value) of each `key=value`, the value in YAML, and what is wrong with the others."""
    changes: list[tuple[str, Any]] = []
    problems: list[Problem] = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            problems.append(Problem(override, "an override is written key=value", "for example temperature=0.7"))
            continue
        try:
            changes.append((key, parse_yaml(text)))
        except (yaml.YAMLError, ValueError):
            remedy = "close its brackets and quotes, or put a text that has them in quotes of its own"
            problems.append(Problem(key, f"the value {text!r} is not YAML", remedy))
    return changes, problems


def _place(values: Any, key: str, value: Any, section: str = "") -> list[Problem]:
    *path, last = key.split(".")
    for step in path:
        if isinstance(values, list) and step.isdecimal() and int(step) < len(values):
            values = values[int(step)]
            continue
        if isinstance(values, dict) and values.get(step) is None:
            values[step] = {}
        if not isinstance(values, dict):
            return [_keyless(section + key, step)]
        values = values[step]
    if isinstance(values, list) and last.isdecimal() and int(last) < len(values):
        values[int(last)] = value
    elif isinstance(values, dict):
        values[last] = value
    else:
        return [_keyless(section + key, last)]
    return []


def _keyless(key: str, step: str) -> Problem:
    return Problem(key, f"'{step}' is inside a value that holds no keys", "set that value, or take this out")


def _validated(values: dict[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    try:
        return Recipe.model_validate(values), []
    except ValidationError as error:
        return None, _problems(error, Recipe, ())


def _library_problems(values: dict[str, Any]) -> list[Problem]:
    problems = []
    for section, own in LIBRARY_SECTIONS.items():
        given = values.get(section)
        if not isinstance(given, dict):
            continue
        ours = own.model_fields
        keys = {key: value for key, value in given.items() if key not in ours}
        for key in sorted(keys.keys() & OWNED[section].keys()):
            why, remedy = OWNED[section][key]
            problems.append(Problem(f"{section}.{key}", f"this key is not a recipe's to set: {why}", remedy))
            del keys[key]
        if not keys:
            continue
        model = key_model(section)
        try:
            model.model_validate(keys)
        except ValidationError as error:
            problems += _problems(error, model, (section,), extra=ours)
    return problems


def _problems(
    error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...], extra: Iterable[str] = ()
) -> list[Problem]:
    problems: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        raw = [str(step) for step in item["loc"] if step != "[key]"]
        location = _plain(raw)
        where = ".".join([*prefix, *location])
        if item["type"] == "extra_forbidden":
            allowed = {*_keys_at(model, raw[:-1]), *extra}
            problems.setdefault(where, Problem(where, "unknown key", nearest(location[-1], allowed)))
        elif item["type"] == "missing":
            problems.setdefault(where, Problem(where, "this key is needed", "set it"))
        else:
            # A union reports each of its members: one line for the key is enough.
            key = ".".join([*prefix, *_real_path(model, location)])
            got = f" (got {item['input']!r})" if not isinstance(item["input"], dict | list) else ""
            problems.setdefault(key, Problem(key, f"{item['msg']}{got}"))
    return list(problems.values())


def _plain(location: list[str]) -> list[str]:
    """The location without the source's name, which pydantic puts after the index of a source."""
    kept = location[:1]
    return kept + [step for before, step in itertools.pairwise(location) if not (before.isdecimal() and step in SOURCES)]


def _real_path(model: type[BaseModel], location: list[str]) -> list[str]:
    """The location without the names of union members that pydantic puts at its end."""
    return location[:1] if location and location[0] in model.model_fields and not _keys_at(model, location[:1]) else location


def _keys_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Keys of the section at a location; pydantic puts list indices and union tags into it."""
    current: Any = model
    for step in location:
        if isinstance(current, list) and step in SOURCES:
            current = next(kind for kind in current if step in get_args(kind.model_fields["source"].annotation))
        if step.isdecimal():
            continue
        fields = getattr(current, "model_fields", {})
        if step in fields:
            current = _models_in(fields[step].annotation)
    if isinstance(current, list):
        return sorted({key for member in current for key in member.model_fields})
    return list(getattr(current, "model_fields", {}))


def _models_in(annotation: Any) -> Any:
    """The pydantic model inside an annotation, or all of them for a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found: list[Any] = []
    for argument in getattr(annotation, "__args__", ()):
        inner = _models_in(argument)
        found += inner if isinstance(inner, list) else [inner] if inner is not None else []
    return found[0] if len(found) == 1 else found or None


def _search_problems(values: dict[str, Any]) -> list[Problem]:
    """A search that is not defined: found here, and not when a model has been trained for it."""
    try:
        section = SearchSection.model_validate(values.get("search", {}))
    except ValidationError:
        return []  # reported with the rest of the recipe
    model = _mapping(values.get("model"))
    is_t5 = model.get("vision_features") is not None or str(model.get("base", "")).startswith("mini/t5")
    return section.problems(is_t5, hides_images=str(model.get("base", "")).startswith("mini/mllama"))


def _format_problems(values: dict[str, Any]) -> list[Problem]:
    """A format that does not exist or contradicts itself, and stages named elsewhere that it does not have."""
    try:
        section = FormatSection.model_validate(values.get("format", {}))
    except ValidationError:
        return []  # reported with the rest of the recipe
    if section.stages is None and section.name not in FORMATS:
        what = f"no format '{section.name}'"
        return [Problem("format.name", what, nearest(section.name, FORMATS) + "; or declare format.stages")]
    try:
        names = [stage.name for stage in section.build().stages]
    except FormatError as error:
        return [Problem("format.stages", p.what, p.remedy) for p in error.problems]
    return [
        Problem(f"{part}.{key}.{stage}", f"the format {section.name} has no such stage", nearest(str(stage), names))
        for part, key in (("training", "stage_weights"), ("search", "stages"))
        for stage in _mapping(_mapping(values.get(part)).get(key))
        if stage not in names
    ]
