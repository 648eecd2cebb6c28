"""An evaluation loses nothing: not to a server that is away, not to one bad question, not to being stopped."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import typer

from lora_cot.checkpoints import opening
from lora_cot.checkpoints.opening import open_model
from lora_cot.commands import answers
from lora_cot.data import shapes
from lora_cot.data.collate import encode
from lora_cot.data.rows import Collected
from lora_cot.engines.chat import Patience
from lora_cot.engines.opening import Server, open_remote
from lora_cot.engines.retries import Circuit
from lora_cot.errors import DataError, EngineError, RunError, StoppedError
from lora_cot.evaluation import asking, run
from lora_cot.evaluation.benchmarks import BENCHMARKS
from lora_cot.recipe.load import dump
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.run import answer
from lora_cot.search.strategies import STRATEGIES
from tests.openai_fake import FakeOpenAI
from tests.scripted_server import Fault, serve

DOWN, REFUSED = Fault(500, "away"), Fault(400, "too long")


def scene(number):
    """A question that no other one's text is."""
    sample = shapes.make_sample(number, "test", 0)
    return replace(sample, exchanges=(replace(sample.last, question=f"{number}) {sample.last.question}"),))


SCENES = [scene(number) for number in range(6)]


@pytest.fixture
def served(make_recipe, tmp_path, monkeypatch):
    """`evaluate` of a served model, four questions at once; its server answers as `fault` says: from a body, a fault or None.

    Its `rests` are kept, and take no time.
    """
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_text("")
    (adapter / "recipe.yaml").write_text(dump(make_recipe(tmp_path, "evaluation.batch_size=4", search={})))
    monkeypatch.setattr(opening, "load_backbone", lambda *_: pytest.fail("weights are loaded"))
    monkeypatch.setitem(BENCHMARKS, "shapes", replace(BENCHMARKS["shapes"], load=lambda _: Collected(state.samples, total=6)))
    fake = FakeOpenAI(name="tiny")

    def reply(body, number):
        return state.fault(json.dumps(body)) or fake(body, number)

    def opened(model, given, *format_name):
        found = open_remote(model, given, *format_name)
        found.engine.link.circuit = state.circuit
        state.asked, state.fault = len(state.server.requests), state.then
        return found

    def evaluate(fault=lambda _: None, **keys):
        state.fault, state.then, state.rests = lambda _: None, fault, []
        report = run.evaluate(str(adapter.parent), "shapes", server=Server(server.url, "tiny", None, QUICK), **keys)
        state.asked = len(server.requests) - state.asked
        return report

    def sleep(seconds):
        state.rests.append(seconds)
        state.circuit._until = 0.0

    state = SimpleNamespace(
        evaluate=evaluate, samples=SCENES, circuit=Circuit(), weights=adapter / "adapter_model.safetensors"
    )
    monkeypatch.setattr("lora_cot.engines.opening.open_remote", opened)
    monkeypatch.setattr(asking, "time", SimpleNamespace(sleep=sleep))
    with serve(reply) as server:
        server.models, state.server = ["tiny"], server
        yield state


QUICK = Patience(timeout_seconds=5, tries=1)


def ids(path):
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def about(sample, body):
    """Whether a request asks this."""
    return json.dumps(sample.last.question)[1:-1] in body


def test_an_outage_is_waited_out(served, capsys):
    """The circuit would fail all that is asked meanwhile: nothing is, and every question gets its answer."""
    whole = served.evaluate().to_json()
    left = [9]

    def away(_):
        left[0] -= 1
        return DOWN if left[0] >= 0 else None

    report = served.evaluate(away)
    assert (report.failed, report.format_validity.correct) == (0, 6)
    assert report.accuracy.to_json() == whole["accuracy"] and report.stopped == {}
    assert served.rests and set(served.rests) == {30.0}
    assert f"the server gives no answer: 30 s of rest (1 of {asking.RESTS})" in capsys.readouterr().err


