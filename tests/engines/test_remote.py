"""A served model as an engine: the same texts as in one piece, whatever a server lacks; a fault stays where it is."""

import io
import json
import math
import re
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest
from PIL import Image

from lora_cot.data.chat import DATE
from lora_cot.engines import remote
from lora_cot.engines.base import Ask, Sampling
from lora_cot.engines.chat import Patience
from lora_cot.engines.remote import RemoteEngine
from lora_cot.engines.retries import Retries
from lora_cot.errors import DataError, SearchError
from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.run import answer
from lora_cot.types import Exchange, Sample
from tests.openai_fake import FakeOpenAI, odds
from tests.scripted_server import KEY, Fault, serve

FORMAT = FORMATS["four_stage"]
CLOSING = tuple(FORMAT.closing(stage) for stage in FORMAT.stages)
QUICK = Patience(timeout_seconds=5, tries=1)
DRAWN = Sampling(1.0, 0.9)


def picture():
    buffer = io.BytesIO()
    Image.effect_noise((48, 48), 90).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def sample(question="How many circles?", images=(), **keys):
    return Sample("s", (Exchange(question),), images, **keys)


class Script:
    """A fake server whose answers a test may change once the engine is open."""

    def __init__(self, **habits):
        self.fake, self.fault = FakeOpenAI(**habits), None

    def __call__(self, body, number):
        return self.fault(body) if self.fault else self.fake(body, number)


@pytest.fixture
def running():
    """An engine of a server of some habits, the server, and the script to change."""
    with ExitStack() as stack:

        def run(patience=QUICK, models=("tiny",), model="tiny", others=None, cot_format=FORMAT, **habits):
            script = Script(**habits)
            server = stack.enter_context(serve(script))
            server.models = list(models)
            engine = RemoteEngine.open(server.url, cot_format, model, KEY, patience, others)
            stack.callback(engine.close)
            server.requests.clear()
            return engine, server, script

        yield run


def drawn(engine, state, count=3, **keys):
    ask = Ask(state, [f"seed{n}" for n in range(count)], 40, **{"stop": CLOSING[:1], "sampling": DRAWN, **keys})
    return engine.extend([ask])[0]


def staged(engine, state, **keys):
    """The greedy answer stage by stage: its pieces."""
    pieces = []
    for closing in CLOSING:
        (candidate,) = drawn(engine, state, 1, stop=(closing,), sampling=Sampling(), **keys)
        assert candidate.ended == "stop" and candidate.text.endswith(closing), candidate
        pieces.append(candidate)
        state = candidate.state
    return pieces


HABITS = {
    "whole": {},
    "no n": {"most_choices": 1},
    "stop string taken away": {"keeps_stop": False},
    "no log-probabilities": {"logprobs": False},
}


@pytest.mark.parametrize("habits", HABITS.values(), ids=HABITS)
def test_stage_by_stage_is_the_text_in_one_piece(running, habits):
    """At temperature 0, whatever a server lacks; an image and earlier exchanges are in the prompt each time."""
    engine, _, _ = running(**habits)
    gold = {stage.name: f"gold {stage.name}" for stage in FORMAT.stages}
    asked = Sample("s", (Exchange("First?", stages=gold, answer="4"), Exchange("How many?")), (picture(),))
    (state,) = engine.start([asked])
    (whole,) = engine.extend([Ask(state, ["a"], 200)])[0]
    pieces = staged(engine, state)
    assert "".join(piece.text for piece in pieces) == whole.text and whole.ended == "end"
    assert sum(piece.tokens for piece in pieces) == whole.tokens - 1  # its end token
    total = sum(piece.logprob for piece in pieces)
    assert total == pytest.approx(whole.logprob) if habits.get("logprobs", True) else math.isnan(total)


