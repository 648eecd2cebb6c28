"""Text that looks at an image once it is encoded: Multimodal-CoT's gated fusion (arXiv 2302.00923, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import nn


class GatedFusion(nn.Module):
    """H = (1 − λ) · text + λ · attended, where λ = σ(W [text; attended]) for each number of each token.

    The attended text is a single-head attention with the text as query and the projected image as keys and values; it has
    no more weights than the paper's formula. The released code also projects query, key, value and output
    (`torch.nn.MultiheadAttention`).
    """

    def __init__(self, width: int, image_width: int):
        """
        Args:
            width: D, of the text.
            image_width: D_image, of the vision features.
        """
        super().__init__()
        self.image_projection = nn.Linear(image_width, width)
        self.gate = nn.Linear(2 * width, width)

    def project(self, image: torch.Tensor) -> torch.Tensor:
        """(B, P, D) of an image's (B, P, D_image)."""
        return self.image_projection(image)

    def forward(self, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """The text with what it saw.

        Args:
            text: (B, T, D) of a text encoder.
            image: (B, P, D_image) of a frozen vision encoder; zeros where there is no image.

        Returns:
            (B, T, D) in the text's precision.
        """
        dtype = self.gate.weight.dtype
        given, text, image = text.dtype, text.to(dtype), self.project(image.to(dtype))
        scores = text @ image.transpose(1, 2) / math.sqrt(text.shape[-1])
        attended = scores.softmax(dim=-1) @ image
        gate = torch.sigmoid(self.gate(torch.cat([text, attended], dim=-1)))
        return ((1 - gate) * text + gate * attended).to(given)
