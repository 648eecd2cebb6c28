"""What a server can do that a stage search needs: found out once, by a few requests of some tokens each.

Nothing is believed that can be seen. That a text is continued shows in the number of prompt tokens, which holds for any
model, also one of random weights: without an end of turn and another beginning the prompt is shorter.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

from PIL import Image as PILImage

from lora_cot.engines.chat import ChatServer
from lora_cot.engines.completions import Answer
from lora_cot.engines.image_parts import image_part
from lora_cot.engines.served import CONTINUE, KEEP, TEMPLATE, Served, ask_served
from lora_cot.errors import AccessError, Problem, RejectedError

GREEDY = {"temperature": 0.0, **KEEP, **TEMPLATE}
TOP_LOGPROBS = (20, 5)
"""How many likeliest tokens are asked for: OpenAI's and vLLM's most, then what smaller servers give."""

_BEGUN = "One, two, three, four, five,"
_QUESTION = "Count from one to twenty in words."
_SERVERS = "use vLLM, or SGLang for Llama-3.2-Vision"


@dataclass(frozen=True)
class Capabilities:
    """What a server was seen to do. That it continues a text and stops at a string is needed; the rest can be missing."""

    keeps_stop: bool
    """The stop string stays in the text; otherwise the server says which one it took away."""
    many: bool
    """It gives several candidates a request."""
    logprobs: bool
    """It tells the log-probability of each token."""
    top_logprobs: int
    """How many likely tokens it can be asked to list for each place; 0 if none."""
    images: bool

    def __str__(self) -> str:
        return " · ".join(
            (
                "continues a text, stops at strings" + ("" if self.keeps_stop else " (put back here)"),
                "n" if self.many else "no n: one request a candidate",
                f"log-probabilities, {self.top_logprobs} a place" if self.logprobs else "no log-probabilities",
                "images" if self.images else "no images",
            )
        )


def probe(server: ChatServer, served: Served) -> Capabilities:
    """What the server can do with a model; nine short requests.

    Raises:
        AccessError: it lacks what a stage search needs, or another model answers.
        EngineError: it gave no answer.
    """
    probing = _Probe(server, served)
    first, top = probing.first()
    probing.check_continues()
    return Capabilities(
        keeps_stop=probing.keeps_stop(),
        many=probing.gives_many(),
        logprobs=first.replies[0].tokens is not None,
        top_logprobs=top,
        images=probing.sees_images(),
    )


@dataclass(frozen=True)
class _Probe:
    server: ChatServer
    served: Served

    def first(self) -> tuple[Answer, int]:
        """A plain answer, and how many likely tokens may be asked for; fewer are while that is refused."""
        steps: list[dict[str, Any]] = [{"logprobs": True, "top_logprobs": top} for top in TOP_LOGPROBS]
        for keys in (*steps, {"logprobs": True}, {}):
            try:
                found = self._ask(_QUESTION, max_tokens=2, **keys)
            except AccessError:
                raise
            except RejectedError as error:
                why = error.problems[0].what
                continue
            lists = any(token.top for token in found.replies[0].tokens or ())
            return found, keys.get("top_logprobs", 0) if lists else 0
        raise self._lacks(f"it refuses a plain question in the form of vLLM and SGLang: {why}")

    def check_continues(self) -> None:
        """See that a begun answer is gone on with."""
        alone = self._length(self._needed(_QUESTION, max_tokens=2))
        begun = self._needed(_QUESTION, _BEGUN, **CONTINUE, max_tokens=2)
        ended = self._needed(_QUESTION, _BEGUN, add_generation_prompt=True, max_tokens=2)
        if not alone < self._length(begun) < self._length(ended):
            raise self._lacks("continue_final_message is not honoured: a begun answer is not gone on with")
        if begun.replies[0].text.startswith(_BEGUN):
            raise self._lacks("continue_final_message repeats the text that it goes on from", "switch off its echo")

    def keeps_stop(self) -> bool:
        """Whether a stop string stays in the text; it must end it either way."""
        for begun in (None, _BEGUN):
            keys = CONTINUE if begun else {}
            text = self._ask(_QUESTION, begun, **keys, max_tokens=24).replies[0].text
            stop = _inside(text)
            if stop is None:
                continue
            reply = self._ask(_QUESTION, begun, **keys, max_tokens=24, stop=[stop]).replies[0]
            until = text[: text.index(stop)]
            if reply.text == until + stop:
                return True
            if reply.finish_reason == "stop" and reply.text.rstrip() == until.rstrip():
                if reply.stopped_at == stop:
                    return False
                raise self._lacks("it takes the stop string away and does not say which one it was")
            raise self._lacks("it does not stop at a stop string")
        raise self._lacks("its model wrote nothing that stop strings could be tried with", "see that the model answers at all")

    def gives_many(self) -> bool:
        """Whether `n` is honoured."""
        try:
            return len(self._ask(_QUESTION, max_tokens=2, n=2, temperature=1.0, seed=0).replies) == 2
        except RejectedError:
            return False

    def sees_images(self) -> bool:
        """Whether an image is taken, and makes the prompt longer."""
        buffer = io.BytesIO()
        PILImage.new("RGB", (64, 64), "red").save(buffer, "PNG")
        content = [image_part(buffer.getvalue()), {"type": "text", "text": _QUESTION}]
        try:
            seen = self._length(self._ask(content, max_tokens=1))
        except RejectedError:
            return False
        return seen > self._length(self._ask(_QUESTION, max_tokens=1))

    def _needed(self, question: Any, begun: str | None = None, **keys: Any) -> Answer:
        try:
            return self._ask(question, begun, **keys)
        except AccessError:
            raise
        except RejectedError as error:
            raise self._lacks(f"continue_final_message is refused: {error.problems[0].what}") from None

    def _ask(self, question: Any, begun: str | None = None, **keys: Any) -> Answer:
        return ask_served(self.server, self.served, [{"role": "user", "content": question}], begun or "", {**GREEDY, **keys})

    def _length(self, found: Answer) -> int:
        if found.prompt_tokens is None:
            raise self._lacks("it does not tell how long a prompt is (usage.prompt_tokens): nothing can be checked")
        return found.prompt_tokens

    def _lacks(self, what: str, remedy: str = _SERVERS) -> AccessError:
        return AccessError(Problem(f"{self.server.url} · {self.served.name}", what, remedy))


def _inside(text: str) -> str | None:
    """A piece of a text, late in it but not at its end; white space and halves of characters are none."""
    pieces = {match.group(): text.index(match.group()) for match in re.finditer(r"[^\s\ufffd]{1,4}", text)}
    inner = [piece for piece, place in pieces.items() if place + len(piece) < len(text)]
    return max(inner, key=pieces.__getitem__, default=None)
