"""Running a model that goes on from its prompt: one text, read into the cache, and fed token by token."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache

from lora_cot.backbones import Backbone
from lora_cot.data.collate import batch, model_inputs, pad
from lora_cot.data.labels import IGNORE_INDEX, NO_STAGE, Encoded
from lora_cot.engines.attention import share_images
from lora_cot.engines.cache import joined, still_layers, taken
from lora_cot.engines.decoder import Decoder, Prompt, Root, Rows, State
from lora_cot.engines.sight import Sight, embeddings, patch_view, sight


class CausalDecoder(Decoder):
    """See `Decoder`."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self.places = backbone.family.still_layers(backbone.base_model)
        self.keeps_sight = False
        """Whether roots keep what their images' patches are."""
        if self.places:
            share_images(self.language_model, self.places)

    @functools.cached_property
    def marks(self) -> tuple[list[int], int]:
        """Tokens that stand before patches that are shown again, and the one after them; asked once, of the tokenizer."""
        return patch_view(self.backbone).marks(self.backbone.processor)

    def opening(self, prompt: Encoded) -> tuple[Encoded, int]:
        """See `Decoder.opening`."""
        return first_tokens(prompt, len(prompt.input_ids) - 1), prompt.input_ids[-1]

    def read(self, prompts: Sequence[Prompt]) -> list[Root]:
        """See `Decoder.read`."""
        return self._read_rests(prompts)[1] if prompts[0].root else self._read_whole(prompts)

    def next_logits(self, prompts: Sequence[Prompt], begun: Sequence[int]) -> torch.Tensor:
        """See `Decoder.next_logits`."""
        longer = [replace(prompt, encoded=_extended(prompt.encoded, begun)) for prompt in prompts]
        return self._read_rests(longer)[0] if prompts[0].root else self._forward(longer, None)[0].logits[:, -1]

    def rows(self) -> Rows:
        """See `Decoder.rows`."""
        return CausalRows(self)

    def _forward(self, prompts: Sequence[Prompt], cache: Any) -> tuple[Any, torch.Tensor, dict[str, torch.Tensor]]:
        """The model's output for whole prompts, what further positions are ahead of the count, and what was fed."""
        family = self.backbone.family
        made = batch([prompt.encoded for prompt in prompts], self.backbone.processor, family.image_inputs, left=True)
        inputs = self.backbone.place(model_inputs(made))
        positions, ahead = family.positions(self.backbone.base_model, inputs)
        keep = {"past_key_values": cache, "use_cache": cache is not None, "logits_to_keep": 1}
        return self.backbone.model(**inputs, position_ids=positions, **keep), ahead, inputs

    def _read_whole(self, prompts: Sequence[Prompt]) -> list[Root]:
        """Prompts of which nothing was read before."""
        with embeddings(self.language_model if self.keeps_sight else None) as embedded:
            output, ahead, inputs = self._forward(prompts, DynamicCache())
        longest, held = inputs["input_ids"].shape[1], self.backbone.family.held_inputs(inputs)
        roots = []
        for place, prompt in enumerate(prompts):
            kv = taken(output.past_key_values, place, longest - len(prompt.ids), self.places)
            mine = {name: value[place : place + 1].clone() for name, value in held.items()}
            seen = self._sight(prompt.encoded, embedded[0][place, -len(prompt.ids) :]) if embedded else None
            roots.append(Root(kv, int(ahead[place]), mine, seen))
        return roots

    @property
    def language_model(self) -> Any:
        """The part that reads text."""
        return self.backbone.base_model.get_submodule(self.backbone.family.parts["language_model"])

    def _sight(self, prompt: Encoded, embedded: torch.Tensor) -> Sight:
        processor = self.backbone.processor
        token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        return sight(prompt.input_ids, token, embedded, patch_view(self.backbone).grids(processor, prompt))

    def _read_rests(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, list[Root]]:
        """Prompts whose beginnings were read before: logits (B, V) after them, and the prompts, read."""
        roots, rests = [prompt.root for prompt in prompts if prompt.root], [prompt.ids for prompt in prompts]
        counts = [len(rest) for rest in rests]
        begins = [root.kv.length + root.ahead + count - max(counts) for root, count in zip(roots, counts, strict=True)]
        positions = (torch.tensor(begins)[:, None] + torch.arange(max(counts))).clamp(min=0)
        return read_after(self, roots, {"input_ids": pad(rests, 0, left=True)}, counts, positions)


