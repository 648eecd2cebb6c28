"""A server is seen to do what a stage search needs, or refused with what it lacks."""

import pytest

from lora_cot.engines.capabilities import _inside
from lora_cot.engines.chat import ChatServer, Patience
from lora_cot.engines.remote import RemoteEngine
from lora_cot.engines.served import find_served
from lora_cot.errors import AccessError, EngineError
from lora_cot.formats import FORMATS
from tests.openai_fake import END, FakeOpenAI
from tests.scripted_server import KEY, Fault, serve

QUICK = Patience(timeout_seconds=5, tries=1)


def opened(models=("tiny",), model=None, **habits):
    """An engine on a server of such habits."""
    with serve(FakeOpenAI(**habits)) as server:
        server.models = models if isinstance(models, Fault) else list(models)
        return RemoteEngine.open(server.url, FORMATS["four_stage"], model, KEY, QUICK)


WHOLE = "continues a text, stops at strings · n · log-probabilities, 20 a place · images"
SEEN = {
    "all": ({}, WHOLE),
    "no n": ({"most_choices": 1}, WHOLE.replace("n · log", "no n: one request a candidate · log")),
    "the stop string is taken away and told": ({"keeps_stop": False}, WHOLE.replace("strings", "strings (put back here)")),
    "five likely tokens": ({"most_top": 5}, WHOLE.replace("20", "5")),
    "likely tokens left out": ({"lists_top": False}, WHOLE.replace("20", "0")),
    "none but the token itself": ({"most_top": 0}, WHOLE.replace("20", "0")),
    "one word for ever": ({"says": " red"}, WHOLE),
    "one sign for ever, and the stop string taken away": (
        {"says": "#", "keeps_stop": False},
        WHOLE.replace("strings", "strings (put back here)"),
    ),
    "no log-probabilities": ({"logprobs": False}, WHOLE.replace("log-probabilities, 20 a place", "no log-probabilities")),
    "images refused": ({"images": False}, WHOLE.replace("· images", "· no images")),
    "images left out": ({"blind": True}, WHOLE.replace("· images", "· no images")),
}


@pytest.mark.parametrize(("habits", "line"), SEEN.values(), ids=SEEN)
def test_what_a_server_can_do(habits, line):
    """In one line; what is missing and can be done without is used without."""
    found = opened(**habits)
    assert str(found.link.capabilities) == line
    assert "\n" not in str(found) and KEY not in repr(found) and str(found).startswith("tiny at http://")


REFUSED = {
    "continue_final_message is not honoured": {"continues": False},
    "continue_final_message repeats": {"echoes": True},
    "continue_final_message is refused: it answers 400: Unrecognized": {"refuses": "continue_final_message"},
    "a plain question in the form of vLLM and SGLang: it answers 400: Unrec": {"refuses": "no_stop_trim"},
    "it does not stop at a stop string": {"stops": False},
    "takes the stop string away and does not say": {"keeps_stop": False, "tells_stop": False},
    "does not tell how long a prompt is": {"counts": False},
    "'tiny' was asked for and 'another' answered · name the model": {"name": "another"},
    "wrote nothing that stop strings could be tried with": {"says": END},
}


@pytest.mark.parametrize(("told", "habits"), REFUSED.items(), ids=REFUSED)
def test_what_a_search_needs(told, habits):
    """With what is lacking, and a remedy."""
    with pytest.raises(AccessError, match=told) as caught:
        opened(**habits)
    assert caught.value.exit_code == 2 and all(problem.remedy for problem in caught.value.problems)


def test_a_stop_string_that_is_tried():
    """Late in the text, so that an ignored one shows; never where the text ends anyway."""
    assert _inside("one two six") == "two" and _inside("#" * 24) == "####"
    assert _inside("one\ufffd two\ufffd") == "two" and _inside("a b a") == "b"
    assert _inside("one") is None and _inside(" \ufffd\n") is None and _inside("") is None


def test_a_server_that_drops_the_begun_answer_does_not_continue():
    """The prompt must be longer with it than without."""
    fake = FakeOpenAI()

    def answer(body, number):
        if body.get("continue_final_message"):
            dropped = {key: value for key, value in body.items() if not key.startswith(("continue", "add_gen"))}
            return fake(dropped | {"messages": body["messages"][:-1]}, number)
        return fake(body, number)

    with serve(answer) as server, pytest.raises(AccessError, match="not honoured"):
        server.models = ["tiny"]
        RemoteEngine.open(server.url, FORMATS["four_stage"], patience=QUICK)


class TestNames:
    """Which model is asked."""

    def find(self, models, model):
        with serve([]) as server:
            server.models = models
            return find_served(ChatServer(server.url, KEY, QUICK), model)

    def test_the_only_one(self):
        """It need not be named."""
        assert self.find(["tiny"], None).name == "tiny"
        assert opened(models=["tiny"]).served.name == "tiny"

    def test_one_of_several(self):
        """It must be; a near name is told."""
        assert self.find(["tiny", "other"], "other").name == "other"
        with pytest.raises(AccessError, match="it serves tiny, other · name the one to use: --engine-model"):
            self.find(["tiny", "other"], None)
        with pytest.raises(AccessError, match="does not serve 'tinny' · did you mean 'tiny'"):
            self.find(["tiny", "other"], "tinny")

    def test_a_root_is_an_alias(self):
        """It is asked for by its served name, and may answer by either."""
        listed = Fault(body={"data": [{"id": "served", "root": "/models/tiny"}]})
        found = self.find(listed, "/models/tiny")
        assert found.name == "served" and found.is_named("served") and found.is_named("/models/tiny") and found.is_named(None)
        assert not found.is_named("tiny")
        assert opened(models=listed, name="/models/tiny").served.name == "served"

    def test_without_a_list(self):
        """The name as it is given, which there must be."""
        assert opened(models=Fault(404), model="tiny").served.name == "tiny"
        with pytest.raises(AccessError, match="lists no models · name the one"):
            self.find(Fault(404), None)


def test_a_wrong_key_and_nobody_there():
    """As everywhere."""
    with pytest.raises(AccessError, match="give a key") as caught:
        opened(models=Fault(401, {"error": f"wrong {KEY}"}))
    assert KEY not in str(caught.value)
    with pytest.raises(EngineError, match="no answer after 1 try"):
        opened(models=Fault(500))
