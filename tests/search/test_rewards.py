"""Scores from outside: a server over HTTP, and functions of one's own."""

import base64
import io
import time
from importlib import metadata

import pytest
from PIL import Image

from lora_cot.engines import chat, image_parts
from lora_cot.errors import AccessError, SearchError
from lora_cot.formats import FORMATS
from lora_cot.recipe.search import SearchSection
from lora_cot.search import scorers
from lora_cot.search.run import answer
from lora_cot.serving.errors import of_failure
from lora_cot.types import Exchange, Sample
from tests.scripted_server import Fault, serve
from tests.search.scripted import ScriptedEngine, by_stage

FOUR_STAGE = FORMATS["four_stage"]
TABLE = {stage.name: [("a", -1.0), ("bb", -2.0), ("ccc", -3.0)] for stage in FOUR_STAGE.stages}


def question(images=(), choices=()):
    return Sample("q", (Exchange("What is it?"),), images, choices)


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    return buffer.getvalue()


def longest(body, _number):
    return {"scores": [float(len(text)) for text in body["candidates"]]}


@pytest.fixture(autouse=True)
def no_wait(monkeypatch):
    """Tries follow at once."""
    monkeypatch.setattr(chat.Patience, "wait", lambda self, tried, _asked: None if tried >= self.tries else 0.0)


def search(url, sample=None, **keys):
    config = SearchSection(strategy="stage_beam", candidates=3, scorer="reward", reward={"url": url, "tries": 2}, **keys)
    (completion,) = answer(ScriptedEngine(by_stage(TABLE)), FOUR_STAGE, [sample or question()], config)
    return completion


def test_a_server_scores_every_candidate():
    """Its favourite wins; it is sent the question, the image, the stage, what stands before, and the text."""
    with serve(longest) as server:
        completion = search(f"{server.url}/score", question((png(),), ("x", "y")))
    assert [stage.text for stage in completion.parsed.stages] == ["ccc"] * 4
    assert {step.scored_by for step in completion.trace} == {"reward"} and completion.judge_failures == 0
    assert [c.score for c in completion.trace[0].candidates] == [1.0, 2.0, 3.0]
    asked = server.requests[1]
    assert (asked["stage"], asked["given"], asked["candidates"]) == ("CAPTION", "ccc", ["a", "bb", "ccc"])
    assert asked["question"] == "What is it?\nOptions: (A) x (B) y"
    assert base64.b64decode(asked["image"].removeprefix("data:image/png;base64,")) == png()
    assert len(server.requests) == 4 and server.keys == [None] * 4


@pytest.mark.parametrize("path", ["", "/", "/a/b/score", "/v1/reward?"])
def test_it_is_asked_at_its_very_address(path, monkeypatch):
    """Nothing is put behind what the settings say."""
    asked = []

    def send(_client, method, address, *_):
        asked.append((method, address))
        return 200, {}, b'{"scores": [1, 2, 3]}'

    monkeypatch.setattr(chat, "send", send)
    search(f"http://localhost:9{path}")
    assert set(asked) == {("POST", f"http://localhost:9{path}")}


