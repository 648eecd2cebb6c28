"""A sample as the messages of a chat: the same texts that the local engine's prompts hold."""

from __future__ import annotations

from typing import Any

from lora_cot.data.images import MAX_PIXELS
from lora_cot.engines.image_parts import image_part
from lora_cot.formats import CotFormat
from lora_cot.types import Sample


def chat_messages(cot_format: CotFormat, sample: Sample, max_pixels: int = MAX_PIXELS) -> list[dict[str, Any]]:
    """The exchanges before as they were answered, and the last one's question. A preface and the images come first.

    Text that spells a special token is one to most servers, whatever message it stands in; the local engine reads it as
    text.

    Raises:
        DataError: an image cannot be opened, or an earlier exchange or a pass lacks a text that the prompt must hold.
    """
    messages: list[dict[str, Any]] = []
    last = len(sample.exchanges) - 1
    for turn, exchange in enumerate(sample.exchanges):
        text = cot_format.question(exchange, sample.choices if turn == last else ())
        before = [] if turn else _before(sample, max_pixels)
        messages.append({"role": "user", "content": [*before, {"type": "text", "text": text}] if before else text})
        if turn < last:
            pieces = cot_format.said(exchange)
            messages.append({"role": "assistant", "content": "".join(text for _, text in pieces)})
    return messages


def _before(sample: Sample, max_pixels: int) -> list[dict[str, Any]]:
    """The preface, and the question's own images."""
    images = iter(sample.images)
    shown = [*sample.preface, *[None] * len(sample.own_images)]
    return [image_part(next(images), max_pixels) if one is None else {"type": "text", "text": one} for one in shown]