@pytest.mark.parametrize("habits", [{}, {"most_choices": 1}], ids=["n", "no n"])
def test_candidates(running, habits):
    """As many as seeds, in their order, different; the same again for the same seeds, in whatever company."""
    engine, server, _ = running(**habits)
    first, second = engine.start([sample("a?"), sample("b?")])
    found = drawn(engine, first, 4)
    assert len({candidate.text for candidate in found}) > 1
    for candidate in found:
        assert candidate.ended == "stop" and candidate.text.count(CLOSING[0]) == 1 and candidate.seconds > 0
        assert candidate.logprob < 0 < candidate.tokens and not candidate.tokens_shared
        assert candidate.state.begun == candidate.text and candidate.state.messages is first.messages
    assert len(server.requests) == (1 if not habits else 4)
    asks = [Ask(state, [f"seed{n}" for n in range(4)], 40, CLOSING[:1], sampling=DRAWN) for state in (second, first)]
    again = engine.extend(asks)[1]
    assert [candidate.text for candidate in again] == [candidate.text for candidate in found]
    assert [c.text for c in drawn(engine, second, 4)] != [c.text for c in found]


def test_what_a_request_holds(running):
    """All that the ask says; a begun answer as the last message, without what the template writes before it."""
    engine, server, _ = running()
    (state,) = engine.start([sample(choices=("one", "two"))])
    ask = Ask(state, ["a", "b"], 7, ("</A>", "</B>"), sampling=Sampling(0.5, 0.8))
    engine.extend([ask])
    (body,) = server.requests
    assert body["messages"] == [{"role": "user", "content": "How many circles?\nOptions: (A) one (B) two"}]
    wanted = {"model": "tiny", "max_tokens": 7, "n": 2, "stop": ["</A>", "</B>"], "temperature": 0.5, "top_p": 0.8}
    assert wanted.items() <= body.items() and body["logprobs"] is True and "continue_final_message" not in body
    assert body["chat_template_kwargs"] == {"date_string": DATE}
    assert body["include_stop_str_in_output"] and body["no_stop_trim"] and body["separate_reasoning"] is False
    assert body["seed"] == remote._seed(["a", "b"]) != remote._seed(["ab"]) and 0 <= body["seed"] < 2**31
    begun = replace(state, begun=" <A> x </A>")
    engine.extend([Ask(begun, ["a"], 7)])
    body = server.requests[-1]
    assert body["messages"][1:] == [{"role": "assistant", "content": "<A> x </A>"}] and "stop" not in body
    assert body["continue_final_message"] is True and body["add_generation_prompt"] is False and "top_p" not in body
    assert server.keys[-1] == f"Bearer {KEY}"


def test_greedy_candidates_are_one(running):
    """A single request, which has no `n`: servers refuse one where nothing is drawn."""
    for habits in ({}, {"most_choices": 1}):
        engine, server, _ = running(**habits)
        found = drawn(engine, engine.start([sample()])[0], 3, sampling=Sampling())
        assert len({c.text for c in found}) == 1 and len(found) == 3 and len(server.requests) == 1
        assert server.requests[0]["n"] == 1
        assert [c.spent for c in found] == [found[0].tokens, 0, 0] and len({c.mean_logprob for c in found}) == 1


def test_what_a_search_is_charged(running):
    """Copies of one reply nothing; a share of what several took is told as one in the trace."""
    for habits, temperature, shared in (({}, 0.0, False), ({}, 0.6, False), ({"logprobs": False}, 0.6, True)):
        engine, _, _ = running(**habits)
        config = SearchSection(strategy="best_of_n", candidates=3, temperature=temperature)
        (completion,) = answer(engine, FORMAT, [sample()], config)
        tokens = [candidate.tokens for candidate in completion.trace[0].candidates]
        assert [candidate.tokens_shared for candidate in completion.trace[0].candidates] == [shared] * 3
        assert all(tokens) if temperature else tokens == [completion.kept_tokens, 0, 0]
        assert completion.generated_tokens == sum(tokens)