FAULTS = {
    "500": Fault(500),
    "400": Fault(400),
    "404, once": Fault(404),
    "half a JSON": Fault(body='{"scores": [1, 2'),
    "too few": {"scores": [1.0]},
    "too many": {"scores": [1.0] * 4},
    "no numbers": {"scores": ["good", "bad", "?"]},
    "not finite": Fault(body='{"scores": [NaN, 1, 2]}'),
    "nothing": {},
    "dropped": Fault(body="{}", drop=True),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_server_that_gives_no_scores_leaves_it_to_likelihood(fault):
    """For that contest, counted and told in the trace; the others are scored."""
    with serve(lambda body, number: fault if body["stage"] == "CAPTION" else longest(body, number)) as server:
        completion = search(server.url)
    assert [stage.text for stage in completion.parsed.stages] == ["ccc", "a", "ccc", "ccc"]
    assert [step.scored_by for step in completion.trace] == ["reward", "logprob", "reward", "reward"]
    assert [step.failures for step in completion.trace] == [0, 1, 0, 0]
    assert (completion.judge_failures, completion.stopped) == (1, "complete")


def test_a_server_that_wants_a_key_is_refused():
    """No option gives one."""
    remedy = "it answers 401 · it is asked without a key: let it answer without one"
    with serve([Fault(401)]) as server, pytest.raises(AccessError, match=remedy):
        search(server.url)
    with pytest.raises(AccessError, match=r"or a query · expected http://HOST:PORT/v1$"):
        search("http://me:word@localhost")


def test_a_passing_fault_is_tried_again():
    """As other servers are."""
    with serve(lambda body, number: Fault(503) if number == 0 else longest(body, number)) as server:
        completion = search(server.url)
    assert completion.judge_failures == 0 and len(server.requests) == 5


@pytest.mark.parametrize("url", ["localhost:9", "ftp://x", "http://user:pw@x", ""])
def test_an_address_that_is_none_is_refused(url):
    """Before anything is run."""
    with pytest.raises(AccessError, match="address"):
        search(url)


def test_an_address_where_nothing_answers_is_an_error():
    """The settings are wrong, and no contest could be scored."""
    with serve(lambda _body, _number: Fault(404)) as server, pytest.raises(AccessError, match="check the address"):
        search(server.url)


def test_a_refusal_beside_an_answer_is_a_failure():
    """One call of many: the others were scored, so the address is right."""
    engine = ScriptedEngine(lambda *_: ("x y", -1.0))
    samples = [Sample(f"q{number}", (Exchange(f"What is {number}?"),)) for number in range(4)]
    refuse = lambda body, number: Fault(404) if "2" in body["question"] else longest(body, number)  # noqa: E731
    with serve(refuse) as server:
        config = SearchSection(strategy="best_of_n", candidates=3, scorer="reward", reward={"url": server.url})
        found = answer(engine, FOUR_STAGE, samples, config)
    assert [completion.judge_failures for completion in found] == [0, 0, 1, 0]


def test_an_image_that_the_engine_accepted_is_sent(monkeypatch):
    """However large; and one that is gone by then fails its contest alone."""
    monkeypatch.setattr(image_parts.image_part, "__defaults__", (1,))
    with serve(longest) as server:
        assert search(server.url, question((png(),))).judge_failures == 0
        assert search(server.url, question((b"gone",))).judge_failures == 4
    assert [body["image"] is not None for body in server.requests] == [True] * 4


def test_a_server_that_hangs_is_left_alone():
    """It is waited for until the deadline; without one, four requests in a row are enough."""
    begin = time.monotonic()
    with serve([Fault(seconds=3)]) as server:
        completion = search(server.url, deadline_seconds=0.4)
        assert time.monotonic() - begin < 1.5 and completion.judge_failures == len(server.requests) == 1
    samples = [Sample(f"q{number}", (Exchange("?"),)) for number in range(24)]
    with serve([Fault(500)]) as server:
        section = {"url": server.url, "tries": 1}
        config = SearchSection(strategy="best_of_n", candidates=3, scorer="reward", reward=section)
        found = answer(ScriptedEngine(lambda *_: ("x", -1.0)), FOUR_STAGE, samples, config)
        assert len(server.requests) <= 4 + 7 and sum(completion.judge_failures for completion in found) == 24


def test_a_reward_needs_a_server():
    """The error names the key."""
    with pytest.raises(SearchError, match=r"search\.reward\.url · the scorer reward has no server · name its address"):
        answer(ScriptedEngine({}), FOUR_STAGE, [question()], SearchSection(strategy="stage_beam", scorer="reward"))


def lengths(contests):
    """A scorer of one's own."""
    return [[len(text) for text in contest.texts] for contest in contests]


def own(function, **keys):
    config = SearchSection(strategy="stage_beam", candidates=3, **keys)
    return answer(ScriptedEngine(by_stage(TABLE)), FOUR_STAGE, [question()], config, scorer=function)[0]


def test_a_function_of_ones_own_scores():
    """The higher the better; it is used instead of what the settings name."""
    completion = own(lengths, scorer="self_judge")
    assert completion.parsed.answer == "ccc" and completion.trace[0].scored_by == "reward"
    assert completion.judge_calls == 0


@pytest.mark.parametrize("scores", [[], [[1.0]], [[1.0, 2.0, float("nan")]], [[1.0] * 4]])
def test_scores_that_do_not_fit_are_an_error(scores):
    """It is the function's own mistake, and the error names it."""

    def mine(_contests):
        return scores

    with pytest.raises(SearchError, match=r"mine · its scores do not fit contests of \[3\] candidates"):
        own(mine)


def test_a_recipe_names_what_an_installed_package_declares(monkeypatch):
    """Anything else is refused, so that a recipe cannot run code that was not meant for it."""
    point = metadata.EntryPoint("mine", f"{__name__}:lengths", scorers.GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == scorers.GROUP else [])
    assert own(None, scorer=f"{__name__}:lengths").parsed.answer == "ccc"
    with pytest.raises(SearchError, match=r"no installed package declares 'os:system' under lora_cot\.scorers · declared: "):
        own(None, scorer="os:system")
    gone = metadata.EntryPoint("gone", f"{__name__}:gone", scorers.GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda **_: [gone])
    with pytest.raises(SearchError, match=r"AttributeError: .* has no attribute 'gone' · .*gone' cannot be loaded") as error:
        own(None, scorer=f"{__name__}:gone")
    assert "attribute" not in of_failure(error.value, "1").body["error"]["message"], "clients read no errors of packages"


@pytest.mark.parametrize("strategy", ["stage_beam", "best_of_n", "majority", "sentence_beam", "adaptive"])
def test_an_encoder_decoder_does_not_judge(strategy):
    """Its reason is told before anything is run; strategies that choose nothing need no judge."""
    engine = ScriptedEngine(lambda *_: ("x", -1.0), is_encoder_decoder=True)
    with pytest.raises(SearchError, match="an encoder-decoder cannot judge · use logprob"):
        answer(engine, FOUR_STAGE, [question()], SearchSection(strategy=strategy, scorer="self_judge"))
    assert engine.calls == []
    answer(engine, FOUR_STAGE, [question()], SearchSection(scorer="self_judge"))
    answer(engine, FOUR_STAGE, [question()], SearchSection(strategy=strategy))
