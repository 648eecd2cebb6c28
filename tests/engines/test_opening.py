"""MODEL, here or on a server: of one that a server runs the recipe and family are read here, and no weights."""

import json
import shutil
from dataclasses import replace

import pytest
import typer
from PIL import Image

from lora_cot import open_remote
from lora_cot.commands import answers
from lora_cot.engines import opening
from lora_cot.engines.base import Ask
from lora_cot.engines.chat import Patience
from lora_cot.engines.opening import Server, check_looks, open_any, served_names
from lora_cot.engines.remote import RemoteEngine
from lora_cot.errors import AccessError, BackboneError, EngineError, RunError
from lora_cot.evaluation import ask, asking, run
from lora_cot.formats import FORMATS
from lora_cot.recipe.load import dump
from lora_cot.search.trace import Completion, TracedCandidate, TracedStage
from tests.openai_fake import FakeOpenAI
from tests.scripted_server import KEY, serve

QUICK = Patience(timeout_seconds=5, tries=1)


@pytest.fixture
def running(monkeypatch):
    """A server, as `open_remote` takes it; no weights can be loaded meanwhile."""
    monkeypatch.setattr("lora_cot.checkpoints.opening.load_backbone", lambda *_: pytest.fail("weights are loaded"))
    with serve(lambda body, number: FakeOpenAI(name=body["model"])(body, number)) as server:
        server.models = ["tiny", "base", "r", "a"]
        yield lambda names: Server(server.url, names, KEY, QUICK)


@pytest.fixture
def folders(make_recipe, tiny_base, tmp_path):
    """What MODEL may be, without weights: an adapter, its run, and a merged folder."""
    recipe = make_recipe(tmp_path, "data.max_pixels=12345")
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "recipe.yaml").write_text(dump(recipe))
    merged = tmp_path / "merged"
    shutil.copytree(tiny_base, merged, ignore=shutil.ignore_patterns("*.safetensors"))
    (merged / "recipe.yaml").write_text(dump(recipe))
    return {"run": adapter.parent, "adapter": adapter, "merged": merged}


@pytest.mark.parametrize("kind", ["run", "adapter", "merged"])
def test_whatever_model_is(running, folders, kind):
    """Its format and limits are the engine's; what the server can do is told in one line."""
    opened = open_remote(str(folders[kind]), running("tiny"))
    assert opened.family.name == "llava" and opened.recipe.name == "tiny"
    assert opened.engine.cot_format == FORMATS["four_stage"] and opened.engine.max_pixels == 12345
    assert opened.said.startswith("tiny at http://") and "continues a text" in opened.said
    assert KEY not in repr(running("tiny"))


def test_a_base_without_a_recipe(running, tiny_base):
    """As `open_model` takes it."""
    assert open_remote(str(tiny_base), running("tiny")).recipe.name == "base"


def test_passes_and_the_base_have_names(running, make_recipe, folders, tmp_path):
    """Of a split format, each adapter its own; the first one is probed."""
    recipe = make_recipe(tmp_path, "format.name=two_stage", search={})
    folder = folders["merged"]
    for name in ("rationale", "answer"):
        shutil.copytree(folder, folder / name, ignore=shutil.ignore_patterns("rationale", "answer"))
    (folder / "recipe.yaml").write_text(dump(recipe))
    engine = open_remote(str(folder), running("rationale=r,answer=a,base=base")).engine
    first, second = FORMATS["two_stage"].passes
    assert (engine.for_pass(first).served.name, engine.for_pass(second).served.name) == ("r", "a")
    assert engine.for_pass(first).plain(adapter=False).served.name == "base"


def test_what_cannot_be_served(running, make_base, tmp_path):
    """No chat server runs a T5; no folder, no model."""
    with pytest.raises(BackboneError, match="no model of the family t5_vision · leave --engine out"):
        open_remote(str(make_base("t5_vision")), running("tiny"))
    with pytest.raises(RunError, match="holds no adapter and no model"):
        open_remote(str(tmp_path), running("tiny"))


