"""A server that follows OpenAI's and vLLM's semantics over a model that is a function of the text before it.

The model writes four stages of a few words. What it writes next depends on nothing but the text so far and on a draw, so
that going on from a part of an answer is the same as writing it in one piece. Every habit of a worse server is a switch.
"""

import hashlib
import math
import random
import re
from dataclasses import dataclass

WORDS = [" red", " blue", " two", " circles", " Yes", "."]
STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
END = "</s>"
TOKEN = re.compile(r"\s*\w+|\s*[^\w\s]+|\s+")


def digest(text):
    """A number that the text alone decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def odds(prompt, written):
    """The model: the tokens that may come next, each with its probability."""
    if prompt.endswith("1 or 2. ASSISTANT:"):
        share = 0.1 + 0.6 * (digest(prompt) % 1000) / 1000
        return [(" 1", share * 0.8), ("1", share * 0.2), (" 2", 0.9 - share), (" I", 0.1)]
    done = written.count("</")
    if done == len(STAGES) and written.endswith(">"):
        return [(END, 1.0)]
    opened = written.count("<") - done
    stage = STAGES[min(done if opened > done else opened, 3)]
    if written.endswith("</"):
        return [(STAGES[done - 1], 1.0)]
    if written.endswith("</" + STAGES[done - 1]):
        return [(">", 1.0)]
    if opened == done:
        return [(" <" + stage + ">" if not written else "\n\n<" + stage + ">", 1.0)]
    words = len(TOKEN.findall(written.rpartition(">")[2]))
    if words >= 6:
        return [(" </", 1.0)]
    closing = [(" </", 0.5)] if words >= 2 else []
    weights = [1 + digest(f"{prompt}{written}{word}") % 100 for word in WORDS]
    share = (0.5 if closing else 1.0) / sum(weights)
    return [*((word, weight * share) for word, weight in zip(WORDS, weights, strict=True)), *closing]


@dataclass
class Habits:
    """How a server differs from one that does everything."""

    name: str = "tiny"
    continues: bool = True
    echoes: bool = False
    keeps_stop: bool = True
    tells_stop: bool = True
    stops: bool = True
    most_choices: int = 128
    logprobs: bool = True
    most_top: int = 20
    lists_top: bool = True
    images: bool = True
    blind: bool = False
    """It takes images and leaves them out."""
    counts: bool = True
    refuses: str = ""
    """A key that is not known, and refused."""
    says: str = ""
    """All that the model ever writes, again and again."""


class FakeOpenAI:
    """Call it with a request's body and number, as `scripted_server.serve` does."""

    def __init__(self, **habits):
        self.habits = Habits(**habits)

    def __call__(self, body, _number):
        from tests.scripted_server import Fault

        habits = self.habits
        if (why := self.refused(body)) is not None:
            return Fault(400, {"error": {"message": why}})
        prompt, begun = self.render(body["messages"], body)
        greedy = body.get("temperature", 1.0) == 0
        choices = [
            self.choice(prompt, begun, body, None if greedy else random.Random(f"{body.get('seed')}/{number}"), number)
            for number in range(min(body.get("n", 1), habits.most_choices))
        ]
        counts = [choice.pop("tokens") for choice in choices]
        usage = {"prompt_tokens": len(TOKEN.findall(prompt + begun)), "completion_tokens": sum(counts)}
        body = {"id": "c", "object": "chat.completion", "model": habits.name, "choices": choices}
        return body | ({"usage": usage} if habits.counts else {})

    def refused(self, body):
        if self.habits.refuses in body:
            return f"Unrecognized request argument: {self.habits.refuses}"
        if body.get("top_logprobs", 0) > self.habits.most_top or (body.get("logprobs") and not self.habits.logprobs):
            return "too many logprobs"
        if body.get("n", 1) > 1 and body.get("temperature") == 0:
            return "n must be 1 when using greedy sampling"
        if not self.habits.images and "image_url" in str(body["messages"])[:500]:
            return "this model takes no images"
        return None

    def render(self, messages, body):
        """The prompt, and what was begun of the answer."""
        continues = body.get("continue_final_message") and self.habits.continues
        if continues:
            assert messages[-1]["role"] == "assistant" and not body.get("add_generation_prompt", True)
        text = ""
        for message in messages[: -1 if continues else None]:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            said = "".join(part["text"] if part["type"] == "text" else "<image>" * (not self.habits.blind) for part in parts)
            text += f"USER: {said} " if message["role"] == "user" else f"ASSISTANT: {said}{END}"
        # the template writes the space before an answer, as the model does that begins one
        return text + "ASSISTANT:", " " + messages[-1]["content"] if continues else ""

    def choice(self, prompt, begun, body, draws, number):
        text, told, reason, at = "", [], "length", None
        for _ in range(body["max_tokens"]):
            options = [(self.habits.says, 1.0)] if self.habits.says else odds(prompt, begun + text)
            token, chance = max(options, key=lambda pair: pair[1]) if draws is None else draw(options, draws)
            top = sorted(options, key=lambda pair: -pair[1])[: body.get("top_logprobs", 0) * self.habits.lists_top]
            told.append({"token": token, "logprob": math.log(chance), "top_logprobs": [entry(pair) for pair in top]})
            if token == END:
                reason = "stop"
                break
            text += token
            found = next((stop for stop in body.get("stop", []) if self.habits.stops and stop in text), None)
            if found:
                kept = self.habits.keeps_stop and body.get("include_stop_str_in_output")
                text = text[: text.index(found) + (len(found) if kept else 0)]
                reason, at = "stop", found
                break
        if self.habits.echoes:
            text = begun.lstrip() + text
        made = {
            "index": number,
            "message": {"role": "assistant", "content": text},
            "finish_reason": reason,
            "tokens": len(told),
        }
        logprobs = {"logprobs": {"content": told}} if body.get("logprobs") else {}
        return made | logprobs | ({"stop_reason": at} if self.habits.tells_stop else {})


def entry(pair):
    """A likely token as it is listed."""
    return {"token": pair[0], "logprob": math.log(pair[1])}


def draw(options, draws):
    """One token by its probability."""
    tokens, chances = zip(*options, strict=True)
    place = draws.choices(range(len(tokens)), chances)[0]
    return tokens[place], chances[place]
