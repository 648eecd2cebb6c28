"""What one search knows of the prompts it has asked, so that no image is looked at twice and no beginning read twice."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from lora_cot.data.labels import Encoded
from lora_cot.engines.decoder import Root
from lora_cot.types import Image, Sample


@dataclass
class Memory:
    """Of one search; it holds the images' keys and values, and goes with it."""

    _seen: dict[Hashable, tuple[tuple[Image, ...], Encoded]] = field(default_factory=dict)
    _roots: dict[tuple[Hashable, Hashable], tuple[list[int], Root]] = field(default_factory=dict)

    @staticmethod
    def key(sample: Sample) -> Hashable:
        """The same for what is asked about one sample: its images tell samples of one name apart."""
        return sample.id, *map(id, sample.images)

    def like(self, sample: Sample) -> Encoded | None:
        """A prompt with the same images."""
        return found[1] if (found := self._seen.get(self.key(sample))) else None

    def remember(self, sample: Sample, prompt: Encoded) -> None:
        """A prompt; its images are kept, so that no other can get their identity."""
        self._seen.setdefault(self.key(sample), (sample.images, prompt))

    def root(self, who: Hashable, key: Hashable, prompt: Encoded, spare: int = 0) -> Root | None:
        """What is known of the beginning of a prompt, if its images are in it.

        Args:
            who: the model that read it: adapters read differently.
            key: of its images.
            prompt: all of it may be known.
            spare: tokens at its end that are to be left out.
        """
        if found := self._roots.get((who, key)):
            length = min(common(prompt.input_ids, found[0]), len(prompt.input_ids) - spare)
            if length > 0 and self.has_images(prompt, length):
                return replace(found[1], kv=found[1].kv.cut(length))
        return None

    @staticmethod
    def has_images(prompt: Encoded, length: int) -> bool:
        """Whether the beginning of a prompt holds all of its images."""
        return not set().union(*prompt.image_slots).intersection(prompt.input_ids[length:])

    def store(self, who: Hashable, key: Hashable, ids: Sequence[int], root: Root) -> None:
        """What was read last is what later prompts have most in common with."""
        self._roots[who, key] = list(ids), root


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that two texts begin with alike."""
    low, high = 0, min(len(first), len(second))
    while low < high:  # slices are compared faster than their items
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low
