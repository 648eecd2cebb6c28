"""Schedulers and engines on the tiny random LLaVA, float32."""

import copy
import threading

import pytest

from lora_cot.engines.local import LocalEngine
from lora_cot.engines.texts import Texts
from lora_cot.formats import FORMATS
from lora_cot.serving.engine import ScheduledEngine
from lora_cot.serving.scheduler import Scheduler
from lora_cot.serving.tickets import Ticket

FOUR_STAGE = FORMATS["four_stage"]


@pytest.fixture(scope="session")
def local(tiny):
    """The engine alone; texts are decoded by a tokenizer of the engine's own."""
    engine = LocalEngine(tiny, FOUR_STAGE)
    engine.texts = Texts(copy.deepcopy(engine.texts.tokenizer), engine.texts.ends)
    return engine


@pytest.fixture
def scheduler():
    """With room for eight rows."""
    made = Scheduler(max_rows=8)
    yield made
    made.stop()


@pytest.fixture
def engines(local, scheduler):
    """Makes an engine for a request."""
    lock = threading.Lock()

    def make(**keys):
        return ScheduledEngine(scheduler, local, Ticket(**keys), lock, FOUR_STAGE)

    return make
