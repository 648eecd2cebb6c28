"""A model that a server runs, known here by its recipe alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lora_cot.backbones.base import Family, no_patch_view
from lora_cot.checkpoints.opening import Opened, Quantization, know_model, open_model
from lora_cot.engines.base import Engine
from lora_cot.engines.chat import Patience
from lora_cot.engines.local import LocalEngine
from lora_cot.engines.remote import RemoteEngine
from lora_cot.errors import BackboneError, Problem, RunError, nearest
from lora_cot.formats import FORMATS, CotFormat
from lora_cot.recipe import Recipe
from lora_cot.recipe.interleave import UNSERVED, unseen
from lora_cot.recipe.schema import FormatSection


@dataclass(frozen=True)
class Server:
    """Where a model is served."""

    url: str
    """Of an OpenAI-compatible server: http://HOST:PORT/v1."""
    model: str | None = None
    """Its name there; or, of a split format, PASS=NAME of each, and base=NAME of the model without its adapter, joined by
    commas. May be left out where it serves one model only."""
    key: str | None = field(default=None, repr=False)
    patience: Patience = field(default_factory=Patience)
    key_option: str = "--api-key-file"
    """Of the command line: the one that names the key's file."""


@dataclass(frozen=True)
class OpenedRemote:
    """A served model with what is known of how it was made."""

    engine: RemoteEngine
    recipe: Recipe
    family: Family

    @property
    def said(self) -> str:
        """Which server answers, and what it can do, for the user."""
        return str(self.engine)


def check_format(name: str | None) -> None:
    """See that there is a format of that name, if one is named.

    Raises:
        RunError: there is none.
    """
    if name is not None and name not in FORMATS:
        raise RunError(Problem("--format", f"no format '{name}'", nearest(name, FORMATS)))


def in_format(recipe: Recipe, name: str | None) -> Recipe:
    """The recipe with a built-in format in place of its own; as it is where none is named.

    Raises:
        RunError: there is none of that name, or one of both is generated in passes, each by an adapter of its own.
    """
    check_format(name)
    if name is None:
        return recipe
    if recipe.format.build().split or FORMATS[name].split:
        what = "a format that is generated in passes needs the adapters that were trained in it"
        raise RunError(Problem("--format", what, "leave it out"))
    return recipe.model_copy(update={"format": FormatSection(name=name)})


def open_any(
    model: str, quantization: Quantization = "auto", server: Server | None = None, format_name: str | None = None
) -> Opened | OpenedRemote:
    """A model, ready to answer; which, and with what precision, is printed.

    Args:
        model: as `open_model` takes it.
        quantization: how the base is loaded.
        server: what runs the model, if not this process.
        format_name: see `in_format`.

    Raises:
        LoraCotError: see `open_model`, `open_remote`, `in_format`.
    """
    check_format(format_name)
    if server:
        opened: Opened | OpenedRemote = open_remote(model, server, format_name)
    else:
        loaded = open_model(model, quantization)
        opened = loaded if format_name is None else replace(loaded, recipe=in_format(loaded.recipe, format_name))
    print(opened.said, file=sys.stderr)
    return opened


def check_looks(model: str, search: Mapping[str, Any], server: Server | None) -> None:
    """See, before any weights are loaded, that a model can be shown patches again, where a search asks for it.

    Args:
        model: as `open_model` takes it.
        search: values by key of the recipe's search section.
        server: that runs the model, if one does.

    Raises:
        RunError: it cannot.
        RunError, BackboneError: there is no such model.
    """
    asked = {key: value for key, value in search.items() if key.partition(".")[0] == "interleave" and value is not None}
    if not asked:
        return
    if server is not None:
        raise RunError(UNSERVED)
    _, family = know_model(model)
    if family.patch_view is no_patch_view:
        raise RunError(unseen(f"the family {family.name}"))


def open_remote(model: str, server: Server, format_name: str | None = None) -> OpenedRemote:
    """A served model, ready to answer.

    Args:
        model: as `open_model` takes it: its recipe is read, its weights are not.
        server: which has it loaded.
        format_name: see `in_format`.

    Raises:
        RunError, BackboneError: there is no such model, or none that can be served; no such format.
        AccessError, EngineError: see `RemoteEngine.open`.
    """
    recipe, family = know_model(model)
    recipe = in_format(recipe, format_name)
    if family.is_encoder_decoder:
        what = f"chat servers run no model of the family {family.name}"
        raise BackboneError(Problem(model, what, "leave --engine out"))
    cot_format = recipe.format.build().spelled(family.tag_style)
    name, others = served_names(server.model, cot_format)
    pixels = recipe.data.max_pixels
    engine = RemoteEngine.open(server.url, cot_format, name, server.key, server.patience, others, pixels, server.key_option)
    return OpenedRemote(engine, recipe, family)


def served_names(text: str | None, cot_format: CotFormat) -> tuple[str | None, dict[str, str]]:
    """The served model's name, and those of passes and of the base.

    Raises:
        RunError: a name for what there is not, or two for one.
    """
    known = [*(one.name for one in cot_format.passes if cot_format.split), "base"]
    name, others = None, {}
    for part in [] if text is None else text.split(","):
        kind, named, value = part.strip().rpartition("=")
        if not value or (named and kind in others) or (not named and name):
            raise RunError(Problem("--engine-model", f"'{text}' cannot be read", "NAME, or PASS=NAME,base=NAME"))
        if named and kind not in known:
            raise RunError(Problem("--engine-model", f"no '{kind}' in the format {cot_format.name}", nearest(kind, known)))
        if named:
            others[kind] = value
        else:
            name = value
    return name, others


def engine_of(opened: Opened | OpenedRemote, cot_format: CotFormat) -> Engine:
    """What runs the model: this process, or the server."""
    if isinstance(opened, OpenedRemote):
        return opened.engine
    return LocalEngine(opened.backbone, cot_format, opened.recipe.data.max_pixels)
