"""What an adapter does to each parameter of its base, as PEFT itself places it.

PEFT puts the adapter into the base's classes without weights (the meta device), so that which layer it meant, with which
rank and scale, and what is tied to what, is its answer and not a second reading of adapter_config.json.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lora_cot.checkpoints.layout import ADAPTER_WEIGHTS
from lora_cot.errors import AdapterError, MergeError, Problem
from lora_cot.merging.checkpoint import TensorFile, open_file

PREFIX = "base_model.model."
PIECE = 1 << 20
"""Values that are looked at at once."""
UNMERGED = "merge it with PEFT's merge_and_unload"
EARLIER = "its training went wrong: take an earlier checkpoint, or train it anew with a lower training.learning_rate"


@dataclass(frozen=True)
class LowRank:
    """W + scale · B A; with a magnitude, its rows then brought to that length (DoRA, arXiv 2402.09353)."""

    a: str
    """Adapter tensor (rank, in)."""
    b: str
    """Adapter tensor (out, rank)."""
    scale: float
    magnitude: str | None = None
    """Adapter tensor of out lengths."""
    transposed: bool = False
    """The base keeps its weight as (in, out): an embedding's, or that of a fan-in-fan-out layer."""


@dataclass(frozen=True)
class Change:
    """What happens to one parameter; first it is replaced, then what is low-rank or a term is added, then rows replaced."""

    replaced: str | None = None
    """Adapter tensor that takes its place."""
    low_rank: LowRank | None = None
    term: tuple[str, float] | None = None
    """Adapter tensor that is added, and its factor: a bias."""
    rows: tuple[str, tuple[int, ...]] | None = None
    """Adapter tensor of rows that take the place of these: tokens that were trained alone."""

    @property
    def taken(self) -> list[str]:
        """The adapter tensors it takes."""
        low = self.low_rank
        parts = [self.replaced, self.term and self.term[0], self.rows and self.rows[0]]
        return [key for key in (*parts, *((low.a, low.b, low.magnitude) if low else ())) if key]


@dataclass(frozen=True)
class Adapter:
    """An adapter's tensors, and what they do."""

    file: TensorFile
    changes: dict[str, Change]
    """By parameter of the base."""
    stays_tied: bool
    """Weights that the base ties are meant to stay so: PEFT's ensure_weight_tying."""
    placed: Any
    """The base's classes with PEFT's layers in them, on the meta device."""


def read_adapter(folder: Path, model: Any) -> Adapter:
    """An adapter, placed on its base.

    Args:
        folder: with adapter_config.json and the weights.
        model: the base on the meta device; adapters are put into it.

    Raises:
        AdapterError: the adapter is of another base, of a kind that is not merged here, or pickled.
        MergeError: it holds values that are not finite.
    """
    from peft import LoraConfig, PeftConfig, get_peft_model

    if not (folder / ADAPTER_WEIGHTS).is_file():
        what = f"no {ADAPTER_WEIGHTS} here; pickled weights (.bin) are not read, for they can run code"
        raise AdapterError(Problem(str(folder), what, "save the adapter with a PEFT of today"))
    config: Any = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise AdapterError(Problem(str(folder), f"adapters of the kind {config.peft_type} are not merged here", UNMERGED))
    config.init_lora_weights = True  # what it began with takes time, and is replaced
    parameters = set(model.state_dict())
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of tied weights: that is what a merge settles
            placed = get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        what = f"the adapter does not fit its base: {' '.join(str(error).split())[:300]}"
        raise AdapterError(Problem(str(folder), what, "name the base it was trained on")) from None
    file = open_file(folder / ADAPTER_WEIGHTS)
    _check_finite(file)
    changes = _changes(placed.get_base_model(), set(file.entries), folder)
    _replace_rest(changes, set(file.entries), parameters, folder)
    missing = sorted({key for change in changes.values() for key in change.taken} - set(file.entries))
    if missing:
        what = f"it lacks {len(missing)} tensors that its configuration speaks of, {missing[0]} among them"
        raise AdapterError(Problem(str(folder), what, "the adapter was not saved whole: save it again"))
    return Adapter(file, changes, bool(getattr(config, "ensure_weight_tying", False)), placed.get_base_model())


def _changes(model: Any, keys: set[str], folder: Path) -> dict[str, Change]:
    """What the layers that PEFT adapted are for."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import TrainableTokensWrapper

    changes: dict[str, Change] = {}
    for name, module in model.named_modules():
        if isinstance(module, TrainableTokensWrapper):
            adapter = module.token_adapter
            indices = tuple(int(index) for index in adapter.token_indices["default"])
            owner = _path_of(model, adapter.tied_adapter) if adapter.tied_adapter else f"{name}.token_adapter"
            changes[f"{name}.weight"] = Change(rows=(f"{PREFIX}{owner}.trainable_tokens_delta", indices))
        elif isinstance(module, LoraLayer) and "default" in module.scaling:
            changes.update(_of_layer(name, module, keys, folder))
    return changes


def _path_of(model: Any, wanted: Any) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _of_layer(name: str, module: Any, keys: set[str], folder: Path) -> Iterator[tuple[str, Change]]:
    from peft.tuners.lora.layer import Conv1d, Conv2d, Conv3d, Embedding, Linear

    kind = type(module.lora_variant["default"]).__name__ if "default" in module.lora_variant else ""
    kind = kind if kind != "type" else module.lora_variant["default"].__name__
    grouped = getattr(module.get_base_layer(), "groups", 1) > 1
    if not isinstance(module, Linear | Embedding | Conv1d | Conv2d | Conv3d) or grouped or (kind and "Dora" not in kind):
        what = f"{name}: {'a grouped convolution' if grouped else kind or type(module).__name__} is not merged here"
        raise AdapterError(Problem(str(folder), what, UNMERGED))
    prefix = f"{PREFIX}{name}."
    embedding = isinstance(module, Embedding)
    a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    magnitude = None
    if kind:
        long = f"{prefix}lora_magnitude_vector.weight"
        magnitude = long if long in keys else f"{prefix}lora_magnitude_vector"
    transposed = embedding or bool(getattr(module, "fan_in_fan_out", False))
    scale = float(module.scaling["default"])
    yield f"{name}.weight", Change(low_rank=LowRank(prefix + a, prefix + b, scale, magnitude, transposed))
    if not embedding and module.lora_bias["default"]:
        yield f"{name}.bias", Change(term=(f"{prefix}lora_B.bias", scale))


def _replace_rest(changes: dict[str, Change], keys: set[str], parameters: set[str], folder: Path) -> None:
    """What no adapter layer takes stands for itself: modules_to_save, biases, and embeddings that were saved along."""
    taken = {key for change in changes.values() for key in change.taken}
    for key in sorted(keys - taken):
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        if name not in parameters:
            what = f"its tensor {key} belongs to no layer of the base"
            raise AdapterError(Problem(str(folder), what, "name the base it was trained on"))
        changes[name] = replace(changes.get(name, Change()), replaced=key)


def _check_finite(file: TensorFile) -> None:
    for name in file.entries:
        pieces = file.values(name).flatten().split(PIECE)  # in pieces: the check makes copies
        if not all(torch.isfinite(piece).all() for piece in pieces):
            raise MergeError(Problem(str(file.path), f"the adapter holds values that are not finite: {name}", EARLIER))
