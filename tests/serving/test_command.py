"""What `lora-cot serve` refuses before anything is loaded, and what it hands on."""

from types import SimpleNamespace

import pytest

from lora_cot.commands import serving
from lora_cot.engines.opening import OpenedRemote, Server
from lora_cot.errors import AccessError, RunError
from lora_cot.serving import run
from tests.scripted_server import Fault
from tests.scripted_server import serve as behind

URL = "http://localhost:9/v1"


@pytest.fixture
def begun(monkeypatch):
    """What would be served, each time."""
    seen = []

    def opened(_model, _how, server):
        return OpenedRemote(None, None, None, "m", server) if server else SimpleNamespace()

    monkeypatch.setattr(run, "open_any", opened)
    monkeypatch.setattr(run, "open_models", lambda *_: [])
    monkeypatch.setattr(run, "open_served", lambda *_: None)
    monkeypatch.setattr(run, "Service", lambda *given: SimpleNamespace(scheduler=given[2]))
    monkeypatch.setattr(run, "run", lambda service, *_: seen.append(service))
    return seen


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"engine_model": "x"}, ["--engine-model · it says how a server is asked, and none is named · add --engine URL"]),
        ({"engine_key_file": "k", "engine_model": "x"}, ["--engine-model · ", "--engine-key-file · "]),
        ({"engine": URL, "context": 64}, ["--context · the server has loaded the model as it was started · drop it"]),
        ({"engine": URL, "rows": 64, "kv_gib": 1.0}, ["--kv-gib · ", "--rows · "]),
        ({"engine": URL, "adapter": ["a=b"], "quantization": "none"}, ["--quantization · ", "--adapter · "]),
    ],
)
def test_options_that_would_be_ignored_are_refused(begun, keys, told):
    """All of them together; nothing is loaded."""
    with pytest.raises(RunError) as caught:
        serving.serve("m", **keys)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(told) and not begun
    assert all(line.startswith(one) for line, one in zip(lines, told, strict=True))


def test_a_function_refuses_what_the_command_does(begun):
    """A model that is open on a server too."""
    for model, keys in (("m", {"server": Server(URL)}), (OpenedRemote(None, None, None, "m", Server(URL)), {})):
        with pytest.raises(RunError, match="--rows · the server has loaded the model as it was started"):
            run.serve(model, rows=3, **keys)
    assert not begun


def test_rows_have_a_default(begun):
    """Here; and another server has its own."""
    serving.serve("m")
    serving.serve("m", rows=3)
    serving.serve("m", engine=URL)
    assert [one.scheduler and one.scheduler.limit.most for one in begun] == [64, 3, None]
    for one in begun[:2]:
        one.scheduler.stop()


def test_the_key_of_the_server_behind_is_named_as_such(tiny_base):
    """`--api-key-file` is what clients of this server send."""
    with behind(lambda *_: {}) as server:
        server.models = Fault(401)
        with pytest.raises(AccessError, match="a key that it takes: --engine-key-file, or the variable OPENAI_API_KEY"):
            serving.serve(str(tiny_base), engine=server.url)
    with pytest.raises(AccessError, match="and the key in --engine-key-file"):
        serving.serve(str(tiny_base), engine="http://me:word@localhost")