def test_what_is_open_is_settled(running, folders):
    """It is taken as it is; how it would be opened is said when it is."""
    opened = open_remote(str(folders["run"]), running("tiny"))
    assert open_any(opened) is opened
    for keys in ({"quantization": "nf4"}, {"server": running("tiny")}, {"format_name": "direct"}):
        with pytest.raises(RunError, match=r"it is open already: .* · name it as a text, or leave out quantization"):
            open_any(opened, **keys)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, (None, {})),
        ("org/name", ("org/name", {})),
        ("name, base=other", ("name", {"base": "other"})),
        ("answer=a,rationale=r", (None, {"answer": "a", "rationale": "r"})),
    ],
)
def test_names(text, wanted):
    """One, or by pass."""
    assert served_names(text, FORMATS["two_stage"]) == wanted


@pytest.mark.parametrize("text", ["", "a,b", "base=", "base=a,base=b", "answr=a", ","])
def test_names_that_cannot_be_read(text):
    """Refused, with what is allowed."""
    with pytest.raises(RunError, match=r"--engine-model · .* · (NAME, or PASS=NAME|did you mean 'answer')"):
        served_names(text, FORMATS["two_stage"])


def greedy(engine, cot_format, samples, config, on_stage=lambda *_: None):
    """The simplest search."""
    done = []
    for number, ((candidate,), sample) in enumerate(
        zip(engine.extend([Ask(state, ["a"], 200) for state in engine.start(samples)]), samples, strict=True)
    ):
        assert isinstance(engine, RemoteEngine) and candidate.ended == "end"
        step = TracedStage(None, (TracedCandidate(candidate.text, candidate.tokens, 0.0, 0.0, True, True),))
        on_stage(number, step)
        done.append(Completion(sample.id, candidate.text, cot_format.parse(candidate.text), "complete", [step]))
    return done


