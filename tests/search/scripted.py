"""An engine without a model: it writes what a script says and judges by a function of the prompt."""

import copy
import re
from collections import namedtuple

from lora_cot.engines.base import Candidate

Call = namedtuple("Call", "states seeds stop max_new_tokens sampling")
"""What one call of `extend` was given."""


class ScriptedEngine:
    """Implements `Engine`. A state is (sample id, text so far), a token is a word. Notes down what it is asked."""

    def __init__(self, script, judge=lambda prompt: [0.0, 0.0]):
        """
        Args:
            script: (state, seed) → (text, mean log-probability); of a split format, such a function for each pass.
            judge: text of a prompt → log-probabilities of the options.
        """
        self.script, self.judge = script, judge
        self.cot_format = None
        """The pass whose prompts are asked."""
        self.asked = []
        """(pass, {sample id: prompt}) for each call of `start` of a pass."""
        self.calls = []
        """A `Call` for each call of `extend`."""
        self.judged = []
        """(samples, adapter) for each call of `choose`."""

    @property
    def prompts(self):
        """Text of every judge prompt, in order."""
        return [sample.last.question for samples, _ in self.judged for sample in samples]

    def for_pass(self, cot_format):
        engine = copy.copy(self)
        engine.cot_format, engine.script = cot_format, self.script[cot_format.name]
        return engine

    def start(self, samples):
        if self.cot_format is not None:
            prompts = {sample.id: self.cot_format.question(sample.last, sample.choices) for sample in samples}
            self.asked.append((self.cot_format.name, prompts))
        return [(sample.id, "") for sample in samples]

    def extend(self, states, seeds, stop, max_new_tokens, sampling, keep_states=True):
        self.calls.append(Call(list(states), [list(each) for each in seeds], stop, max_new_tokens, sampling))
        return [
            [self._candidate(state, seed, stop, max_new_tokens) for seed in own]
            for state, own in zip(states, seeds, strict=True)
        ]

    def _candidate(self, state, seed, stop, max_new_tokens):
        whole, mean = self.script(state, seed)
        words = re.findall(r"\s*\S+|\s+$", whole)
        text = "".join(words[:max_new_tokens])
        if stop is not None and stop in text:
            text = text[: text.index(stop) + len(stop)]
        closed = stop in text if stop is not None else len(words) <= max_new_tokens
        tokens = len(text.split())
        return Candidate(text, tokens, mean * tokens, closed, (state[0], state[1] + text))

    def choose(self, samples, options, adapter=True):
        self.judged.append((list(samples), adapter))
        return [self.judge(sample.last.question) for sample in samples]


def by_stage(table):
    """A script of {stage: [(text, mean log-probability), …]}; a text that ends in … never closes its stage."""

    def script(_state, seed):
        *_, stage, number = seed.split("/")
        text, mean = table[stage][int(number)]
        return (f"<{stage}> {text}" if text.endswith("…") else f"<{stage}> {text} </{stage}>"), mean

    return script


def responses(prompt):
    """The two texts that a judge prompt shows."""
    return tuple(re.findall(r"^Response [12]: (.*)$", prompt, re.MULTILINE))
