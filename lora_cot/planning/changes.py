"""The cheapest changes to a recipe that make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lora_cot.planning.estimate import Estimate
from lora_cot.recipe import Recipe

Keys = dict[str, Any]
"""Dotted keys of a recipe and their values."""


@dataclass(frozen=True)
class Change:
    """Keys to set, and what that costs."""

    keys: Keys
    cost: str


def with_keys(recipe: Recipe, keys: Keys) -> Recipe:
    """The recipe with some keys set."""
    values = recipe.model_dump()
    for dotted, value in keys.items():
        place, *steps = dotted.split(".")
        section = values[place] = values[place] or {}
        section[".".join(steps)] = value
    return Recipe.model_validate(values)


def cheapest(
    recipe: Recipe, now: Estimate, limit: float, estimate: Callable[[Recipe], Estimate]
) -> tuple[list[Change], Estimate]:
    """Changes that make a recipe fit, cheapest first, none that is not needed; and what it then takes.

    If nothing makes it fit, all that helps is given.

    Args:
        recipe: what does not fit.
        now: its own estimate.
        limit: bytes.
        estimate: of a changed recipe.
    """
    taken: list[Change] = []
    best = now
    for change in _offers(recipe):
        if best.high <= limit:
            break
        tried = [*(other for other in taken if not other.keys.keys() <= change.keys.keys()), change]
        found = estimate(_applied(recipe, tried))
        if _excess(found, limit) < _excess(best, limit):
            taken, best = tried, found
    if best.high <= limit:
        for change in reversed(taken[:-1]):
            rest = [other for other in taken if other is not change]
            found = estimate(_applied(recipe, rest))
            if found.high <= limit:
                taken, best = rest, found
    return taken, best


def _excess(found: Estimate, limit: float) -> float:
    """Bytes over the limit, of all phases that are."""
    return sum(max(0.0, phase.high(found.gpu) - limit) for phase in found.phases)


def _applied(recipe: Recipe, changes: list[Change]) -> Recipe:
    return with_keys(recipe, {key: value for change in changes for key, value in change.keys.items()})


def _offers(recipe: Recipe) -> Iterator[Change]:
    """Changes in the order of what they cost; later ones of a kind replace the earlier."""
    keys, section = recipe.training.library, recipe.quantization
    if not str(keys.get("optim", "")).endswith("8bit"):
        yield Change({"training.optim": "paged_adamw_8bit"}, "nothing that is known of")
    if section is not None and section.load_in_4bit and not section.library.get("bnb_4bit_use_double_quant"):
        yield Change({"quantization.bnb_4bit_use_double_quant": True}, "next to nothing")
    if not keys.get("gradient_checkpointing", True):
        yield Change({"training.gradient_checkpointing": True}, "time: about a third more a step")
    yield from _smaller_batches(recipe)
    candidates = recipe.search.candidates
    while recipe.search.most_candidates > 1 and candidates > 1:
        candidates //= 2
        yield Change({"search.candidates": candidates}, "accuracy of searched answers")
    four_bit: Keys = {"quantization.load_in_4bit": True, "quantization.bnb_4bit_use_double_quant": True}
    if section is not None and section.load_in_8bit:
        four_bit["quantization.load_in_8bit"] = False
    if section is None or not section.load_in_4bit:
        yield Change(four_bit, "some quality: the base in NF4 (QLoRA)")
    if section is None or len(section.skip_parts) > 1:
        yield Change({**four_bit, "quantization.skip_parts": ["lm_head"]}, "some quality: vision in NF4 too")
    rank = recipe.lora.r
    while rank > 8:
        rank //= 2
        yield Change({"lora.r": rank}, "capacity of the adapter")
    length, shrinks = int(keys.get("max_length") or 0), recipe.training.long_samples == "shrink_image"
    cost = "detail of images in longer samples" if shrinks else "samples that are longer are dropped"
    for share in (0.75, 0.5, 0.25) if length else ():
        policy = "shrink_image" if shrinks else "drop"
        yield Change({"training.max_length": int(length * share), "training.long_samples": policy}, cost)


def _smaller_batches(recipe: Recipe) -> Iterator[Change]:
    """Of training, a step holding as many samples as before; and of questions that are answered at once."""
    keys = recipe.training.library
    batch = int(keys.get("per_device_train_batch_size", 8))
    samples = batch * int(keys.get("gradient_accumulation_steps", 1))
    while batch > 1:
        batch //= 2
        sizes = {"training.per_device_train_batch_size": batch, "training.gradient_accumulation_steps": samples // batch}
        if samples % batch == 0:
            yield Change(sizes, "time: smaller batches; a step holds as many samples as before")
    questions = recipe.evaluation.batch_size
    while questions > 1:
        questions //= 2
        yield Change({"evaluation.batch_size": questions}, "time of evaluations")