def test_sentences(running):
    """A candidate ends with a sentence too; sentence by sentence is the text in one piece."""
    engine, _, _ = running()
    (state,) = engine.start([sample("What is seen?")])
    (whole,) = engine.extend([Ask(state, ["a"], 200)])[0]
    text, ends = "", set()
    while "</CONCLUSION>" not in text:
        (candidate,) = drawn(engine, state, 1, stop=CLOSING, sentences=True, sampling=Sampling())
        assert candidate.ended in ("stop", "sentence") and candidate.text == candidate.text.rstrip()
        assert candidate.ended == "stop" or candidate.text.endswith((".", "!", "?"))
        text, state = text + candidate.text, candidate.state
        ends.add(candidate.ended)
    assert text == whole.text and ends == {"stop", "sentence"}


def test_a_length_and_an_end(running):
    """The budget is the server's; without a state nothing can be gone on from."""
    engine, _, _ = running()
    (state,) = engine.start([sample()])
    (short,) = engine.extend([Ask(state, ["a"], 2, CLOSING, keep_states=False)])[0]
    assert (short.ended, short.tokens, short.state) == ("length", 2, None)
    assert engine.extend([]) == [] and engine.extend([Ask(state, [], 5)]) == [[]]


def test_a_server_that_stops_to_honour_n(running):
    """The rest is asked for one by one, and so is all that comes after."""
    engine, server, script = running()
    (state,) = engine.start([sample()])
    script.fake.habits.most_choices = 2
    found = drawn(engine, state, 5)
    assert [c.ended for c in found] == ["stop"] * 5 and [body["n"] for body in server.requests] == [5, 1, 1, 1]
    server.requests.clear()
    drawn(engine, state, 2)
    assert [body["n"] for body in server.requests] == [1, 1]


def test_more_choices_than_were_asked_for(running):
    """Are left alone."""
    engine, _, script = running()
    (state,) = engine.start([sample()])
    script.fault = lambda body: script.fake(body | {"n": 5}, 0)
    assert len(drawn(engine, state, 2)) == 2


def test_tokens_that_are_not_counted_are_shared_out(running):
    """And marked; the log-probability is not known, never 0."""
    engine, _, _ = running(logprobs=False)
    found = drawn(engine, engine.start([sample()])[0], 3)
    assert all(c.tokens_shared and c.tokens > 0 and math.isnan(c.mean_logprob) for c in found)


def answered(**changes):
    """The fake's own answer, with these changes."""
    return lambda fake, body: fake(body, 0) | changes


def choice(**changes):
    """The fake's own answer, its first choice changed."""

    def change(fake, body):
        made = fake(body, 0)
        made["choices"][0] |= changes
        return made

    return change


def numbers(value):
    return choice(logprobs={"content": [{"token": "x", "logprob": value}]})


FAULTS = {
    "500": (lambda *_: Fault(500), "it answers 500"),
    "refused": (lambda *_: Fault(400, {"error": {"message": "too\nlong"}}), "it answers 400: too long"),
    "not found any more": (lambda *_: Fault(404), "it answers 404"),
    "another key": (lambda *_: Fault(401, {"error": f"not {KEY}"}), "it answers 401: not \\*\\*\\*"),
    "429 for an hour": (lambda *_: Fault(429, headers={"Retry-After": "3600"}), "asks to wait 3600 s"),
    "half a JSON": (lambda fake, body: Fault(body=json.dumps(fake(body, 0))[:200]), "no chat completion"),
    "a dropped stream": (lambda *_: Fault(body='{"choices": [', drop=True), "broke off"),
    "no choices": (answered(choices=[]), "no chat completion"),
    "another model": (answered(model="cheap"), "'tiny' was asked for and 'cheap' answered"),
    "NaN": (numbers(math.nan), "log-probability of nan"),
    "infinity": (numbers(-math.inf), "log-probability of -inf"),
    "more than sure": (numbers(3.0), "log-probability of 3.0"),
    "another stop": (choice(message={"content": "x"}, stop_reason="</X>"), "stopped at '</X>'"),
    "a filter": (choice(finish_reason="content_filter", message={"content": "x"}), "ended with 'content_filter'"),
    "no end": (choice(finish_reason=None, message={"content": "x"}), "it has no end"),
    "the image told back": (
        lambda _, body: Fault(400, {"error": {"message": f"bad {str(body['messages'])[:3000]}"}}),
        "it answers 400: bad",
    ),
    "no count": (lambda fake, body: choice(logprobs=None)(fake, body) | {"usage": None}, "how many"),
}


