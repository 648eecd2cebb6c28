"""What fails again and again is refused for a while and tried now and then; the rest of the server goes on."""

import pytest
import torch

from lora_cot.engines.batch import Batch
from lora_cot.engines.local import LocalEngine
from lora_cot.serving import faults as of_engine
from lora_cot.serving.faults import PAUSE_SECONDS, Faults
from tests.serving.conftest import chat

NAMES = ("four_stage", "step_by_step")


@pytest.fixture
def clock(monkeypatch):
    """A list of one number: the time."""
    now = [1000.0]
    monkeypatch.setattr(of_engine, "now", lambda: now[0])
    return now


@pytest.fixture
def broken(monkeypatch):
    """Texts of models whose steps fail; two formats on one base count as two adapters here."""
    texts, step = [], Batch.step

    def fail(self):
        if self._texts in texts:
            raise RuntimeError("odd")
        step(self)

    monkeypatch.setattr(Batch, "step", fail)
    monkeypatch.setattr(LocalEngine, "reader", property(lambda self: id(self.texts)))
    return texts


def ask(client, model=NAMES[0], question="What is it?", **keys):
    body = chat(question, model=model, reasoning_effort="none", max_completion_tokens=12, **keys)
    return client.post("/v1/chat/completions", json=body)


def test_a_model_that_fails_is_refused_alone_and_tried_again(serve, broken, clock):
    """`/health` says so until a trial is answered; the other adapter answers meanwhile."""
    client = serve(formats=NAMES)
    broken.append(client.service.models[NAMES[0]].engine(None).local.texts)
    for _ in range(3):
        assert ask(client).status_code == 500
        client.service.scheduler.faults.tell(id(broken[0]), "a judge's odd options", RuntimeError())
    refused = ask(client)
    assert refused.status_code == 503 and refused.headers["Retry-After"] == str(round(PAUSE_SECONDS))
    assert "tried again" in refused.json()["error"]["message"]
    assert ask(client, NAMES[1]).status_code == 200 and client.get("/health").status_code == 503
    clock[0] += PAUSE_SECONDS
    assert [ask(client).status_code for _ in range(2)] == [500, 503], "one trial in a pause"
    broken.clear()
    assert ask(client).status_code == 503, "it is not tried before its time"
    clock[0] += PAUSE_SECONDS
    assert client.get("/health").status_code == 503
    assert ask(client).status_code == 200
    assert client.get("/health").status_code == 200
    assert [ask(client).status_code for _ in range(3)] == [200] * 3


def test_a_trial_that_is_answered_ends_every_count_of_its_model(clock):
    """Also of work that nobody may ask for again, such as a judge's odd options; others keep theirs."""
    faults = Faults()
    for reader in ("one", "other"):
        for _ in range(3):
            faults.tell(reader, "odd options", RuntimeError())
    assert not faults.is_trial({"sound"}) and not faults.refuses({"sound"})
    assert faults.refuses({"one", "sound"})
    clock[0] += PAUSE_SECONDS
    assert faults.is_trial({"one", "sound"}) and faults.refuses({"one"}) and not faults.refuses({"other"})
    faults.tell("one", "step", None)
    assert faults.are_many and faults.refuses({"one"})
    faults.forget({"one", "sound"})
    assert not faults.refuses({"one"}) and faults.are_many
    faults.forget({"other"})
    assert not faults.are_many


def test_memory_that_a_smaller_batch_makes_do_with_is_no_fault(serve, scheduler, monkeypatch):
    """However often; where a row does not fit even the second time, it is one."""
    step, errors = Batch.step, []

    def fail(self):
        if errors:
            raise errors.pop()
        step(self)

    monkeypatch.setattr(Batch, "step", fail)
    client, error = serve(), torch.OutOfMemoryError("CUDA out of memory")
    for _ in range(4):
        errors.append(error)
        assert ask(client).status_code == 200
        assert not scheduler.faults.are_many
    counted = []
    tell = scheduler.faults.tell
    monkeypatch.setattr(scheduler.faults, "tell", lambda *args: (counted.append(args[2]), tell(*args)))
    errors.append(error)
    assert ask(client).status_code == 200 and error not in counted
    for _ in range(3):
        errors += [error] * 2
        assert ask(client).status_code == 503
    assert counted.count(error) == 3 and not scheduler.is_healthy


def test_a_lost_accelerator_is_final(serve, clock, monkeypatch):
    """No pause brings it back, for no model."""
    client = serve(formats=NAMES)
    monkeypatch.setattr(Batch, "step", lambda self: (_ for _ in ()).throw(torch.AcceleratorError("CUDA error: gone")))
    assert ask(client).status_code == 503
    for _ in range(3):
        clock[0] += 1e6
        assert [ask(client, name).status_code for name in NAMES] == [503] * 2
        assert client.get("/health").status_code == 503
