"""What a model saw of a question's images, patch by patch: where each patch is in the text, on the image, and in width D."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lora_cot.backbones import Backbone
from lora_cot.backbones.base import PatchView
from lora_cot.engines.cache import rests
from lora_cot.engines.interleave import Patch
from lora_cot.errors import SearchError
from lora_cot.recipe.interleave import unseen


@dataclass(frozen=True)
class Sight:
    """The patches of a prompt's images, in the order of the text: by rows."""

    slots: torch.Tensor
    """(P,) number of each patch's token in the text."""
    features: torch.Tensor
    """(P, D) what the language model was given for it."""
    patches: tuple[Patch, ...]
    grids: tuple[tuple[int, int], ...]
    """Rows and columns of each image."""

    def __post_init__(self) -> None:
        rests(self)

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """All tensors."""
        return self.slots, self.features


@contextmanager
def embeddings(language_model: Any) -> Iterator[list[torch.Tensor]]:
    """What a language model's first layer is given, (B, T, D), call by call: patches stand in it as they were projected, or
    looked up. Nothing of None.
    """
    seen: list[torch.Tensor] = []

    def look(_module: nn.Module, args: Any) -> None:
        seen.append(args[0])

    hook = language_model.layers[0].register_forward_pre_hook(look) if language_model is not None else None
    try:
        yield seen
    finally:
        if hook is not None:
            hook.remove()


def patch_view(backbone: Backbone) -> PatchView:
    """How a model's patches can be shown again.

    Raises:
        SearchError: they can't.
    """
    found = backbone.family.patch_view(backbone.base_model)
    if found is None:
        kind = getattr(backbone.base_model.config, "model_type", "this model")
        raise SearchError(unseen(kind))
    return found


def sight(ids: Sequence[int], token: int, embedded: torch.Tensor, grids: Sequence[tuple[int, int]]) -> Sight:
    """The sight of one prompt.

    Args:
        ids: its tokens.
        token: the one that stands for a patch.
        embedded: (T, D).
        grids: rows and columns of each of its images.
    """
    slots = torch.tensor([place for place, one in enumerate(ids) if one == token], dtype=torch.long, device=embedded.device)
    patches = tuple(
        Patch(image, row, column)
        for image, (rows, columns) in enumerate(grids)
        for row in range(rows)
        for column in range(columns)
    )
    assert len(patches) == len(slots), "each patch has a token"
    return Sight(slots, embedded[slots].clone(), patches, tuple(grids))


def covered(processor: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """What of an image its patches cover: left, top, right and bottom, as shares of its width and height.

    Args:
        processor: that cuts out the middle, or takes the whole image.
        size: width and height of the image.
    """
    maker = processor.image_processor
    if not getattr(maker, "do_center_crop", False):
        return 0.0, 0.0, 1.0, 1.0
    width, height = size
    if shortest := maker.size.get("shortest_edge"):
        scaled = shortest * width / min(size), shortest * height / min(size)
    else:
        scaled = maker.size["width"], maker.size["height"]
    across, down = maker.crop_size["width"] / scaled[0] / 2, maker.crop_size["height"] / scaled[1] / 2
    return 0.5 - across, 0.5 - down, 0.5 + across, 0.5 + down
