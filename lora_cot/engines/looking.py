"""Texts that look at their images again: attention, a choice among patches, and the text with them after it.

Nothing left to show, or no image at all, is no look, and the text goes on as it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lora_cot.data.images import image_size
from lora_cot.engines.attention import layers_and_heads
from lora_cot.engines.causal import CausalDecoder
from lora_cot.engines.decoder import Decoder, State
from lora_cot.engines.interleave import Gaze, Interleave, Looking, Shown
from lora_cot.engines.patches import attend, copy_in, fed, insert
from lora_cot.engines.sight import Sight, covered, patch_view
from lora_cot.errors import Problem, SearchError
from lora_cot.recipe.interleave import unseen
from lora_cot.types import Sample


@dataclass(frozen=True)
class Look:
    """What a selector chooses by."""

    sample: Sample
    sight: Sight
    open: tuple[int, ...]
    """Numbers of the patches that may be chosen, at least one: those that were not taken yet, of the question's own images."""
    n: int
    """How many may be chosen."""
    weights: torch.Tensor | None
    """(P,) share of the attention of the text's last token that each patch has; None for a selector that is not watched."""
    text: str
    """All that was generated so far, what it was shown left out."""
    draws: random.Random
    """The same for the same seed, sample and text."""
    processor: Any
    """Of the model: how it cuts images."""

    def centres(self) -> dict[int, tuple[int, float, float]]:
        """Of each open patch the number of its image, and where on it, upright, its centre lies: x and y in pixels.

        Raises:
            DataError: an image cannot be opened.
        """
        areas = {image: self._area(image) for image in {self.sight.patches[number].image for number in self.open}}
        found = {}
        for number in self.open:
            patch = self.sight.patches[number]
            rows, columns = self.sight.grids[patch.image]
            left, top, right, bottom = areas[patch.image]
            across, down = (patch.column + 0.5) / columns, (patch.row + 0.5) / rows
            found[number] = patch.image, left + (right - left) * across, top + (bottom - top) * down
        return found

    def _area(self, image: int) -> tuple[float, float, float, float]:
        width, height = image_size(self.sample.images[image])
        left, top, right, bottom = covered(self.processor, (width, height))
        return left * width, top * height, right * width, bottom * height


Select = Callable[[Look], Sequence[int]]
"""Chooses patches: different ones of those that are open, at most n; none: there is no look."""
Found = tuple[State, Shown | None] | str
"""A text after a look, and what it was shown; or why nothing could be chosen for it."""


def see(decoder: Decoder, how: Interleave) -> Interleave:
    """See `Engine.see`."""
    if not isinstance(decoder, CausalDecoder):
        raise SearchError(unseen("an encoder-decoder"))
    view = patch_view(decoder.backbone)
    counts = layers_and_heads(decoder.language_model)
    for name, chosen, count in zip(("layers", "heads"), (how.layers, how.heads), counts, strict=True):
        if wrong := [number for number in chosen or () if number >= count]:
            what = f"the model has {count} {name}, and none of the numbers {wrong}"
            raise SearchError(Problem(f"search.interleave.{name}", what, f"0 to {count - 1}"))
    config: Any = decoder.backbone.base_model.config
    if str(config._attn_implementation).startswith("flash"):
        what = "the attention of flash_attention_2 tells no weights"
        raise SearchError(Problem("search.interleave", what, "set model.attn_implementation: sdpa"))
    decoder.keeps_sight, _ = True, decoder.marks  # now, so that no look asks the tokenizer: others may be using it
    if how.is_faithful:
        how = replace(how, every=2, is_square=True, cap=view.released_cap, from_start=view.released_from_start)
    before, _ = view.marks(decoder.backbone.processor)
    return replace(how, n=how.n or view.shown, around=len(before) + 1 if how.insert == "input" else 0)


