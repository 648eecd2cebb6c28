"""The licence that a base comes with, and what it asks of a model made of it. What is not known is not guessed."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lora_cot.cards.facts import is_hub_id
from lora_cot.hub import cached_file


@dataclass(frozen=True)
class Licence:
    """Of a base."""

    key: str | None
    """As the hub names it: an id, or `other`; None if unknown."""
    name: str | None = None
    """Of one that the hub has no id for."""
    link: str | None = None

    @property
    def is_llama3(self) -> bool:
        """Whether it is a Llama community licence with a rule for names: those from Llama 3 on."""
        return bool(self.key and re.fullmatch(r"llama(3(\.\d)?|4)", self.key))

    @property
    def words(self) -> str:
        """For people."""
        return self.name or KNOWN_NAMES.get(self.key or "", self.key or "unknown")


FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "NOTICE.md", "USE_POLICY.md")
"""Of a base, what goes on with what is made of it."""
KNOWN_NAMES = {
    "apache-2.0": "Apache 2.0",
    "mit": "MIT",
    "llama2": "Llama 2 Community License",
    "llama3.2": "Llama 3.2 Community License",
}
_APACHE = Licence("apache-2.0")
BASES = (
    (r"meta-llama/Llama-3\.2-.*", Licence("llama3.2")),
    (r"llava-hf/llava-1\.5-.*", Licence("llama2")),
    (r"llava-hf/llava-onevision-qwen2-(0\.5b|7b)-.*", _APACHE),
    (r"Qwen/Qwen2-VL-[27]B(-Instruct)?", _APACHE),
    (r"Qwen/Qwen2\.5-VL-7B-Instruct", _APACHE),
    (
        r"Qwen/Qwen2\.5-VL-3B-Instruct",
        Licence("other", "qwen-research", "https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/LICENSE"),
    ),
    (r"(google-t5|google)/(t5|flan-t5)-.*", _APACHE),
    (r"mini/.*", _APACHE),
)
"""Hub id → licence, of bases that were looked up; mini/ are made by this package and under its licence."""


def licence_of(base: str, revision: str | None = None) -> Licence:
    """The licence of a base: from the list, else what its own card says, else that there is a file.

    Args:
        base: folder, hub id or mini/NAME.
        revision: of the hub's repository; only what is in the cache is looked at.
    """
    if not Path(base).is_dir():
        for pattern, licence in BASES:
            if re.fullmatch(pattern, base):
                return licence
    card = cached_file(base, "README.md", revision)
    values = _front_matter(card.read_text(encoding="utf-8", errors="replace")) if card else {}
    if values.get("license"):
        return Licence(*(_plain(values.get(key)) for key in ("license", "license_name", "license_link")))
    for name in FILES[:3]:
        if cached_file(base, name, revision):
            return Licence("other", "the base's own", name)
    return Licence(None)


def linked(licence: Licence, base: str, revision: str | None, folder: Path) -> Licence:
    """The licence with a link that leads somewhere from a card in a folder: to a file there, to the hub's, or none."""
    link = licence.link
    if link is None or "://" in link or ("/" not in link and (folder / link).is_file()):
        return licence
    url = f"https://huggingface.co/{base}/blob/{revision or 'main'}/{link.removeprefix('./')}"
    return replace(licence, link=url if is_hub_id(base) else None)


def copy_licence(base: str, revision: str | None, folder: Path) -> None:
    """Put the base's licence beside what was made of it, as far as its files are here."""
    for name in FILES:
        if (found := cached_file(base, name, revision)) and not (folder / name).exists():
            shutil.copyfile(found, folder / name)


def name_problem(licence: Licence, name: str) -> str:
    """What is wrong with a model's name under its base's licence, in one sentence; nothing if it may be called so."""
    if not licence.is_llama3 or name.rpartition("/")[2].startswith("Llama"):
        return ""
    return f"the {licence.words} wants the name of a model made of it to begin with 'Llama'; '{name}' does not"


def _plain(value: Any) -> str | None:
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None else " ".join(str(value).split())[:200]


def _front_matter(card: str) -> dict[str, Any]:
    found = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    try:
        values = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}
