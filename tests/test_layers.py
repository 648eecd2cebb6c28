"""The direction of imports, as a table; and the limits that keep files readable."""

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lora_cot"
ORDER = [
    "errors types",
    "pages formats hub",
    "recipe",
    "data",
    "backbones",
    "validation",
    "adapters",
    "checkpoints",
    "engines cards",
    "search",
    "training merging annotation",
    "evaluation planning publishing",
    "serving",
    "commands",
    "cli",
]
"""A module may import from its own row's package and from rows above it."""
LEVEL = {name: level for level, row in enumerate(ORDER) for name in row.split()}
MOST_PARAMETERS = 10
WIDER = {"evaluate": 13, "serve": 12}
"""Functions of the package's front that take more, and how many."""
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@functools.cache
def parsed(path):
    """The file's tree."""
    return ast.parse(path.read_text())


def imported(path):
    """Names of our packages that a file imports."""
    for node in ast.walk(parsed(path)):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.module == "lora_cot":
            names = [f"lora_cot.{alias.name}" for alias in node.names]
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name and name.startswith("lora_cot."):
                yield name.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_backwards(path):
    """Data flows one way: nothing imports what comes after it on the line."""
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        allowed = name == own or LEVEL[name] < LEVEL[own]
        assert allowed, f"{path} imports {name}, which comes after {own}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_readable(path):
    """Files stay under 300 lines, functions under 55."""
    assert len(path.read_text().splitlines()) <= 300
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno <= 55, f"{path}:{node.name}"


def parameters(path):
    """How many parameters each function of a file has, by its name; a verb's are options of the command line."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)


def test_functions_take_few_parameters():
    """Ten at most; those that take more are named, and take no more than that."""
    found = [one for path in FILES if path.parent.name != "commands" for one in parameters(path)]
    assert {name: count for name, count in found if count > MOST_PARAMETERS} == WIDER


def test_every_package_has_a_place():
    """A new package must be put on the line before it can be used."""
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert found == set(LEVEL)
