"""Which words of a question an image's latents looked at, as pictures: the cross-attention of DPMM-CoT's UNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image as PILImage

from lora_cot.backbones import Backbone
from lora_cot.backbones.text_attention import text_attention
from lora_cot.backbones.zero import whole
from lora_cot.data.collate import batch, encode
from lora_cot.data.images import open_image
from lora_cot.formats import CotFormat
from lora_cot.pages import image_uri
from lora_cot.types import Sample

DRAWN = 4
"""Words of a question that get a picture: those that were looked at most."""
WORD_BEGIN = "▁"


@dataclass(frozen=True)
class Word:
    """A word of what the model reads, and what the latents gave it of their attention."""

    text: str
    share: float
    """Of the attention of all places to all tokens."""
    picture: str = ""
    """A data URI: the image, bright where it looked at this word most; empty if it is not drawn."""
    said: str = ""
    """The picture in words."""


def attended_words(backbone: Backbone, cot_format: CotFormat, sample: Sample, max_pixels: int) -> list[Word]:
    """The words that the latents looked at, in the order of the text; none of a model without such latents or image.

    Args:
        backbone: with the adapters it answers with.
        cot_format: what it is asked in; of a split one, the first pass is looked at.
        sample: with a question and an image.
        max_pixels: limit on images.
    """
    if not backbone.looks_at_text or not sample.images:
        return []
    one = cot_format.passes[0]
    backbone = backbone.for_pass(one.name)
    row = encode(backbone.encoder(one), sample, False, max_pixels)
    with whole(backbone.model):
        maps = text_attention(backbone, batch([row], backbone.processor, backbone.family.image_inputs))[0].cpu()
    image = open_image(sample.images[0], max_pixels)
    tokenizer = backbone.processor.tokenizer
    words = _words(tokenizer.convert_ids_to_tokens(row.input_ids), tokenizer.all_special_tokens)
    areas = [maps[begin:end].sum(0) for _, begin, end in words]
    shares = [float(area.mean()) for area in areas]
    named = [n for n, (text, _, _) in enumerate(words) if text not in tokenizer.all_special_tokens and _is_said(text)]
    drawn = sorted(named, key=lambda number: -shares[number])[:DRAWN]
    return [
        Word(text, shares[n], *(_picture(image, areas[n], text) if n in drawn else ())) for n, (text, _, _) in enumerate(words)
    ]


def _is_said(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _words(tokens: Sequence[str], special: Sequence[str]) -> list[tuple[str, int, int]]:
    """Each word with its first token and the one after its last."""
    found: list[tuple[str, int, int]] = []
    for number, token in enumerate(tokens):
        text = token.replace(WORD_BEGIN, "")
        if token.startswith(WORD_BEGIN) or not found or token in special:
            found.append((text, number, number + 1))
        else:
            before, begin, _ = found[-1]
            found[-1] = (before + text, begin, number + 1)
    return [one for one in found if one[0]]


def _picture(image: PILImage.Image, area: torch.Tensor, word: str) -> tuple[str, str]:
    """The image, dark where a word was looked at least, and the same in words; (H, W) is spread over the whole image."""
    span = float(area.max() - area.min())
    light: Any = ((area - area.min()) / span if span else torch.ones_like(area)) * 205 + 50
    mask = PILImage.fromarray(light.to(torch.uint8).numpy()).resize(image.size, PILImage.Resampling.BILINEAR)
    lit = PILImage.composite(image.convert("RGB"), PILImage.new("RGB", image.size), mask)
    row, column = divmod(int(area.argmax()), area.shape[1])
    rows, columns = area.shape
    where = f"row {row + 1} of {rows}, column {column + 1} of {columns}"
    said = f"Where the latents looked at “{word}”: most at {where}, with {area.max():.1%} of the attention there"
    return image_uri(lit), said
