"""What a model is given of an image by an encoder that is trained with it: pixels, as that encoder takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image as PILImage

from lora_cot.backbones.feature_cache import opened
from lora_cot.types import Image


@dataclass(frozen=True)
class Pixels:
    """Images for an encoder that is part of the model: nothing of them can be kept."""

    shape: tuple[int, int, int]
    """(3, height, width) of an image."""
    read: Callable[[PILImage.Image], torch.Tensor]
    """An image as the encoder takes it; may be sent to another process."""

    def of(self, image: Image, max_pixels: int) -> torch.Tensor:
        """(3, height, width) float32 of an image.

        Raises:
            DataError: it cannot be opened.
        """
        return self.read(opened(image, max_pixels))

    def fill(self, images: Sequence[Image], max_pixels: int) -> int:
        """Nothing is computed beforehand."""
        return 0
