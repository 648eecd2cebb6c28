"""Whole searches on a server that fails in one phase of one question: the others are as if it had not."""

import time
from dataclasses import replace

import pytest

from lora_cot.engines.chat import Patience
from lora_cot.engines.remote import RemoteEngine
from lora_cot.engines.retries import Circuit
from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.run import answer
from lora_cot.types import Exchange, Sample
from tests.openai_fake import FakeOpenAI
from tests.scripted_server import Fault, serve
from tests.search.scripted import plain

FORMAT = FORMATS["four_stage"]
SAMPLES = [Sample(name, (Exchange(f"Is the {name} one red?"),)) for name in ("first", "bad", "last")]
PATIENT = Patience(timeout_seconds=1.0, tries=1)


def is_judge(body):
    text = str(body["messages"])
    return "Response 1: " in text or "Now you act as a judge" in text


PHASES = {
    "draw": lambda body: not is_judge(body) and body["messages"][-1]["role"] == "user",
    "go on": lambda body: not is_judge(body) and body["messages"][-1]["role"] == "assistant",
    "judge": is_judge,
}
"""Which requests of a question fail: its first candidates, those that go on from a winner, its verdicts."""
FAULTS = {
    "hangs": lambda _found: Fault(seconds=1.2),
    "500": lambda _found: Fault(500),
    "drops": lambda _found: Fault(body="{", drop=True),
    "another model": lambda found: {**found, "model": "another"},
}


@pytest.fixture(scope="module")
def run():
    """Searches all questions on one server, where some requests of the bad one fail."""
    fake, fails = FakeOpenAI(), []

    def reply(body, number):
        found = fake(body, number)
        return next((fault(found) for phase, fault in fails if "bad" in str(body["messages"]) and phase(body)), found)

    with serve(reply) as server:
        server.models = ["tiny"]
        opened = RemoteEngine.open(server.url, FORMAT, patience=PATIENT)

        def run(*failing, **keys):
            fails[:] = [failing] if failing else []
            engine = replace(opened, link=replace(opened.link, circuit=Circuit()))
            config = SearchSection(**{"strategy": "stage_beam", "candidates": 2, "scorer": "self_judge", **keys})
            return answer(engine, FORMAT, SAMPLES, config)

        yield run
        opened.close()


@pytest.fixture(scope="module")
def whole(run):
    """What comes of the settings without faults."""
    return {faithful: plain(run(faithful=faithful)) for faithful in (False, True)}


CASES = [(fault, phase, False) for fault in FAULTS for phase in PHASES if (fault, phase) != ("hangs", "judge")]


@pytest.mark.parametrize(("fault", "phase", "faithful"), [*CASES, ("500", "judge", True), ("another model", "judge", True)])
def test_a_fault_stays_in_its_question(fault, phase, faithful, run, whole):
    """Without a verdict likelihood decides and the text is whole; without a text the question ends, and says so."""
    found = run(PHASES[phase], FAULTS[fault], faithful=faithful)
    first, bad, last = plain(found)
    assert [first, last] == [whole[faithful][0], whole[faithful][2]]
    totals = bad["totals"]
    if phase == "judge":
        assert bad["stopped"] == "complete" and [stage.closed for stage in found[1].parsed.stages] == [True] * 4
        assert totals["judge_failures"] == sum(len(step["comparisons"]) for step in bad["steps"]) > 0
        assert faithful or totals["judge_tokens"] == 0  # a check of a reasoning does not name its question, and is answered
    else:
        assert bad["stopped"].startswith("the engine gave no text: ") and bad["answer"] is None
        assert len(bad["stages"]) == (phase == "go on")
        assert all(one["problem"] for one in bad["steps"][-1]["candidates"])


@pytest.mark.parametrize("phase", PHASES)
def test_a_deadline_ends_what_hangs(phase, run):
    """At it, whatever is asked then: the text is what there is."""
    begin = time.monotonic()
    bad = run(PHASES[phase], FAULTS["hangs"], deadline_seconds=0.5)[1]
    assert time.monotonic() - begin < 1.5
    assert bad.stopped.startswith("out of time: ") and (phase == "draw") == (bad.text == "")
