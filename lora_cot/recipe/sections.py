"""What every section of a recipe is made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from lora_cot.errors import nearest

OWN_FUNCTION = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
"""A function that an installed package brings: package.module:function."""


class Section(BaseModel):
    """A part of a recipe that knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)


class LibrarySection(Section):
    """A part of a recipe whose further keys are those of a library's own configuration class."""

    model_config = ConfigDict(extra="allow")

    _library_keys: ClassVar[tuple[str, ...]] = ()

    @property
    def library(self) -> dict[str, Any]:
        """The keys that go to the library: further ones as given, and those declared here under the library's names."""
        return {**{key: getattr(self, key) for key in self._library_keys}, **(self.model_extra or {})}


def named_or_own(kind: str, value: str, names: Sequence[str]) -> str:
    """The value.

    Args:
        kind: of what it names, in a word.
        value: of a key.
        names: what comes along.

    Raises:
        ValueError: it is neither one of the names nor written as a function of an installed package.
    """
    if value not in names and not re.fullmatch(OWN_FUNCTION, value):
        raise ValueError(f"no {kind} '{value}': {nearest(value, names)}, or package.module:function")
    return value