def test_a_server_that_stays_away_ends_it_and_nothing_is_lost(served, tmp_path):
    """Rests are bounded; the error says what is kept, and the same command asks for the rest alone."""
    path, answered = tmp_path / "out.jsonl", [4]

    def dies(_):
        answered[0] -= 1
        return DOWN if answered[0] < 0 else None

    with pytest.raises(
        EngineError, match=r"(?s)10 rests of 30 s were not enough\n4 of 6 answers are in .*out.jsonl: the same"
    ):
        served.evaluate(dies, output=path)
    assert len(served.rests) == asking.RESTS and ids(path) == [sample.id for sample in SCENES[:4]]
    report = served.evaluate(output=path)
    assert (served.asked, report.accuracy.total, report.failed) == (2, 6, 0)
    assert report.to_json() == {**served.evaluate().to_json(), "totals": report.totals, **report.per_question}
    assert ids(path) == [sample.id for sample in SCENES]
    assert served.evaluate(output=path).to_json() == report.to_json() and served.asked == 0
    with pytest.raises(EngineError, match="0 of 6 answers are lost: name an --output"):
        served.evaluate(lambda _: DOWN)


@pytest.mark.parametrize("refused", [[1], [0, 1, 2, 3], [4, 5]])
def test_a_question_that_the_server_refuses_is_counted(served, tmp_path, refused, monkeypatch, capsys):
    """No rest helps it; the others are answered, the exit says that it failed, and the next call asks it again."""
    path, few = tmp_path / "out.jsonl", [SCENES[number] for number in refused]
    report = served.evaluate(lambda body: REFUSED if any(about(one, body) for one in few) else None, output=path)
    assert (report.failed, served.rests) == (len(few), [])
    assert report.stopped == {"the engine gave no text": len(few)}
    assert [row["failed"] for row in map(json.loads, path.read_text().splitlines())] == [n in refused for n in range(6)]
    with monkeypatch.context() as patch, pytest.raises(typer.Exit) as ended:
        patch.setattr(run, "evaluate", lambda *_, **_keys: report)
        answers.evaluate("m", as_json=True)
    told = capsys.readouterr()
    assert ended.value.exit_code == 1 and json.loads(told.out)["failed"] == len(few)
    assert f"error: the engine gave no text for {len(few)} questions" in told.err
    report = served.evaluate(output=path)
    assert (served.asked, report.failed, sorted(ids(path))) == (len(few), 0, sorted(one.id for one in SCENES))


def test_a_damaged_image_is_its_own_question_s_problem(served, tmp_path):
    """The questions beside it are answered as ever; mended, it is asked alone."""
    path, good = tmp_path / "out.jsonl", served.evaluate()
    served.samples = [replace(s, images=(s.images[0][:80],)) if n in (1, 5) else s for n, s in enumerate(SCENES)]
    report = served.evaluate(output=path)
    assert (report.stopped, report.failed, report.unanswered) == ({"cannot be asked": 2}, 0, 2)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["output"] == "" for row in rows] == [False, True, False, False, False, True]
    assert "the image is truncated or damaged" in rows[1]["stopped"]
    served.samples = SCENES
    assert served.evaluate(output=path).accuracy == good.accuracy and served.asked == 2


def test_ctrl_c_keeps_what_is_there(served, tmp_path, monkeypatch):
    """Exit 130, as elsewhere; the batches that were done are on disk already."""
    path, seen = tmp_path / "out.jsonl", []

    def stops(*given):
        seen.append(len(path.read_text().splitlines()) if path.exists() else 0)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return answer(*given)

    with monkeypatch.context() as patch:
        patch.setattr(asking, "answer", stops)
        with pytest.raises(StoppedError, match="stopped by SIGINT · 4 of 6 answers are in") as stopped:
            served.evaluate(output=path)
    assert (stopped.value.exit_code, seen) == (130, [0, 4])
    assert served.evaluate(output=path).accuracy.total == 6 and served.asked == 2


