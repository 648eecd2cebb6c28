"""Errors keep their problems on every way they can take."""

import pickle

import pytest
from torch.utils.data import DataLoader

from lora_cot.errors import AccessError, DataError, Problem, StoppedError

PROBLEMS = [Problem("row 7", "no image", "give it one"), Problem("row 9", "no text")]


def fail(rows):
    """A collator that meets bad rows."""
    raise DataError(PROBLEMS)


def test_a_workers_error_arrives_in_our_words():
    """A DataLoader raises it anew from the text of its traceback; people see the problems alone."""
    with pytest.raises(DataError) as caught:
        list(DataLoader(range(4), collate_fn=fail, num_workers=1))
    assert str(caught.value) == str(DataError(PROBLEMS)) == "row 7 · no image · give it one\nrow 9 · no text"


def test_an_error_survives_pickling():
    """With its problems, one by one."""
    assert pickle.loads(pickle.dumps(DataError(PROBLEMS))).problems == tuple(PROBLEMS)


@pytest.mark.parametrize("on", [lambda error: pickle.loads(pickle.dumps(error)), lambda error: error.at("").at("")])
def test_an_error_keeps_what_it_knows_besides(on):
    """The exit code of a signal, the status of a server."""
    assert on(StoppedError("told to", 130)).exit_code == 130
    kept = on(AccessError(PROBLEMS, 403))
    assert (type(kept), kept.status) == (AccessError, 403)
    assert (kept.problems, str(kept)) == (tuple(PROBLEMS), str(DataError(PROBLEMS)))


def test_an_error_is_placed():
    """Its problems and its text; the error itself stays as it is."""
    error = AccessError(PROBLEMS[0], 403)
    assert str(error.at("a.json")) == "a.json · row 7 · no image · give it one" and str(error).startswith("row 7")