def test_eval_and_ask_use_it(running, folders, monkeypatch, tmp_path, capsys):
    """The server's text is what is judged and shown; who answered is told on standard error."""
    monkeypatch.setattr(asking, "answer", greedy)
    monkeypatch.setattr(ask, "answer", greedy)
    report = run.evaluate(str(folders["run"]), "shapes", limit=3, output=tmp_path / "o.jsonl", server=running("tiny"))
    assert report.format_validity.correct == report.format_validity.total == 3
    assert "tiny at http://" in capsys.readouterr().err
    outputs = [json.loads(line)["output"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert all(text.startswith(" <SUMMARY>") for text in outputs)
    Image.new("RGB", (32, 32)).save(tmp_path / "i.png")
    opened = open_remote(str(folders["run"]), running("tiny"))
    for model, how in ((opened, {}), (str(folders["run"]), {"server": running("tiny")})):
        assert ask.ask(model, tmp_path / "i.png", "What?", **how).parsed.outcome == "complete"
    again = run.evaluate(opened, "shapes", limit=3, output=tmp_path / "o.jsonl")
    assert "3 of 3 questions were answered before" in capsys.readouterr().err
    assert (again.model, again.accuracy) == (report.model, report.accuracy)


def test_options_of_the_command_line(monkeypatch, tmp_path):
    """They reach the server; without it, or with what only this process decides, they are refused."""
    key = tmp_path / "key"
    key.write_text(KEY)
    seen = []

    def noted(*_, server, **__):
        seen.append(server)
        raise RunError("noted")

    with pytest.raises(RunError, match="--quantization · the server has loaded the model"):
        answers.evaluate("m", engine="http://h/v1", quantization="nf4")
    monkeypatch.setattr(run, "evaluate", noted)
    with pytest.raises(RunError, match="noted"):
        answers.evaluate("m", engine="http://h/v1", engine_model="tiny", engine_key_file=key)
    assert (seen[0].url, seen[0].model, seen[0].key) == ("http://h/v1", "tiny", KEY)
    for keys, told in (
        ({"engine_model": "x"}, "--engine-model · .* · add --engine URL"),
        ({"engine_key_file": key}, "--engine-key-file · .* · add --engine URL"),
    ):
        with pytest.raises(RunError, match=told):
            answers.evaluate("m", **keys)
    with pytest.raises(AccessError):
        answers.evaluate("m", engine="http://h/v1", engine_key_file=tmp_path / "none")
    assert len(seen) == 1


def test_a_trace_is_a_page_or_json(running, folders, tmp_path, monkeypatch, capsys):
    """By its name; any other is refused before a model is loaded. Scorers that gave no verdict are told."""
    image = tmp_path / "i.png"
    Image.new("RGB", (32, 32)).save(image)
    opened = open_remote(str(folders["run"]), running("tiny"))
    found = ask.ask(opened, image, "What?", trace=tmp_path / "new" / "t.json")
    assert json.loads((tmp_path / "new" / "t.json").read_text()) == json.loads(json.dumps(found.to_json()))
    ask.ask(opened, image, "What?", trace=tmp_path / "t.html")
    assert (tmp_path / "t.html").read_text().lower().startswith("<!doctype html>")
    monkeypatch.setattr(opening, "open_model", lambda *_: pytest.fail("a model is loaded"))
    for call in (
        lambda path: ask.ask(opened, image, "What?", trace=path),
        lambda path: answers.ask("m", image, "?", trace=path),
    ):
        with pytest.raises(RunError, match=r"t.txt · a trace is a page or JSON · name a file that ends with .html or .json"):
            call(tmp_path / "t.txt")
        with pytest.raises(RunError, match=r"t.html · cannot be written: .* · name another file"):
            call(image / "t.html")
    monkeypatch.setattr(opening, "open_any", lambda *_: opened)
    monkeypatch.setattr(ask, "answer", lambda *_: [found])
    found.trace[0] = replace(found.trace[0], failures=3)
    capsys.readouterr()
    answers.ask("m", image, "?", scorer="self_judge")
    assert "the scorer self_judge gave no verdict 3 times: likelihood decided instead" in capsys.readouterr().err
    found.trace[0] = replace(found.trace[0], candidates=(replace(found.trace[0].candidates[0], ended="failed"),))
    with pytest.raises(typer.Exit) as ended:
        answers.ask("m", image, "?")
    assert ended.value.exit_code == 1 and "answer: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mllama", "t5_vision", "llava"])
def test_patches_are_shown_only_by_families_that_can(make_base, name):
    """No weights are loaded for it; a search that asks for none is not looked at."""
    check_looks("no/such/model", {"strategy": "greedy", "interleave": None}, None)
    if name == "llava":
        return check_looks(str(make_base(name)), {"interleave.selector": "attention"}, None)
    with pytest.raises(RunError, match=rf"search\.interleave · patches of the family {name} cannot be shown again"):
        check_looks(str(make_base(name)), {"interleave.n": 3}, None)


def test_no_server_is_shown_patches(make_recipe, folders, tmp_path):
    """Nothing is sent to it, be it the recipe or the caller that asks for them; the caller may ask for none."""
    (folders["adapter"] / "recipe.yaml").write_text(dump(make_recipe(tmp_path, "search.interleave=attention")))
    nowhere = Server("http://127.0.0.1:9/v1", "tiny", None, QUICK)
    for call in (
        lambda: open_any(str(folders["run"]), server=nowhere, search={}),
        lambda: ask.ask(str(folders["run"]), tmp_path / "i.png", "What?", server=nowhere),
        lambda: open_any(str(folders["merged"]), server=nowhere, search={"interleave": "attention"}),
    ):
        with pytest.raises(RunError, match=r"search\.interleave · a model behind a server"):
            call()
    with pytest.raises(EngineError, match="no answer"):
        open_any(str(folders["run"]), server=nowhere, search={"interleave": None})
    with pytest.raises(RunError, match=r"search\.interleave · a model behind a server"):
        check_looks("no/such/model", {"interleave": "attention"}, Server("http://127.0.0.1:9/v1"))
