"""The Responses API: reasoning items for the stages, a message for the answer; the official client reads both."""

import json

import pytest

from tests.serving.conftest import chat, data_uri
from tests.serving.test_process import server  # noqa: F401  (a fixture)
from tests.serving.test_remote import BEAM, client, script  # noqa: F401  (fixtures)


def ask(question="What is it?", **keys):
    content = [{"type": "input_image", "image_url": data_uri()}, {"type": "input_text", "text": question}]
    return {"model": "four_stage", "input": [{"role": "user", "content": content}], **keys}


def events(response):
    found = [line for line in response.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line[6:]) for line in found]


@pytest.mark.parametrize("search", [{}, BEAM], ids=["plain", "beam"])
def test_stages_are_a_reasoning_item_and_the_answer_a_message(client, search):  # noqa: F811
    """The summary is the first stage; the texts are those of a chat; a stream comes to the same."""
    body = client.post("/v1/responses", json=ask(search=search, temperature=0)).json()
    said = client.post("/v1/chat/completions", json=chat(image=data_uri(), search=search, temperature=0)).json()
    message = said["choices"][0]["message"]
    reasoning, answer = body["output"]
    assert (body["status"], reasoning["type"], answer["type"]) == ("completed", "reasoning", "message")
    assert reasoning["content"][0]["text"] == message["reasoning_content"]
    assert reasoning["summary"][0]["text"] == message["stages"][0]["text"]
    assert answer["content"][0]["text"] == message["content"]
    assert body["usage"]["output_tokens"] == said["usage"]["completion_tokens"]
    told = events(client.post("/v1/responses", json=ask(search=search, temperature=0, stream=True)))
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert (told[0]["type"], told[-1]["type"]) == ("response.created", "response.completed")
    for kind, text in (("reasoning_text", message["reasoning_content"]), ("output_text", message["content"])):
        deltas = [event["delta"] for event in told if event["type"] == f"response.{kind}.delta"]
        (done,) = [event["text"] for event in told if event["type"] == f"response.{kind}.done"]
        assert "".join(deltas) == done == text

    def settled(items):
        return json.loads(json.dumps([{**item, "id": 0, "stages": 0} for item in items]))

    assert settled(told[-1]["response"]["output"]) == settled(body["output"])


def test_the_official_client_reads_both(server):  # noqa: F811
    """Whole and streamed; what was said before is sent back as it came."""
    openai = pytest.importorskip("openai")
    official = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    first = official.responses.create(model="tiny", input="What is it?", max_output_tokens=12, instructions="Be brief.")
    assert first.status == "incomplete" and first.usage.output_tokens == 12
    again = [{"role": "user", "content": "What is it?"}, *first.output, {"role": "user", "content": "And now?"}]
    asked = {"model": "tiny", "input": again, "max_output_tokens": 8, "reasoning": {"effort": "none"}}
    whole = official.responses.create(**asked)
    told = list(official.responses.create(**asked, stream=True))
    text = "".join(event.delta for event in told if event.type == "response.output_text.delta")
    assert told[-1].type == "response.incomplete" and told[-1].response.output_text == text == whole.output_text


@pytest.mark.parametrize(
    "keys",
    [
        {"previous_response_id": "resp_1"}, {"input": []}, {"input": 5}, {"input": [{"type": "reasoning"}]},
        {"background": True}, {"n": 2}, {"unknown": 1},
        {"text": {"format": {"type": "json_schema"}}}, {"temperature": float("nan")}, {"tools": [{"type": "web_search"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}]},
    ],
)  # fmt: skip
def test_what_is_not_offered_is_refused(serve, keys):
    """By name, in the same envelope as everywhere."""
    response = serve().post("/v1/responses", content=json.dumps(ask(**keys)), headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["message"]