def look(decoder: CausalDecoder, looking: Sequence[Looking], states: Sequence[State], texts: Sequence[str]) -> list[Found]:
    """Texts that are due, after they looked.

    Args:
        decoder: runs the model.
        looking: how each looks.
        states: all of one `KeyValues.shape_key`, with a sight and a gaze.
        texts: of each, what was generated in this ask.

    Returns:
        In order; of a text whose selector fails, or chooses what it may not, why: the others look all the same.
    """
    found: dict[int, Found] = {}
    for how in dict.fromkeys(one.how for one in looking):
        places = [place for place, one in enumerate(looking) if one.how == how]
        looks = {place: _open(decoder, looking[place], states[place], texts[place]) for place in places}
        able = {place: one for place, one in looks.items() if one.open}
        found |= {place: (_seen(states[place], ()), None) for place in places}
        found |= zip(able, _looked(decoder, how, [*able.values()], [states[place] for place in able]), strict=True)
    return [found[place] for place in range(len(states))]


def _open(decoder: CausalDecoder, looking: Looking, state: State, text: str) -> Look:
    how, seen, gaze = looking.how, state.root.sight, _gaze(state)
    assert seen is not None, "kept since the prompt was read"
    own = looking.sample.preface.count(None)
    first = max(own, len(seen.grids) - 1) if how.only_last else own
    allowed = (number for number, patch in enumerate(seen.patches) if patch.image >= first)
    text = gaze.text + text
    draws = random.Random(f"{looking.seed}/{looking.sample.id}/{text}")
    left = tuple(number for number in allowed if number not in gaze.taken)
    return Look(looking.sample, seen, left, how.n, None, text, draws, decoder.backbone.processor)


def _looked(decoder: CausalDecoder, how: Interleave, looks: Sequence[Look], states: Sequence[State]) -> list[Found]:
    if not looks:
        return []
    roots = None
    if how.is_watched:
        roots, watched = attend(decoder, states, how.layers, how.heads)
        looks = [replace(one, weights=weights[one.sight.slots]) for one, weights in zip(looks, watched, strict=True)]
    chosen = [_chosen(how, one) for one in looks]
    shown = [numbers for numbers in chosen if numbers and not isinstance(numbers, str)]
    some = [place for place, numbers in enumerate(chosen) if numbers and not isinstance(numbers, str)]
    before = [states[place] for place in some]
    after: list[State] = []
    if some and how.insert == "kv_copy":
        after = copy_in(before, shown)
    elif some:
        read = [roots[place] for place in some] if roots else fed(decoder, before)
        after = insert(decoder, read, shown, how.is_square)
    new = dict(zip(some, after, strict=True))
    return [
        numbers if isinstance(numbers, str) else (_seen(state, numbers, new.get(place)), _shown(one, numbers))
        for place, (one, state, numbers) in enumerate(zip(looks, states, chosen, strict=True))
    ]


def _chosen(how: Interleave, one: Look) -> list[int] | str:
    try:
        numbers = [int(number) for number in how.select(one)]
    except Exception as error:  # whatever a function of somebody's raises is its text's failure, not its neighbours'
        return f"the selector {how.name} fails: {type(error).__name__}: {error}"
    if len({*numbers} & {*one.open}) < len(numbers) or len(numbers) > one.n:
        return f"the selector {how.name} chose {numbers} of the patches {[*one.open]}: at most {one.n} different ones of them"
    return sorted(numbers)


def _gaze(state: State) -> Gaze:
    assert state.gaze is not None
    return state.gaze


def _seen(state: State, numbers: Sequence[int], after: State | None = None) -> State:
    return replace(after or state, gaze=_gaze(state).shown(numbers))


def _shown(one: Look, numbers: Sequence[int]) -> Shown | None:
    if not numbers:
        return None
    weights = None if one.weights is None else tuple(one.weights[list(numbers)].tolist())
    return Shown(0, tuple(one.sight.patches[number] for number in numbers), weights, one.sight.grids)