@pytest.mark.parametrize(("fault", "told"), FAULTS.values(), ids=FAULTS)
def test_a_fault_stays_with_its_ask(running, fault, told):
    """The others of the batch are kept; nothing secret or large is in a text, and nothing is raised."""
    engine, _, script = running()
    good, bad = engine.start([sample("good?"), sample("bad?", (picture(),))])
    before = drawn(engine, good)

    def answer(body):
        return fault(script.fake, body) if "bad?" in str(body) else script.fake(body, 0)

    script.fault = answer
    asks = [Ask(state, ["seed0", "seed1", "seed2"], 40, CLOSING[:1], sampling=DRAWN) for state in (bad, good)]
    found = engine.extend(asks)
    assert [c.text for c in found[1]] == [c.text for c in before]
    failed = [c for c in found[0] if c.ended == "failed"]
    assert failed and found[0][0] is not None and found[0][0].ended == "failed"
    for candidate in failed:
        assert (candidate.text, candidate.tokens, candidate.state) == ("", 0, None) and math.isnan(candidate.logprob)
        assert KEY not in repr(candidate) and "base64" not in repr(candidate) and "\n" not in candidate.problem
        assert len(candidate.problem) < 500
    assert re.search(told, failed[0].problem), failed[0].problem


def test_a_refused_request_stops_no_other(running, monkeypatch):
    """Those that wait for their turn are sent as they are."""
    monkeypatch.setattr(remote, "REQUESTS", 1)
    engine, server, script = running()
    states = engine.start([sample("bad?"), sample("good?")])
    script.fault = lambda body: Fault(400) if "bad?" in str(body) else script.fake(body, 0)
    found = engine.extend([Ask(state, ["a", "b", "c"], 40, CLOSING[:1], sampling=DRAWN) for state in states])
    assert [[c.ended for c in row] for row in found] == [["failed"] * 3, ["stop"] * 3] and len(server.requests) == 2
    rows = engine.plain().choose([sample("bad? 1 or 2."), sample("good? 1 or 2.")], ["1", "2"])
    assert all(map(math.isnan, rows[0])) and all(map(math.isfinite, rows[1]))


def test_one_bad_choice_of_several(running):
    """The others of the same answer are candidates."""
    engine, _, script = running()
    (state,) = engine.start([sample()])
    script.fault = lambda body: choice(finish_reason="abort", message={"content": "x"})(script.fake, body)
    assert [c.ended for c in drawn(engine, state)] == ["failed", "stop", "stop"]


def test_no_text_holds_the_key_or_the_image(running):
    """Not of a state, of an engine, or of a candidate."""
    engine, _, _ = running()
    (state,) = engine.start([sample("?", (picture(),))])
    shown = repr((engine, state, drawn(engine, state)))
    assert KEY not in shown and "base64" not in shown