def test_answers_of_another_setting_are_not_counted_together(served, tmp_path):
    """Other searches, weights, questions: what differs is named. A row that was cut off is asked again."""
    path = tmp_path / "out.jsonl"
    served.evaluate(output=path)
    with pytest.raises(RunError, match=r"begun with search.temperature 0.6, now 0.5 · name another output, or go on"):
        served.evaluate(output=path, search={"temperature": 0.5})
    path.write_text(path.read_text()[:-5])
    served.evaluate(output=path)
    assert served.asked == 1
    for other in (
        {"exchanges": (replace(SCENES[0].last, question="What?"),)},
        {"exchanges": (replace(SCENES[0].last, answer="another"),)},
        {"choices": ("no mask", "mask")},
        {"images": SCENES[1].images},
    ):
        served.samples = [replace(SCENES[0], **other), *SCENES[1:]]
        with pytest.raises(RunError, match=f"the question {SCENES[0].id} is another one now: its text, choices"):
            served.evaluate(output=path)
    served.samples = SCENES
    path.write_text(path.read_text().replace('"stopped"', '"stoped"'))
    with pytest.raises(DataError, match=f"out.jsonl · {SCENES[0].id} · stopped · Field required(.|\n)*name another output"):
        served.evaluate(output=path)
    os.utime(served.weights, (1, 1))
    with pytest.raises(RunError, match=r"begun with weights '20.*', now '1970-01-01T00:00:01"):
        served.evaluate(output=path)
    path.unlink()
    assert served.evaluate(output=path).accuracy.total == 6
    address = served.server.url
    served.server.url = address.replace("127.0.0.1", "localhost")
    with pytest.raises(RunError, match=f"begun with engine 'tiny at {address}', now 'tiny at {served.server.url}'"):
        served.evaluate(output=path)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in ("two_pass", "swires")])
def test_whatever_the_search_a_failure_is_one(served, strategy, monkeypatch):
    """With the server away from the first or the third request on."""
    monkeypatch.setattr(asking, "patiently", lambda ask, batch, _: ask(batch))
    for asked in (0, 2):
        served.circuit, left = Circuit(most=10**6), [asked]

        def dies(_, left=left):
            left[0] -= 1
            return DOWN if left[0] < 0 else None

        served.samples, search = SCENES[:1], {"strategy": strategy, "candidates": 2}
        report = served.evaluate(dies, search=search)
        assert report.failed == (left[0] < 0), (strategy, asked)
        assert report.failed == report.stopped.get("the engine gave no text", 0)


def test_tries_are_bounded_where_nothing_is_open():
    """A batch that fails as a whole is asked again so often, and then it is its questions that are told."""
    asked = []

    def failing(batch):
        asked.append(len(batch))
        candidate = SimpleNamespace(chosen=True, ended="failed")
        return [SimpleNamespace(sample_id=s.id, trace=[SimpleNamespace(candidates=[candidate])]) for s in batch]

    assert [one.sample_id for one in asking.patiently(failing, SCENES[:3], Circuit())] == [s.id for s in SCENES[:3]]
    assert asked == [3] * 5


def test_a_prompt_that_is_too_long_is_its_own_question_s_problem(tiny_base, monkeypatch):
    """Counted before it is read, its image's slots too; one that just fits is asked."""
    opened = open_model(str(tiny_base))
    config, text = SearchSection(max_search_tokens=2), opened.backbone.base_model.config.get_text_config()
    cot_format = opened.recipe.format.build().spelled(opened.family.tag_style)
    sample = SCENES[0]
    whole = len(encode(opened.backbone.encoder(cot_format), sample, training=False).input_ids)
    told = f"{asking.UNASKABLE}: {sample.id} · its prompt takes {whole} tokens"
    for most, expected in ((whole, "out of tokens"), (whole - 1, told)):
        monkeypatch.setattr(text, "max_position_embeddings", most)
        found = {one.id: answer.stopped for one, answer in asking.answers(opened, cot_format, SCENES[:1], config)}
        assert found[sample.id].startswith(expected)


def test_after_a_rest_only_what_failed_is_asked(monkeypatch):
    """A candidate that failed and was not chosen is no failure of its question."""
    asked, circuit = [], SimpleNamespace(is_open=True, rest_seconds=7, most=4)
    monkeypatch.setattr(asking, "time", SimpleNamespace(sleep=lambda _: None))

    def some(batch):
        lost = {SCENES[1].id} if not asked else set()
        asked.append([one.id for one in batch])
        failed = [SimpleNamespace(chosen=one.id in lost, ended="failed") for one in batch]
        steps = [SimpleNamespace(candidates=[one]) for one in failed]
        return [SimpleNamespace(sample_id=s.id, trace=[step]) for s, step in zip(batch, steps, strict=True)]

    assert [one.sample_id for one in asking.patiently(some, SCENES[:3], circuit)] == [s.id for s in SCENES[:3]]
    assert asked == [[s.id for s in SCENES[:3]], [SCENES[1].id]]
