"""What one pass of a split format wrote, handed to the next by sample id.

Written by free generation. The released Multimodal-CoT scores its rationale model on the gold rationale's own tokens
unless told otherwise, hands those on, and by their place in a list.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate import PartialState
from tqdm import tqdm

from lora_cot.backbones import Backbone
from lora_cot.backbones.zero import whole
from lora_cot.checkpoints.store import replace_text
from lora_cot.data.rationales import read_rationales
from lora_cot.errors import DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.recipe import Recipe
from lora_cot.training.quality import answer_freely
from lora_cot.types import Sample

NOTHING = "(nothing)"
"""What a later pass is given where an earlier one wrote nothing: gold text in its place would flatter."""


def write_texts(backbone: Backbone, one: CotFormat, samples: Sequence[Sample], recipe: Recipe, path: Path) -> dict[str, str]:
    """What a pass writes for each sample, by id; kept in a file, and what is there already is not written again.

    Each rank writes a share into a file of its own; the main one joins them.

    Args:
        backbone: with the adapter of the pass.
        one: the pass.
        samples: whatever gold text they have for its stage is not looked at.
        recipe: its budgets.
        path: JSONL with `id` and `output`, as the key `rationales` of a data source takes it.

    Raises:
        DataError: two different samples have the same id.
    """
    check_ids(samples)
    state = PartialState()
    path.parent.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        _join(path, samples)  # what ranks wrote before they were stopped
    state.wait_for_everyone()
    known = _read(path)
    state.wait_for_everyone()  # all have read before any writes: else their shares are of different wholes
    rest = list({sample.id: sample for sample in samples if sample.id not in known}.values())
    mine = rest[state.process_index :: state.num_processes]
    size = recipe.evaluation.batch_size
    bar = tqdm(total=len(mine), desc=f"{one.name} of {path.stem}", file=sys.stderr, disable=not mine, mininterval=2)
    part = path.with_suffix(f".rank{state.process_index}.jsonl")
    with whole(backbone.model), part.open("a", encoding="utf-8") as file, bar:  # ranks compute different numbers of times
        for begin in range(0, len(mine), size):
            chunk = mine[begin : begin + size]
            for sample, completion in zip(chunk, answer_freely(backbone, one, chunk, recipe), strict=True):
                row = {"id": sample.id, "output": completion.text.strip() or NOTHING}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(chunk))
    state.wait_for_everyone()
    if state.is_main_process:
        _join(path, samples)
    state.wait_for_everyone()
    return _read(path)


def handed_on(samples: Sequence[Sample], one: CotFormat, texts: Mapping[str, str]) -> list[Sample]:
    """The samples with what a pass wrote in place of the gold text of its stage."""
    (stage,) = one.stages
    return [sample.with_stages({stage.name: texts[sample.id]}) for sample in samples]


def check_ids(samples: Sequence[Sample]) -> None:
    """See that an id is one sample's.

    Raises:
        DataError: two sources have an id in common.
    """
    seen: dict[str, Sample] = {}
    for sample in samples:
        if seen.setdefault(sample.id, sample) != sample:
            remedy = "give the rows of one of its sources other ids"
            raise DataError(Problem(sample.id, "two samples have this id, by which stages are handed on", remedy))


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}.rank*.jsonl"))


def _read(path: Path) -> dict[str, str]:
    """Texts by id of a file and its parts; a line that was cut off when its writer was stopped does not count."""
    texts: dict[str, str] = {}
    for file in [path, *_parts(path)]:
        if file.is_file():
            texts |= read_rationales(file)[0]
    return texts


def _join(path: Path, samples: Sequence[Sample]) -> None:
    """One file in the samples' order, whole or as it was before."""
    texts = _read(path)
    order = dict.fromkeys([sample.id for sample in samples if sample.id in texts] + list(texts))
    lines = [json.dumps({"id": number, "output": texts[number]}, ensure_ascii=False) for number in order]
    replace_text(path, "".join(f"{line}\n" for line in lines))
    for part in _parts(path):
        part.unlink()
