"""What every section of a recipe is made of."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

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