def test_a_hang_ends_at_the_deadline(running):
    """Of its ask alone; what came is kept, and its state can be gone on from."""
    engine, _, script = running()
    slow, quick = engine.start([sample("slow?"), sample("quick?")])

    def answer(body):
        if "slow?" in str(body):
            time.sleep(1.5)
        return script.fake(body, 0)

    script.fault = answer
    begin = time.monotonic()
    asks = [Ask(s, ["a", "b"], 40, CLOSING[:1], sampling=DRAWN, deadline=begin + 0.4) for s in (slow, quick)]
    found = engine.extend(asks)
    assert time.monotonic() - begin < 1.2
    assert [c.ended for c in found[0]] == ["deadline"] * 2 and [c.ended for c in found[1]] == ["stop"] * 2
    late = found[0][0]
    assert (late.text, late.tokens, late.logprob, late.state) == ("", 0, 0.0, slow) and late.seconds >= 0.4
    assert not engine.link.circuit.is_open


def test_a_deadline_that_has_passed(running):
    """Nothing is sent."""
    engine, server, _ = running()
    (state,) = engine.start([sample()])
    found = drawn(engine, state, 2, deadline=time.monotonic() - 1, keep_states=False)
    assert [(c.ended, c.state) for c in found] == [("deadline", None)] * 2 and server.requests == []


def test_a_dead_server_is_given_up(running, monkeypatch):
    """After some requests in a row nothing more is sent, for a while; then one decides."""
    monkeypatch.setattr(remote, "REQUESTS", 1)
    engine, server, script = running()
    engine.link.circuit.rest_seconds = 0.3
    states = engine.start([sample(f"{n}?") for n in range(10)])
    script.fault = lambda body: Fault(500)
    found = engine.extend([Ask(state, ["a"], 5) for state in states])
    assert len(server.requests) == engine.link.circuit.most == 4
    assert all(c.ended == "failed" for (c,) in found) and "4 requests in a row got no answer" in found[-1][0].problem
    script.fault = None
    assert drawn(engine, states[0], 1)[0].ended == "failed"
    time.sleep(0.3)
    assert [c.ended for c in drawn(engine, states[0])] == ["stop"] * 3
    assert len(server.requests) == 5


def test_a_search_has_so_many_tries(running, monkeypatch):
    """All its requests share them; the next search has its own."""
    monkeypatch.setattr(remote, "Retries", lambda circuit: Retries(circuit, 3, 60))
    engine, server, script = running(Patience(timeout_seconds=5, tries=5, first_wait_seconds=0.01))
    engine.link.circuit.most = 100
    states = engine.start([sample("a?"), sample("b?")])
    script.fault = lambda body: Fault(500)
    found = engine.extend([Ask(state, ["a"], 5) for state in states])
    assert len(server.requests) == 2 + 3
    assert "the search has no tries left" in found[0][0].problem + found[1][0].problem
    engine.extend([Ask(engine.start([sample("c?")])[0], ["a"], 5)])
    assert len(server.requests) == 5 + 4


