"""A sample as a model sees it, and what turns samples into it: the one place where text becomes tokens.

Training and inference share an encoder, so that what is masked, or read, in a training sample *is* the generation prompt.
Text that people or models wrote is never trusted: a control token or image slot inside it is tokenised as the plain
characters it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lora_cot.errors import DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.types import Image, Sample

IGNORE_INDEX = -100
"""Label of a token that carries no loss."""
NO_STAGE = -1
"""Stage id of a token that carries no loss."""


@dataclass(frozen=True)
class Encoded:
    """One sample as the model sees it."""

    input_ids: list[int]
    """(T,) with image slots expanded. Of an encoder-decoder, what its encoder reads: the prompt alone."""
    labels: list[int]
    """(T,) the token where it is trained, IGNORE_INDEX elsewhere. Of an encoder-decoder, what its decoder is to write."""
    stage_ids: list[int]
    """Index of the stage that each trained token belongs to, its tags included; the end token counts to the last."""
    image_inputs: dict[str, Any]
    """What the processor made of the sample's images: pixel values and their companions; empty if it has none."""
    images: int = 0
    """Number of images."""
    image_slots: Sequence[Sequence[int]] = ()
    """Tokens among `input_ids` that stand for each of them."""
    is_pair: bool = False
    """The labels are a text of their own, not a part of `input_ids`."""

    @property
    def slots(self) -> int:
        """Tokens among `input_ids` that stand for images."""
        return sum(map(len, self.image_slots))

    @property
    def length(self) -> int:
        """What a limit on lengths is compared with: all tokens; of an encoder-decoder, those of its longer text."""
        return max(len(self.input_ids), len(self.labels))

    @property
    def trained(self) -> int:
        """Tokens that carry loss."""
        return len(self.labels) - self.labels.count(IGNORE_INDEX)


class Encoder(Protocol):
    """Turns samples into tokens for one processor and one format."""

    processor: Any
    format: CotFormat
    tokenizer: Any

    def look(self, image: Image, max_pixels: int, scale: float = 1.0) -> Any:
        """An image as `prompt` and `training` take it.

        Args:
            image: a sample's.
            max_pixels: its limit.
            scale: factor that it is resized by.

        Raises:
            DataError: it cannot be opened.
        """

    def prompt(self, sample: Sample, images: Sequence[Any], like: Encoded | None = None) -> Encoded:
        """The generation prompt of the last exchange, the earlier ones answered by their gold text.

        Args:
            sample: what is asked.
            images: its images, as `look` gives them.
            like: a sample with the same images, in whose stead they are not processed again.
        """

    def training(self, sample: Sample, images: Sequence[Any]) -> Encoded:
        """Prompts and gold answers; only the answers and their end tokens are trained.

        Raises:
            DataError: an exchange has no gold text for some stage.
        """

    def count(self, sample: Sample) -> tuple[int, int]:
        """`length` and `trained` of `training`, without image slots; no image is opened.

        Raises:
            DataError: see `training`.
        """

    def control_tokens(self, text: str) -> list[str]:
        """The tokenizer's own tokens that a text quotes, in order; they are tokenised as plain characters."""

    def unknown_characters(self, text: str) -> list[str]:
        """The characters of a text that the vocabulary lacks, sorted."""

    def answer_ids(self, answer: str) -> list[int]:
        """The tokens of a short answer as a model would write them after any prompt."""


def check_trained(encoded: Encoded, sample: Sample) -> None:
    """Raise if nothing in the sample is trained."""
    if not encoded.trained:
        raise DataError(Problem(sample.id, "no token of this sample is trained", "give it an answer", "nothing_trained"))
