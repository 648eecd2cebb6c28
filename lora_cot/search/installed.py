"""Functions of installed packages that a recipe may name: those that were declared for it, and no others."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from lora_cot.errors import Problem, SearchError


def installed(group: str, key: str, name: str) -> Any:
    """The function of that name, if an installed package declares it.

    Args:
        group: of the entry points that declare such functions.
        key: of the recipe, for errors.
        name: package.module:function.

    Raises:
        SearchError: none does, or it cannot be loaded.
    """
    declared = {point.value: point for point in metadata.entry_points(group=group)}
    if name not in declared:
        known = ", ".join(sorted(declared)) or "there is none"
        raise SearchError(Problem(key, f"no installed package declares '{name}' under {group}", f"declared: {known}"))
    try:
        return declared[name].load()
    except (ImportError, AttributeError) as error:
        # where it is, and not what is wrong: a server tells the latter to its clients, and the text may name files
        where = f"{key} · {type(error).__name__}: {error}"
        raise SearchError(Problem(where, f"'{name}' cannot be loaded", "mend the package, or leave it out")) from None