class TestChoose:
    """Odds of options."""

    def test_odds(self, running):
        """Those of the model, over all spellings."""
        engine, server, _ = running()
        asked = [sample(f"Which of {n}? Answer 1 or 2.") for n in range(3)]
        found = engine.plain().choose(asked, ["1", "2"])
        for one, body, row in zip(asked, server.requests, found, strict=True):
            true = dict(odds(f"USER: {one.last.question} ASSISTANT:", ""))
            assert [math.exp(value) for value in row] == pytest.approx([true["1"] + true[" 1"], true[" 2"]])
            assert body["top_logprobs"] == 20 and body["temperature"] == 0 and body["messages"][0]["role"] == "user"
        assert len({tuple(row) for row in found}) == 3

    def test_what_cannot_be_read(self, running):
        """Is no preference: for that prompt alone."""
        engine, _, script = running()
        asked = [sample(f"{n} 1 or 2.") for n in ("good", "bad", "worse", "refused")]

        def answer(body):
            text = str(body)
            if "worse" in text or "refused" in text:
                return Fault(500 if "worse" in text else 400)
            return numbers(math.nan)(script.fake, body) if "bad" in text else script.fake(body, 0)

        script.fault = answer
        found = engine.plain().choose(asked, ["1", "2"])
        assert all(map(math.isfinite, found[0])) and all(math.isnan(value) for row in found[1:] for value in row)

    def test_a_server_that_lists_no_likely_tokens(self, running):
        """Cannot judge by odds, and says so before anything is drawn for it; a judge that writes its verdict can."""
        engine, server, _ = running(most_top=0)
        settings = {"strategy": "best_of_n", "scorer": "self_judge", "candidates": 2}
        with pytest.raises(SearchError, match=r"does not list the likeliest tokens.*use another scorer"):
            answer(engine, FORMAT, [sample()], SearchSection(**settings))
        assert server.requests == []
        (completion,) = answer(engine, FORMAT, [sample()], SearchSection(**settings, faithful=True))
        assert completion.judge_calls == 1 and 0 < completion.judge_tokens <= 256

    def test_a_deadline_bounds_it(self, running):
        """A server that hangs is waited for no longer, and after it nothing is sent; what is not told is nan."""
        engine, server, script = running(Patience(timeout_seconds=30))
        script.fault = lambda body: Fault(seconds=2) if "slow" in str(body) else script.fake(body, 0)
        begin = time.monotonic()
        rows = engine.plain().choose([sample("slow 1 or 2."), sample("quick 1 or 2.")], ["1", "2"], begin + 0.3)
        assert time.monotonic() - begin < 1 and [math.isnan(row[0]) for row in rows] == [True, False]
        server.requests.clear()
        assert math.isnan(engine.plain().choose([sample("quick 1 or 2.")], ["1", "2"], begin)[0][0])
        assert server.requests == []


class TestNames:
    """Which served model answers."""

    def test_passes(self, running):
        """Each adapter under its own name; its prompt is the pass's."""
        two = FORMATS["two_stage"]
        others = {"rationale": "r", "answer": "a"}
        with serve(lambda body, number: FakeOpenAI(name=body["model"])(body, number)) as server:
            server.models = ["r", "a"]
            engine = RemoteEngine.open(server.url, two, None, KEY, QUICK, others)
            server.requests.clear()
            for one in two.passes:
                own = engine.for_pass(one)
                asked = Sample("s", (Exchange("Why?", stages={two.stages[0].name: "because"}),))
                own.extend([Ask(own.start([asked])[0], ["a"], 5)])
            assert [body["model"] for body in server.requests] == ["r", "a"]
            first, second = (body["messages"][0]["content"] for body in server.requests)
            assert second.startswith(first.partition("\n")[0]) and "because" in second and "because" not in first

    def test_a_pass_without_a_name(self, running):
        """Refused, with the remedy."""
        engine, _, _ = running(cot_format=FORMATS["two_stage"])
        with pytest.raises(SearchError, match=r"no served model is named for the pass answer.*answer=NAME"):
            engine.for_pass(FORMATS["two_stage"].passes[1])

    def test_judges(self, running):
        """The model itself with plain prompts, or its base where that is served."""
        engine, _, _ = running()
        assert engine.plain().cot_format.name == "direct" and engine.plain().served is engine.served
        with pytest.raises(SearchError, match=r"judge_adapter: off · .* · serve the base too, and name it: base=NAME"):
            engine.plain(adapter=False)
        engine, _, _ = running(models=["tiny", "big"], others={"base": "big"})
        assert engine.plain(adapter=False).served.name == "big" and engine.plain().served.name == "tiny"


def test_images(running, tmp_path):
    """Opened at the start, so that none is found broken later; refused where the served model sees none."""
    engine, _, _ = running()
    with pytest.raises(DataError):
        engine.start([sample("?", (tmp_path / "none.png",))])
    blind, _, _ = running(blind=True)
    assert len(blind.start([sample()])) == 1
    with pytest.raises(SearchError, match="takes no images there"):
        blind.start([sample("?", (picture(),))])
