"""Opening what is served: a model, and further adapters of its base."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lora_cot.adapters.lora import load_adapter
from lora_cot.backbones import Backbone
from lora_cot.checkpoints.layout import pass_folders
from lora_cot.checkpoints.opening import Opened, find_adapter, saved_recipe
from lora_cot.engines.local import LocalEngine
from lora_cot.engines.opening import AnyOpened, OpenedRemote
from lora_cot.errors import Problem, RunError, SearchError
from lora_cot.formats import CotFormat
from lora_cot.recipe import Recipe
from lora_cot.recipe.interleave import UNSERVED
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.run import prepare
from lora_cot.serving.local import context_length, served_local
from lora_cot.serving.models import ServedModel
from lora_cot.serving.remote import served_remote
from lora_cot.serving.room import GIB, room_of
from lora_cot.serving.scheduler import Scheduler


def open_models(
    opened: Opened,
    name: str | None,
    adapters: Mapping[str, str],
    context: int | None,
    scheduler: Scheduler,
    kv_gib: float | None = None,
) -> list[ServedModel]:
    """The models to serve; what their keys and values may take is printed.

    Args:
        opened: the first one.
        name: that requests call it by; its run's name, or that of its folder, if not given.
        adapters: further runs or adapters by name; all of the same base, which is loaded once.
        context: tokens of a prompt and its answer; the model's own if not given.
        scheduler: the thread that will own the model; it is told how much memory keys and values may take.
        kv_gib: that memory, in GiB; see `room_of`.

    Raises:
        RunError, BackboneError, AdapterError: one of them cannot be opened, or is of another base.
        SearchError: one cannot do the search of its recipe.
    """
    first = _name(name, opened)
    if first in adapters:
        raise RunError(Problem("--adapter", f"two models are called '{first}'", "name MODEL otherwise: --name"))
    is_bare = not hasattr(opened.backbone.model, "peft_config")  # asked first: a further adapter marks the base too
    models = []
    for served, (backbone, recipe) in _backbones(opened, first, is_bare, adapters).items():
        cot_format = recipe.format.build().spelled(backbone.family.tag_style)
        is_base = served == first and is_bare and bool(adapters)
        engine = LocalEngine(backbone, cot_format, recipe.data.max_pixels, adapter=not is_base)
        _check(served, engine, cot_format, recipe.search)
        models.append(served_local(served, engine, cot_format, recipe.search, scheduler, context or context_length(engine)))
    scheduler.kv_bytes = room = room_of(opened.backbone.device, kv_gib)
    print(f"keys and values may take {room / GIB:.3g} GiB", file=sys.stderr)
    return models


def open_served(opened: OpenedRemote, name: str | None) -> ServedModel:
    """A model that another server runs.

    Args:
        opened: with what is known of it here.
        name: see `open_models`.

    Raises:
        RunError: its recipe shows patches of the image again.
    """
    if opened.recipe.search.interleave:
        raise RunError(UNSERVED)
    cot_format = opened.recipe.format.build().spelled(opened.family.tag_style)
    return served_remote(_name(name, opened), opened.engine, cot_format, opened.recipe.search)


def _backbones(opened: Opened, first: str, is_bare: bool, adapters: Mapping[str, str]) -> dict[str, tuple[Backbone, Recipe]]:
    """The one model by the names that it answers to: with its own adapter or none, and with each further one.

    Raises:
        RunError, AdapterError: an adapter that does not go with it.
    """
    backbone, others = opened.backbone, dict[str, tuple[Backbone, Recipe]]()
    for name, path in adapters.items():
        if backbone.merged:
            what = "a merged two-stage model is two models, and takes no adapter"
            raise RunError(Problem("--adapter", what, "serve its run in its place, or leave --adapter out"))
        backbone, loaded, recipe = _beside(backbone, opened, name, path)
        others[name] = loaded, recipe
    own = backbone
    if is_bare:
        own = replace(backbone, adapter=None)
    elif not opened.recipe.format.build().split:
        own = replace(backbone, adapter="default")
    found = {first: (own, opened.recipe), **others}
    # the first adapter wraps the model that was there before
    return {name: (replace(one, model=backbone.model), recipe) for name, (one, recipe) in found.items()}


def _check(name: str, engine: LocalEngine, cot_format: CotFormat, search: SearchSection) -> None:
    """See that a model can do its recipe's search: else each of its clients would be told so, and nobody else."""
    try:
        prepare(engine.for_search(), cot_format, search)
    except SearchError as error:
        raise error.at(name) from None


def _name(name: str | None, opened: AnyOpened) -> str:
    own = opened.recipe.name
    return name or (own if own != "base" else Path(opened.model.partition("@")[0]).name)


def _beside(backbone: Backbone, opened: Opened, name: str, path: str) -> tuple[Backbone, Backbone, Recipe]:
    """The model with one more adapter, and that model answering with it."""
    folder = find_adapter(path)
    if folder is None:
        raise RunError(Problem("--adapter", f"'{path}' holds no adapter", "name a run or an adapter"))
    recipe = saved_recipe(folder)
    if (recipe.model.base, recipe.model.revision) != (opened.recipe.model.base, opened.recipe.model.revision):
        what = f"{name} was trained on {recipe.model.base}, and {opened.recipe.model.base} is served"
        raise RunError(Problem("--adapter", what, "start another server for it"))
    passes = {}
    for one, place in pass_folders(folder, recipe).items():
        own = f"{name.encode().hex()}-{one}"  # PEFT takes no dot, and puts an adapter of the same name in the other's place
        backbone = load_adapter(backbone, place, own)
        passes[one] = replace(backbone, adapter=own)
    split = recipe.format.build().split
    return backbone, replace(backbone, merged=passes) if split else passes["default"], recipe
