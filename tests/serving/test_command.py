"""What `lora-cot serve` refuses before anything is loaded, and what it hands on."""

from types import SimpleNamespace

import pytest

from lora_cot.commands import serving
from lora_cot.errors import AccessError, RunError
from lora_cot.serving import opening, run
from tests.scripted_server import Fault
from tests.scripted_server import serve as behind

URL = "http://localhost:9/v1"


@pytest.fixture
def begun(monkeypatch):
    """What would be served, each time."""
    seen = []
    monkeypatch.setattr(opening, "open_models", lambda *given: (given, "here"))
    monkeypatch.setattr(opening, "open_served", lambda *given: (given, "there"))
    monkeypatch.setattr(run, "serve", lambda service, *_: seen.append(service))
    monkeypatch.setattr(
        "lora_cot.serving.service.Service", lambda *given: SimpleNamespace(models=given[0], scheduler=given[2])
    )
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
