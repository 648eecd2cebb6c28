"""An engine without a model: it writes what a script says and judges by a function of the prompt."""

import copy
import itertools
import re
from collections import Counter

from lora_cot.engines.base import Candidate
from lora_cot.errors import Problem, SearchError

SENTENCE = re.compile(r"[.!?]$")


class Clock:
    """A clock that stands still but for what an engine writes; takes the place of the module `time`."""

    def __init__(self, token_seconds=1.0, judge_seconds=0.0):
        self.now, self.token_seconds, self.judge_seconds = 0.0, token_seconds, judge_seconds

    def monotonic(self):
        return self.now

    def perf_counter(self):
        return self.now


class ScriptedEngine:
    """Implements `Engine`. A state is (sample id, text so far), a token is a word. Notes down what it is asked."""

    def __init__(self, script, judge=lambda prompt: [0.0, 0.0], says=lambda prompt: "", clock=None, is_encoder_decoder=False):
        """
        Args:
            script: (state, seed) → (text, mean log-probability), and third why it failed, if it did; of a split format,
                such a function for each pass.
            judge: text of a prompt → log-probabilities of the options.
            says: text of a prompt → what a judge writes; or such a triple.
            clock: stops what is not written by its deadline.
            is_encoder_decoder: it cannot be asked plainly.
        """
        self.script, self.judge, self.says, self.clock = script, judge, says, clock
        self.is_encoder_decoder = is_encoder_decoder
        self.adapter = None
        """Of an engine that is asked plainly: whether with its adapter."""
        self.cot_format = None
        """The pass whose prompts are asked."""
        self.asked = []
        """(pass, {sample id: prompt}) for each call of `start` of a pass."""
        self.calls = []
        """The asks of each call of `extend`."""
        self.written = Counter()
        """Tokens by sample id, as they were generated."""
        self.judged = []
        """(samples, adapter) for each call of `choose`, and of `start` of a judge."""

    @property
    def prompts(self):
        """Text of every judge prompt, in order."""
        return [sample.last.question for samples, _ in self.judged for sample in samples]

    @property
    def seeds(self):
        """Of all candidates, in order."""
        return [seed for asks in self.calls for ask in asks for seed in ask.seeds]

    def for_pass(self, cot_format):
        engine = copy.copy(self)
        engine.cot_format, engine.script = cot_format, self.script[cot_format.name]
        return engine

    def for_search(self):
        return self

    def plain(self, adapter=True):
        if self.is_encoder_decoder:
            raise SearchError(Problem("search.scorer", "an encoder-decoder cannot judge", "use logprob"))
        engine = copy.copy(self)
        engine.adapter, engine.calls, engine.written = adapter, [], Counter()
        engine.script = lambda state, _seed: (said, -1.0) if isinstance(said := self.says(state[0]), str) else said
        return engine

    def start(self, samples):
        if self.adapter is not None:
            self.judged.append((list(samples), self.adapter))
            return [(sample.last.question, "") for sample in samples]
        if self.cot_format is not None:
            prompts = {sample.id: self.cot_format.question(sample.last, sample.choices) for sample in samples}
            self.asked.append((self.cot_format.name, prompts))
        return [(sample.id, "") for sample in samples]

    def extend(self, asks):
        self.calls.append(list(asks))
        assert all(ask.max_new_tokens > 0 and ask.seeds for ask in asks)
        drawn = [[self._candidate(ask, seed) for seed in ask.seeds] for ask in asks]
        if self.clock is not None:
            longest = max((c.tokens for candidates in drawn for c in candidates), default=0)
            self.clock.now += longest * self.clock.token_seconds
        return drawn

    def _candidate(self, ask, seed):
        whole, mean, *problem = self.script(ask.state, seed)
        words, ended = re.findall(r"\s*\S+(?:\s+$)?|\s+$", whole), "end"
        text, tokens = "", 0
        for word in words:
            if self._is_over(ask, tokens):
                ended = "deadline"
                break
            if tokens == ask.max_new_tokens:
                ended = "length"
                break
            text, tokens = text + word, tokens + 1
            found = [text.index(stop) + len(stop) for stop in ask.stop if stop in text]
            if found:
                text, ended = text[: min(found)], "stop"
                break
            if ask.sentences and SENTENCE.search(text):
                ended = "sentence"
                break
        ended = "failed" if problem else ended
        self.written[ask.state[0]] += tokens
        state = (ask.state[0], ask.state[1] + text) if ask.keep_states else None
        return Candidate(text, tokens, mean * tokens, ended, state, problem="".join(problem))

    def _is_over(self, ask, tokens):
        if ask.deadline is None or self.clock is None:
            return False
        return self.clock.now + tokens * self.clock.token_seconds >= ask.deadline

    def choose(self, samples, options, deadline=None):
        if samples:
            self.judged.append((list(samples), self.adapter))
        if self.clock is not None:
            self.clock.now += self.clock.judge_seconds * len(samples)
        return [self.judge(sample.last.question) for sample in samples]


def by_stage(table):
    """A script of {stage: [(text, mean log-probability), …]}; a text that ends in … never closes its stage.

    A candidate that was cut by the question's budget goes on with its own text.
    """

    def script(state, seed):
        *_, step, number = seed.split("/")
        stage = step.removeprefix("more.").split(".")[0]
        texts = [
            (f"<{stage}> {text}" if text.endswith("…") else f"<{stage}> {text} </{stage}>", mean, *problem)
            for text, mean, *problem in table[stage]
        ]
        if not step.startswith("more."):
            return texts[int(number)]
        written = state[1][state[1].rindex(f"<{stage}>") :]
        text, *rest = next(one for one in texts if one[0].startswith(written))
        return text[len(written) :], *rest

    return script


def responses(prompt):
    """The two texts that a judge prompt shows."""
    return tuple(re.findall(r"^(?:Response|Repsonse) [12]: (.*)$", prompt, re.MULTILINE))


def plain(completions):
    """Completions as plain values without what depends on a clock."""

    def clean(value):
        if isinstance(value, dict):
            return {key: clean(one) for key, one in value.items() if key != "seconds"}
        return [clean(one) for one in value] if isinstance(value, list) else value

    return [clean(completion.to_json()) for completion in completions]


def check_accounts(completion, engine):
    """What was generated is what the trace and the engine say, and what was kept is the returned text."""
    drawn = [candidate for step in completion.trace for candidate in step.candidates]
    assert [candidate.number for candidate in drawn] == list(range(len(drawn)))
    assert completion.generated_tokens == sum(c.tokens for c in drawn) == engine.written[completion.sample_id]
    chosen = [c for c in drawn if c.chosen]
    assert completion.kept_tokens == sum(c.tokens for c in chosen)
    assert all(later.parent == earlier.number for earlier, later in itertools.pairwise(chosen))
    assert completion.judge_calls == sum(step.judge_prompts for step in completion.trace)
    return "".join(c.text for c in chosen)
