"""Calls that come together are taken together, and nobody waits for one that does not come."""

import threading
import time

import pytest

from lora_cot.serving import inbox
from lora_cot.serving.inbox import Inbox


@pytest.fixture
def calls(monkeypatch):
    """An inbox with much time, and what is put into it by others: (seconds from now, what)."""
    monkeypatch.setattr(inbox, "GATHER_SECONDS", 0.5)
    made = Inbox()

    def later(*pairs):
        for seconds, call in pairs:
            threading.Timer(seconds, made.put, [call]).start()

    return made, later


def test_an_idle_engine_waits_for_calls_that_are_prepared(calls):
    """It takes them with the first; a busy one takes what there is."""
    made, later = calls
    with made.expecting():
        later((0.05, "second"))
        made.put("first")
        threading.Timer(0.1, made.put, ["third"]).start()
        assert made.take(idle=True)[:3] == ["first", "second", "third"]
        later((0.05, "fifth"))
        made.put("fourth")
        assert made.take(idle=False) == ["fourth"] and made.waiting == 0


def test_nobody_waits_for_nothing(calls):
    """Without one that is prepared the first is taken at once; one that never comes is waited for a while."""
    made, _ = calls
    made.put("only")
    begin = time.monotonic()
    assert made.take(idle=True) == ["only"] and time.monotonic() - begin < 0.2
    with made.expecting():
        made.put("only")
        assert made.take(idle=True) == ["only"] and 0.4 < time.monotonic() - begin < 2
        made.put(None)
        begin = time.monotonic()
        assert made.take(idle=True) == [] and time.monotonic() - begin < 0.2, "who is woken has no call to begin with"


def test_who_is_given_up_is_not_expected(calls):
    """Whatever ends the preparation."""
    made, _ = calls
    with pytest.raises(ValueError, match="no picture"), made.expecting():
        raise ValueError("no picture")
    made.put("other")
    begin = time.monotonic()
    assert made.take(idle=True) == ["other"] and time.monotonic() - begin < 0.2
