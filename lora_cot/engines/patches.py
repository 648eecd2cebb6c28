"""Attention-driven selection, outside of any model's own code: what a token attends to, and patches shown again after it.

ICoT (Gao et al. 2024, section 3.2). Where we differ from its released code: positions are the patches' own (it invents a
grid of 4 by 4), what is shown is read before the next token is drawn on every model, and nothing is held in classes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from lora_cot.engines.attention import watched
from lora_cot.engines.causal import CausalDecoder, CausalRows, read_after
from lora_cot.engines.decoder import Root, State
from lora_cot.engines.sight import Sight, patch_view


def fed(decoder: CausalDecoder, states: Sequence[State]) -> list[Root]:
    """The states' texts with their last tokens; all of one `KeyValues.shape_key`."""
    rows = CausalRows(decoder)
    rows.join(states, [1] * len(states))
    rows.step()
    return [rows.root(place, 1) for place in range(len(states))]


def attend(
    decoder: CausalDecoder,
    states: Sequence[State],
    layers: Collection[int] | None = None,
    heads: Collection[int] | None = None,
) -> tuple[list[Root], list[torch.Tensor]]:
    """Read the states' last tokens and watch what they attend to.

    Args:
        decoder: runs the model.
        states: all of one `KeyValues.shape_key`.
        layers: that are averaged over; all if not given.
        heads: of each layer that are averaged over; all if not given.

    Returns:
        The texts with their last tokens, and for each the (T,) weights of its tokens.
    """
    with watched(decoder.language_model, layers, heads) as watch:
        roots = fed(decoder, states)
    return roots, [row[-root.kv.length :] for root, row in zip(roots, watch.mean, strict=True)]


def insert(
    decoder: CausalDecoder, roots: Sequence[Root], chosen: Sequence[Sequence[int]], is_square: bool = False
) -> list[State]:
    """Texts with patches of their images after them, run through the model.

    Args:
        decoder: runs the model.
        roots: texts with a sight, all of one `KeyValues.shape_key`.
        chosen: of each, numbers of patches, at least one, in the order in which they are shown.
        is_square: they stand at the positions of a square image made of them, as the released code has it on Qwen2-VL.
    """
    view = patch_view(decoder.backbone)
    before, last = decoder.marks
    embed = decoder.backbone.base_model.get_input_embeddings()  # type: ignore[operator]
    lead = embed(torch.tensor(before, dtype=torch.long, device=decoder.backbone.device))
    pieces, places, ends = [], [], []
    for root, numbers in zip(roots, chosen, strict=True):
        begin = root.kv.length + root.ahead
        seen = _sight(root)
        side = math.isqrt(len(numbers) - 1) + 1
        true = [(seen.patches[number].row, seen.patches[number].column) for number in numbers]
        stand = [divmod(place, side) for place in range(len(numbers))] if is_square else true
        own, end = view.positions(begin + len(lead), stand)
        pieces.append(torch.cat([lead, seen.features[torch.tensor(numbers, device=lead.device)]]))
        places.append(torch.cat([torch.arange(begin, begin + len(lead)).expand(len(own), -1), own], dim=1))
        ends.append(end)
    read = _read_embedded(decoder, roots, pieces, places)
    found = [replace(root, ahead=end - root.kv.length) for root, end in zip(read, ends, strict=True)]
    return [State(root, last, (last,)) for root in found]


def copy_in(states: Sequence[State], chosen: Sequence[Sequence[int]]) -> list[State]:
    """The same by the keys and values that the patches have already, at the positions where they were first seen.

    The paper's cheaper way: nothing is run, but what is copied knows nothing of the text since. It goes before the last
    token, which is yet to be read.
    """
    found = []
    for state, numbers in zip(states, chosen, strict=True):
        root = state.root
        piece = root.kv.at([int(slot) for slot in _sight(root).slots[list(numbers)]])
        found.append(replace(state, root=replace(root, kv=root.kv.then(piece), ahead=root.ahead - len(numbers))))
    return found


def _sight(root: Root) -> Sight:
    assert root.sight is not None, "kept since the prompt was read"
    return root.sight


def _read_embedded(
    decoder: CausalDecoder, roots: Sequence[Root], pieces: Sequence[torch.Tensor], places: Sequence[torch.Tensor]
) -> list[Root]:
    """The texts with embeddings (T, D) after each, at positions (A, T)."""
    longest = max(map(len, pieces))
    embedded = torch.stack([torch.nn.functional.pad(piece, (0, 0, longest - len(piece), 0)) for piece in pieces])
    positions = torch.stack([torch.nn.functional.pad(place, (longest - place.shape[1], 0)) for place in places], dim=1)
    axes = positions if len(positions) > 1 else positions[0]
    return read_after(decoder, roots, {"inputs_embeds": embedded}, [len(piece) for piece in pieces], axes)[1]
