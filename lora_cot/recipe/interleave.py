"""Keys of a recipe's search.interleave: how a model is shown patches of its image again while it reasons.

`search/interleave.py` turns them into what `engines/interleave.py` says of when a text looks; `engines/looking.py` is a look.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from lora_cot.errors import Problem
from lora_cot.recipe.sections import Section, named_or_own

SelectorName = Literal["attention", "random", "boxes"]
Numbers = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


def unseen(what: str) -> Problem:
    """Why patches of a kind of model cannot be shown again."""
    remedy = "use a LLaVA-1.5, a Qwen2-VL or a Chameleon, or leave it out"
    return Problem("search.interleave", f"patches of {what} cannot be shown again", remedy)


UNSERVED = Problem(
    "search.interleave", "a model behind a server can be shown no patches", "leave --engine out, or leave it out"
)


class InterleaveSection(Section):
    """Interleaved-modal chain of thought; a selector's name alone stands for the rest at its defaults."""

    selector: str = "attention"
    """What chooses patches, one of `SelectorName`: the model's own attention; chance, as the control; boxes that come with
    the sample. Or package.module:function, of an installed package that declares it: see `search/selectors.py`."""
    n: int | None = Field(None, gt=0)
    """Patches of a look, at most as many as are left; 16 of Qwen2-VL's, 64 of Chameleon's, 36 of LLaVA's if not given."""
    cap: int | None = Field(3, gt=0)
    """Looks of a text at most; null: any number."""
    every: int = Field(1, gt=0)
    """A look at each so-manieth signal."""
    at: Literal["line", "stage"] | Annotated[list[str], Field(min_length=1)] = "line"
    """What is a signal: a line's end; a stage's, of all but the last or of those named. A look after a stage that is searched
    belongs to the next."""
    signal: str | None = Field(None, min_length=1)
    """A text whose end is a signal, in place of `at`: where a model's sentences have no lines of their own."""
    insert: Literal["input", "kv_copy"] = "input"
    """Patches run through the model, or only their keys and values are copied: cheaper, but they know nothing of the text."""
    layers: Numbers | None = None
    """Whose attention is averaged, counted from 0; all if not given."""
    heads: Numbers | None = None
    images: Literal["all", "last"] = "all"
    faithful: bool = False
    """The released code's choices (16 patches on a small square at Qwen2-VL's every second line, elsewhere from the
    prompt's end on; the last image); but its three looks in a row are a fault, and left out."""

    @field_validator("selector")
    @classmethod
    def _selector_is_named(cls, value: str) -> str:
        return named_or_own("selector", value, get_args(SelectorName))

    @model_validator(mode="after")
    def _one_signal(self) -> InterleaveSection:
        if self.signal is not None and self.at != "line":
            raise ValueError("signal and at say both where a text looks: drop one of them")
        if self.signal is not None and self.signal[-1].isspace():
            raise ValueError("a signal cannot end in a blank, which many a tokenizer joins to the next word: leave it out")
        return self

    @model_validator(mode="after")
    def _faithful_is_all(self) -> InterleaveSection:
        free = ("faithful", "selector", "insert")
        others = [key for key in type(self).model_fields if key not in free and getattr(self, key) != _default(key)]
        if self.faithful and others:
            raise ValueError(f"faithful sets all keys but selector and insert itself: drop {', '.join(others)}")
        return self


def _default(key: str) -> Any:
    return InterleaveSection.model_fields[key].default


def section_of(value: Any) -> Any:
    """A selector's name as the section that it stands for."""
    return {"selector": value} if isinstance(value, str) else value
