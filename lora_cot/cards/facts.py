"""What a card tells of how a model came to be: kept beside the adapter, which is then enough to write the card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from lora_cot.checkpoints.pulling import hub_id
from lora_cot.checkpoints.store import replace_text
from lora_cot.recipe import Recipe, dump
from lora_cot.recipe.sources import MessagesSource, QuestionSource

FILE = "card.json"


@dataclass(frozen=True)
class Facts:
    """Of a training. No path and no text of its data is in here."""

    family: str
    data: Mapping[str, Any]
    """`sha256` of all samples, in order; `used`, see `data.sources.Loaded`; `hub`, ids of data sets."""
    passes: Sequence[Mapping[str, Any]]
    """How each adapter was trained, as in report.json."""
    device: str
    peak_memory_gb: float
    evaluation: Mapping[str, Any] | None = None
    """Of a benchmark, as in evaluation.json."""

    def write(self, folder: Path) -> None:
        """Keep it in an adapter's folder; the file appears whole or not at all."""
        values = asdict(self)
        values["passes"] = [{**one, "dropped": left_out(one)} for one in self.passes]  # their number, not their ids
        replace_text(folder / FILE, json.dumps(values) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Facts | None:
        """What `write` kept; None if there is nothing that can be read."""
        try:
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def measured(self, evaluation: Mapping[str, Any]) -> Facts:
        """The same, with the figures of a benchmark."""
        told = ("benchmark", "split", "strategy", "metric", "accuracy", "groups")
        kept = (*told, "format_validity", "unanswered", "left_out", "rouge_l")
        return replace(self, evaluation={key: evaluation.get(key) for key in kept})


def left_out(one: Mapping[str, Any]) -> int:
    """How many samples a pass left out, because they were too long."""
    dropped = one.get("dropped", 0)
    return dropped if isinstance(dropped, int) else len(dropped)


FOLDERS = ("image_root", "rationales", "captions")
"""Keys whose values are always places on the machine that trained."""
SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".yaml", ".yml", ".png", ".jpg", ".safetensors")


def shown(value: str) -> str:
    """A name or path without what is private: of a path that is no hub id, its last part."""
    if re.match(r"[A-Za-z]:[\\/]|\\\\", value):
        return PureWindowsPath(value).name
    is_file = "/" in value and value.lower().endswith(SUFFIXES)
    is_deep = value.count("/") > 1 and not re.search(r"\s", value)
    is_path = re.match(r"/|~|file://|\.\.?/", value) or is_file or is_deep
    return PurePosixPath(value.removeprefix("file://")).name if is_path else value


def shown_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, without keys that are not set and without private paths."""
    return yaml.safe_dump(_shown(yaml.safe_load(dump(recipe))), sort_keys=False, allow_unicode=True)


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if one is not None and one != {}}
        return {key: PurePosixPath(one).name if _is_folder(key, one) else _shown(one) for key, one in kept.items()}
    if isinstance(value, list):
        return [_shown(one) for one in value]
    return shown(value) if isinstance(value, str) else value


def _is_folder(key: str, value: Any) -> bool:
    return key in FOLDERS or (key == "adapter" and not is_hub_id(hub_id(value)[0]))


def hub_data(recipe: Recipe) -> list[str]:
    """Ids of the data sets that came from the hub; asked where the data are, for a folder may be called like one."""
    sources = [s for s in (*recipe.data.train, *recipe.data.eval) if isinstance(s, MessagesSource | QuestionSource)]
    paths = dict.fromkeys(str(source.path) for source in sources)
    return [path for path in paths if is_hub_id(path) and not path.endswith((".json", ".jsonl", ".parquet"))]


def is_hub_id(name: str) -> bool:
    """Whether it is OWNER/NAME on the hub, and no folder here and no miniature."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not name.startswith("mini/") and not Path(name).exists()
