"""A sample for an encoder-decoder: the prompt is one text, the answer another one.

T5's vocabulary has no line break, and `<`, `{` and `}` become its unknown token: every run of white space is one space
here, as in the released Multimodal-CoT, and stage tags are written in brackets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from lora_cot.data.labels import Encoded
from lora_cot.data.tokens import SafeTokenizer
from lora_cot.errors import DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.types import Exchange, Image, Sample


class Seq2SeqEncoder:
    """Turns samples into tokens for one processor and one format; see `Encoder`."""

    def __init__(self, processor: Any, cot_format: CotFormat):
        """
        Args:
            processor: with `tokenizer`, and `look`, from an image and its limit to what the model is given of it.
            cot_format: how prompts and targets are written.
        """
        self.processor, self.format = processor, cot_format
        self.tokenizer = processor.tokenizer
        self._safe = SafeTokenizer(self.tokenizer)

    def look(self, image: Image, max_pixels: int, scale: float = 1.0) -> Any:
        """See `Encoder.look`: the model's inputs by name, of the whole image whatever the scale; none if it sees none."""
        return self.processor.look(image, max_pixels)

    def prompt(self, sample: Sample, images: Sequence[Any], like: Encoded | None = None) -> Encoded:
        """See `Encoder.prompt`."""
        return self._encode(sample, [like.image_inputs] if like else images, answered=False)

    def training(self, sample: Sample, images: Sequence[Any]) -> Encoded:
        """See `Encoder.training`.

        Raises:
            DataError: also if the sample has several exchanges, or several images.
        """
        return self._encode(sample, images, answered=True)

    def count(self, sample: Sample) -> tuple[int, int]:
        """See `Encoder.count`."""
        encoded = self._encode(sample, [{}] * len(sample.images), answered=True, staged=False)
        return encoded.length, encoded.trained

    def control_tokens(self, text: str) -> list[str]:
        """See `Encoder.control_tokens`."""
        return self._safe.control_tokens(text)

    def unknown_characters(self, text: str) -> list[str]:
        """See `Encoder.unknown_characters`."""
        return self._safe.unknown_characters(text)

    def answer_ids(self, answer: str) -> list[int]:
        """See `Encoder.answer_ids`."""
        return self.training(Sample("", (Exchange("?", answer=answer),)), []).labels

    def _encode(self, sample: Sample, images: Sequence[Any], answered: bool, staged: bool = True) -> Encoded:
        if len(sample.exchanges) > 1:
            what = f"a conversation of {len(sample.exchanges)} exchanges, and this model answers single questions"
            raise DataError(Problem("", what, "make each exchange a sample of its own", kind="not_taken"))
        if sample.preface:
            what = "a demonstration, and this model reads its own question alone"
            raise DataError(Problem("", what, "leave demonstrations out", kind="not_taken"))
        if len(images) > 1:
            what = f"{len(images)} images, and this model sees one"
            raise DataError(Problem("", what, "join them to one image", kind="not_taken"))
        question = self.format.question(sample.last, sample.choices)
        source = [*self._safe.tokens([(_spaced(question), False)]), self.tokenizer.eos_token_id]
        target, stages = self._target(sample.last, staged) if answered else ([], [])
        seen = dict(images[0]) if images else {}
        return Encoded(source, target, stages, seen, int(bool(seen)), is_pair=True)

    def _target(self, exchange: Exchange, staged: bool) -> tuple[list[int], list[int]]:
        """Tokens of the stages with their tags and the end token, and the stage of each."""
        written = [_spaced(text) for _, text in self.format.write(self.format.gold(exchange))]
        text, end = " ".join(written), self.tokenizer.eos_token_id
        if not staged:
            return [*self._safe.tokens([(text, False)]), end], []
        ids, positions = self._safe.placed_tokens([(text, False)])
        edges = list(accumulate((len(piece) + 1 for piece in written[:-1]), initial=-1))[1:]  # at the space between two
        return [*ids, end], [*(bisect_right(edges, position) for position in positions), len(written) - 1]


def _spaced(text: str) -> str:
    return " ".join(text.split())
