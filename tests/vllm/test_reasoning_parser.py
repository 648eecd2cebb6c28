"""The plugin in the real vLLM: a model that writes four stages, asked for a whole answer, a stream, and one that is cut."""

import json

import httpx2
import pytest
import torch

import lora_cot.serving
from lora_cot.backbones.loading import load_backbone
from lora_cot.data.collate import batch, encode
from lora_cot.data.sources import load_data
from lora_cot.engines.image_parts import image_part
from lora_cot.engines.remote import RemoteEngine
from lora_cot.errors import AccessError
from lora_cot.formats import FORMATS
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import DataSection
from tests.merging.conftest import PUBLISHED, rewrite
from tests.vllm.test_merged import SERVE, served

FOUR_STAGE = FORMATS["four_stage"]
PLUGIN = f"{lora_cot.serving.__path__[0]}/vllm_reasoning_parser.py"
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(SERVE is None, reason="VLLM_SERVE names no program that serves a model")]


def learn(base, sample):
    """Train a tiny base until it writes the sample's stages, in place."""
    backbone = load_backbone(ModelSection(base=str(base)))
    row = encode(backbone.encoder(FOUR_STAGE), sample, True)
    inputs = batch([row], backbone.processor, backbone.family.image_inputs)
    inputs.pop("stage_ids")
    optimizer = torch.optim.AdamW(backbone.model.parameters(), 3e-3)
    for _ in range(400):
        loss = backbone.model(**inputs).loss
        if loss < 2e-3:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 2e-3
    backbone.model.save_pretrained(base)


@pytest.fixture(scope="module")
def asked(make_base, tmp_path_factory):
    """Asks the server the one question that its model has learned; and what it has learned to say, by stage."""
    folder = tmp_path_factory.mktemp("vllm")
    data = DataSection.model_validate({"train": [{"source": "shapes", "split": "test", "limit": 1}]})
    ((sample,), _) = load_data(data, FOUR_STAGE)
    own = folder / "own"
    own.mkdir()
    for file in make_base("llava").iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    learn(own, sample)
    base = rewrite(own, folder / "base", PUBLISHED["llava"])
    content = [*map(image_part, sample.images), {"type": "text", "text": sample.last.question}]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 300}

    def ask(**keys):
        found = httpx2.post(f"{address}/v1/chat/completions", json=body | keys, timeout=120)
        return found

    flags = ("--reasoning-parser-plugin", PLUGIN, "--reasoning-parser", "lora_cot")
    with served(base, folder / "vllm.log", *flags) as address:
        yield ask, FOUR_STAGE.gold(sample.last), address


def whole(answer):
    message = answer.json()["choices"][0]["message"]
    return message["reasoning"], message["content"]


def streamed(answer):
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
    return tuple("".join(delta.get(kind) or "" for delta in deltas) or None for kind in ("reasoning", "content"))


def test_the_conclusion_is_the_content(asked):
    """The stages before it are the reasoning, and are counted as such."""
    ask, gold, _ = asked
    answer = ask()
    assert answer.status_code == 200, answer.text
    *before, conclusion = (gold[stage.name] for stage in FOUR_STAGE.stages)
    assert whole(answer) == ("\n\n".join(before), conclusion)
    usage = answer.json()["usage"]
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]


@pytest.mark.parametrize("tokens", [300, 60, 25, 4])
def test_a_stream_tells_what_a_whole_answer_tells(asked, tokens):
    """However far it comes; cut, the rest stands in the content."""
    ask, *_ = asked
    found = whole(ask(max_tokens=tokens))
    assert found == streamed(ask(max_tokens=tokens, stream=True)) and found[1]


def test_structured_outputs_are_refused(asked):
    """With a reason."""
    answer = asked[0](response_format={"type": "json_object"})
    assert answer.status_code == 400 and "structured outputs do not go with" in answer.text


def test_searches_are_refused_behind_it(asked):
    """They would not see the tags: the server is found out before use."""
    with pytest.raises(AccessError, match="it does not stop at a stop string"):
        RemoteEngine.open(asked[2], FOUR_STAGE)
