"""Schedulers, engines and whole servers on the tiny random LLaVA, float32."""

import base64
import io
import json
import threading

import pytest
from PIL import Image

from lora_cot.engines.local import LocalEngine
from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import SearchSection
from lora_cot.serving.engine import ScheduledEngine
from lora_cot.serving.scheduler import Scheduler
from lora_cot.serving.tickets import Ticket

FOUR_STAGE = FORMATS["four_stage"]


@pytest.fixture(scope="session")
def local(tiny):
    """The engine alone; texts are decoded by a tokenizer of the engine's own."""
    engine = LocalEngine(tiny, FOUR_STAGE)
    engine.decode_apart()
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


SHORT = {"stages": {stage.name: {"max_new_tokens": 6} for stage in FOUR_STAGE.stages}}
"""Search settings that keep answers short."""


@pytest.fixture
def serve(local, scheduler):
    """Makes a client of a server in this process; keys are limits, or arguments of `make_app`."""
    made = []

    def make(search=None, key=None, hosts=None, page=None, context=2048, formats=("four_stage",), **limits):
        from starlette.testclient import TestClient

        from lora_cot.serving.app import make_app
        from lora_cot.serving.limits import Limits
        from lora_cot.serving.local import served_local
        from lora_cot.serving.service import Service

        config = SearchSection.model_validate({**SHORT, **(search or {})})
        models = [
            served_local(name, LocalEngine(local.backbone, FORMATS[name]), FORMATS[name], config, scheduler, context)
            for name in formats
        ]
        service = Service(models, Limits(**limits), scheduler)
        app = make_app(service, key, hosts, **({"page": page} if page else {}))
        client = TestClient(app, raise_server_exceptions=False)
        client.service = service
        made.append(client.__enter__())
        return client

    yield make
    for client in made:
        client.__exit__(None, None, None)


def chat(question="What is it?", image=None, model="four_stage", **keys):
    """The body of a request."""
    parts = [{"type": "text", "text": question}]
    if image is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": image}})
    return {"model": model, "messages": [{"role": "user", "content": parts}], **keys}


def data_uri(size=(30, 20), colour="red", kind="PNG"):
    """A small picture."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def chunks(response):
    """The events of a stream, without the last one, which is [DONE]."""
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]
