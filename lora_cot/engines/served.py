"""One model of a server, and asking just that one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_cot.data.chat import DATE
from lora_cot.engines.chat import ChatServer
from lora_cot.engines.completions import Answer
from lora_cot.errors import AccessError, Problem, nearest

CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
"""The last message is an assistant's, and is gone on with."""
KEEP = {"include_stop_str_in_output": True, "no_stop_trim": True, "separate_reasoning": False}
"""The stop string stays in the text, as vLLM and SGLang call it; and no reasoning is taken out of it (SGLang)."""
TEMPLATE = {"chat_template_kwargs": {"date_string": DATE}}
"""Llama's template writes a date; all others leave it alone."""


@dataclass(frozen=True)
class Served:
    """A model of a server."""

    name: str
    """What it is asked for by."""
    aliases: frozenset[str]
    """What the server may call it in its answers."""

    def is_named(self, name: str | None) -> bool:
        """Whether an answer that calls itself so is this model's; one without a name does not lie about it."""
        return name is None or name in self.aliases


def find_served(server: ChatServer, model: str | None) -> Served:
    """The model by the name it is asked for by.

    Args:
        server: asked for its list.
        model: a name or root in the server's list; may be left out where it serves one only.

    Raises:
        AccessError: it serves no such model, or the choice is not clear.
        EngineError: it gave no answer.
    """
    listed = server.listed()
    if not listed:
        if model is None:
            raise AccessError(Problem(server.url, "it lists no models", "name the one to use: --engine-model"))
        return Served(model, frozenset({model}))
    names = [entry.id for entry in listed]
    if model is None and len(names) > 1:
        raise AccessError(Problem(server.url, f"it serves {', '.join(names)}", "name the one to use: --engine-model"))
    for entry in listed:
        if model in (None, entry.id, entry.root):
            return Served(entry.id, frozenset(filter(None, (entry.id, entry.root, model))))
    raise AccessError(Problem(server.url, f"it does not serve '{model}'", nearest(str(model), names)))


def ask_served(
    server: ChatServer, served: Served, messages: list[dict[str, Any]], begun: str, keys: Mapping[str, Any], **bounds: Any
) -> Answer:
    """An answer of that very model.

    Args:
        server: that is asked.
        served: must be what answers.
        messages: of the chat.
        begun: of the answer. What stands before its first letter the chat template writes by itself, where the model was
            taught so.
        keys: more of the request.
        bounds: see `ChatServer.ask`.

    Raises:
        AccessError: another model answered.
        EngineError: see `ChatServer.ask`.
    """
    if begun:
        messages = [*messages, {"role": "assistant", "content": begun.lstrip()}]
    found = server.ask({"model": served.name, "messages": messages, **keys}, **bounds)
    if not served.is_named(found.model):
        what = f"'{served.name}' was asked for and '{found.model}' answered"
        raise AccessError(Problem(server.url, what, "name the model that it serves: --engine-model"))
    return found
