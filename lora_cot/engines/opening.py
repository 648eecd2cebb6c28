"""MODEL, as it is asked, evaluated and served: loaded here, or run by a server and known here by its recipe alone."""

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
from lora_cot.formats import CotFormat, format_called
from lora_cot.recipe import Recipe
from lora_cot.recipe.interleave import UNSERVED, unseen
from lora_cot.recipe.load import change_search


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


@dataclass(frozen=True)
class OpenedRemote:
    """A served model with what is known of how it was made."""

    engine: RemoteEngine
    recipe: Recipe
    family: Family
    model: str
    """As it was named."""
    server: Server

    @property
    def said(self) -> str:
        """Which server answers, and what it can do, for the user."""
        return str(self.engine)


AnyOpened = Opened | OpenedRemote
"""A model that can be asked, here or on a server."""


def open_any(
    model: str | AnyOpened,
    quantization: Quantization = "auto",
    server: Server | None = None,
    format_name: str | None = None,
    search: Mapping[str, Any] | None = None,
) -> AnyOpened:
    """A model, ready to answer; which, and with what precision, is printed.

    Args:
        model: as `open_model` takes it; or what is open already, for which the others are settled.
        quantization: how the base is loaded.
        server: what runs the model, if not this process; of `model` its recipe is read then, and no weights.
        format_name: see `Recipe.in_format`.
        search: see `open_remote`.

    Raises:
        LoraCotError: see `open_model`, `open_remote`, `Recipe.in_format`.
        RunError: something is said of a model that is settled.
    """
    if not isinstance(model, str):
        if (quantization, server, format_name) != ("auto", None, None):
            what = "it is open already: how it is loaded, run and asked is settled"
            raise RunError(Problem(model.model, what, "name it as a text, or leave out quantization, server and format_name"))
        return model
    if format_name is not None:
        format_called(format_name)  # before a model is loaded for nothing
    if server:
        check_unloaded({"--quantization": None if quantization == "auto" else quantization})
        opened: AnyOpened = open_remote(model, server, format_name, search)
    else:
        loaded = open_model(model, quantization)
        opened = replace(loaded, recipe=loaded.recipe.in_format(format_name))
    print(opened.said, file=sys.stderr)
    return opened


def check_unloaded(options: Mapping[str, object]) -> None:
    """See that nothing is said of how this process would load a model that a server runs.

    Args:
        options: by name on the command line; None where one is not given.

    Raises:
        RunError: one is given; all of them.
    """
    what, remedy = "the server has loaded the model as it was started", "drop it, or --engine"
    if problems := [Problem(option, what, remedy) for option, given in options.items() if given is not None]:
        raise RunError(problems)


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


def open_remote(
    model: str, server: Server, format_name: str | None = None, search: Mapping[str, Any] | None = None
) -> OpenedRemote:
    """A served model, ready to answer.

    Args:
        model: as `open_model` takes it: its recipe is read, its weights are not.
        server: which has it loaded.
        format_name: see `Recipe.in_format`.
        search: values by key of the recipe's search section that it will be asked with; None where that is not known yet.

    Raises:
        RunError, BackboneError: there is no such model, or none that can be served; no such format; the search shows patches.
        RecipeError: the search has no such key or value.
        AccessError, EngineError: see `RemoteEngine.open`.
    """
    recipe, family = know_model(model)
    recipe = recipe.in_format(format_name)
    if search is not None and change_search(recipe.search, search, recipe.format).interleave:
        raise RunError(UNSERVED)
    if family.is_encoder_decoder:
        what = f"chat servers run no model of the family {family.name}"
        raise BackboneError(Problem(model, what, "leave --engine out"))
    cot_format = recipe.format.build().spelled(family.tag_style)
    name, others = served_names(server.model, cot_format)
    pixels = recipe.data.max_pixels
    engine = RemoteEngine.open(server.url, cot_format, name, server.key, server.patience, others, pixels)
    return OpenedRemote(engine, recipe, family, model, server)


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


def engine_of(opened: AnyOpened, cot_format: CotFormat) -> Engine:
    """What runs the model: this process, or the server."""
    if isinstance(opened, OpenedRemote):
        return opened.engine
    return LocalEngine(opened.backbone, cot_format, opened.recipe.data.max_pixels)
