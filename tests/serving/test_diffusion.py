"""A T5 with learned latents behind a server."""

import base64

from lora_cot.engines.local import LocalEngine
from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.run import answer
from lora_cot.serving.app import make_app
from lora_cot.serving.limits import Limits
from lora_cot.serving.local import served_local
from lora_cot.serving.service import Service
from lora_cot.types import Exchange, Sample
from tests.serving.conftest import chat, data_uri


def test_a_question_about_an_image_is_answered_as_the_engine_answers_it(load_tiny, scheduler):
    """Twice alike: the noise of inference follows from the image."""
    from starlette.testclient import TestClient

    backbone, direct = load_tiny("t5_diffusion"), FORMATS["direct"]
    config = SearchSection.model_validate({"stages": {"ANSWER": {"max_new_tokens": 6}}})
    engine = LocalEngine(backbone, direct)
    sample = Sample("x", (Exchange("What is it?"),), (base64.b64decode(data_uri().partition(",")[2]),))
    (found,) = answer(engine, direct.spelled("brackets"), [sample], config)
    engine.decode_apart()
    service = Service([served_local("direct", engine, direct, config, scheduler, 512)], Limits(), scheduler)
    with TestClient(make_app(service, None, None)) as client:
        for _ in range(2):
            body = client.post("/v1/chat/completions", json=chat(model="direct", image=data_uri())).json()
            assert body["choices"][0]["message"]["content"] == found.text and found.text