def first_tokens(prompt: Encoded, count: int) -> Encoded:
    """A prompt's beginning."""
    cut = {name: getattr(prompt, name)[:count] for name in ("input_ids", "labels", "stage_ids")}
    return replace(prompt, **cut)


def _extended(prompt: Encoded, tokens: Sequence[int]) -> Encoded:
    """A prompt with further tokens, of which none is trained."""
    more = len(tokens)
    labels, stages = [*prompt.labels, *[IGNORE_INDEX] * more], [*prompt.stage_ids, *[NO_STAGE] * more]
    return replace(prompt, input_ids=[*prompt.input_ids, *tokens], labels=labels, stage_ids=stages)


class CausalRows(Rows):
    """See `Rows`."""

    def __init__(self, decoder: CausalDecoder):
        super().__init__(decoder.backbone.device)
        self._decoder = decoder

    def _arrange(self) -> None:
        super()._arrange()
        self._ahead = torch.tensor([root.ahead for root in self.origins], device=self.device)
        self._held = {name: torch.cat([root.held[name] for root in self.origins]) for name in self.origins[0].held}
        places = self._decoder.places
        images = still_layers([root.kv.still for root in self.origins], len(places))
        self._cache = joined(self.buffer.layers, images, places)

    def step(self) -> torch.Tensor:
        """See `Rows.step`."""
        input_ids = torch.tensor(self.tokens, device=self.device)[:, None]
        mask = self.known(1) if self.is_padded else None  # without one attention is faster
        return self.forward({"input_ids": input_ids}, mask, (self.buffer.length - self.padding + self._ahead)[:, None])

    def forward(self, fed: dict[str, torch.Tensor], mask: torch.Tensor | None, positions: torch.Tensor) -> torch.Tensor:
        """Feed tokens; returns logits (B, V) after the last.

        Args:
            fed: input_ids (B, T), or inputs_embeds (B, T, D).
            mask: (B, all positions) 0 at padding; None if there is none.
            positions: (B, T), or (A, B, T) on each axis of the text.
        """
        count = next(iter(fed.values())).shape[1]
        length = self.buffer.length + count
        self.buffer.reserve(count)
        output = self._decoder.backbone.model(
            **fed,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            # for every position up to now, though only the last are computed: older transformers looks it up there
            **{name: value.expand(-1, length, *value.shape[2:]) for name, value in self._held.items()},
        )
        self.buffer.grown(count)
        return output.logits[:, -1]


def read_after(
    decoder: CausalDecoder,
    roots: Sequence[Root],
    fed: dict[str, torch.Tensor],
    counts: Sequence[int],
    positions: torch.Tensor,
) -> tuple[torch.Tensor, list[Root]]:
    """Read on where each text ends; returns logits (B, V) after the last token, and the texts with what was fed.

    The cache is padded on the left, and so is what is fed: rows stand in line at its end, and padding in the middle is
    masked like any other.

    Args:
        decoder: runs the model.
        roots: the texts, all of one `KeyValues.shape_key`.
        fed: see `CausalRows.forward`; padded on the left.
        counts: of each text, how many of the T that are fed are no padding.
        positions: see `CausalRows.forward`.
    """
    rows = CausalRows(decoder)
    rows.join([State(root, 0) for root in roots], [1] * len(roots))
    is_fed = pad([[1] * count for count in counts], 0, left=True)
    mask = torch.cat([rows.known(0), is_fed.to(rows.device)], dim=1)
    logits = rows.forward({name: value.to(rows.device) for name, value in fed.items()}, mask, positions.to(rows.device))
    return logits, [rows.root(place, count) for place, count in enumerate(counts)]
