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

    order = list(dict.fromkeys(event["type"].removeprefix("response.reasoning_") for event in told))
    summary = ["summary_part.added", "summary_text.delta", "summary_text.done", "summary_part.done"]
    assert [one for one in order if one in [*summary, "text.done"]] == [*summary, "text.done"]
    of_summary = [event for event in told if "reasoning_summary" in event["type"]]
    assert all((event["output_index"], event["summary_index"]) == (0, 0) for event in of_summary)
    assert {event["item_id"] for event in of_summary} == {told[-1]["response"]["output"][0]["id"]}
    first = message["stages"][0]["text"]
    assert "".join(event.get("delta", "") for event in of_summary) == of_summary[-2]["text"] == first
    assert (of_summary[0]["part"]["text"], of_summary[-1]["part"]["text"]) == ("", first)
    ended = [event["item"] for event in told if event["type"] == "response.output_item.done"]

    def settled(items):
        return json.loads(json.dumps([{**item, "id": 0, "stages": 0} for item in items]))

    assert settled(told[-1]["response"]["output"]) == settled(body["output"]) == settled(ended)


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


@pytest.mark.parametrize("search", [{}, BEAM], ids=["plain", "beam"])
def test_the_official_client_puts_a_stream_together(client, search):  # noqa: F811
    """Every event is of a kind that it knows, and what its accumulator comes to is the final response."""
    openai = pytest.importorskip("openai")
    asked = {**ask(), "extra_body": {"search": search}, "temperature": 0}
    import httpx

    class Transport(httpx.BaseTransport):
        def handle_request(self, request):
            response = client.post(request.url.path, content=request.read(), headers={"content-type": "application/json"})
            return httpx.Response(response.status_code, headers=dict(response.headers), content=response.content)

    official = openai.OpenAI(base_url="http://x/v1", api_key="none", http_client=httpx.Client(transport=Transport()))
    with official.responses.stream(**asked) as stream:
        told = list(stream)
        final = stream.get_final_response()
    assert {type(event).__name__ for event in told} >= {
        "ResponseReasoningSummaryPartAddedEvent", "ResponseReasoningSummaryTextDeltaEvent",
        "ResponseReasoningSummaryTextDoneEvent", "ResponseReasoningSummaryPartDoneEvent",
    }  # fmt: skip
    assert not [event for event in told if type(event).__name__ == "BaseModel"]
    assert final.output[0].summary[0].text and final.output_text


@pytest.mark.parametrize("stream", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_format_of_two_stages_has_no_summary(serve, stream):
    """Nor an answer without stages: its text is no summary of itself."""
    response = serve(formats=("two_stage",)).post("/v1/responses", json={"model": "two_stage", "input": "x", "stream": stream})
    assert "summary_text" not in response.text and response.status_code == 200


def test_prompts_of_both_passes_are_counted_once_each(serve, monkeypatch):
    """Whatever number of answers: the second prompt is the first one's with a rationale in it."""
    from lora_cot.serving.scheduler import Scheduler

    asked, read, lengths = serve(formats=("two_stage", "four_stage")), Scheduler.read, []

    def noted(self, ticket, engine, prompts):
        lengths.append(prompts.lengths[0])
        return read(self, ticket, engine, prompts)

    monkeypatch.setattr(Scheduler, "read", noted)
    for model, passes in (("two_stage", 2), ("four_stage", 1)):
        for n in (1, 3):
            lengths.clear()
            body = chat(model=model, n=n, temperature=0, max_tokens=8)
            usage = asked.post("/v1/chat/completions", json=body).json()["usage"]
            assert usage["prompt_tokens"] == sum(dict.fromkeys(lengths)) > 0 and len(set(lengths)) == passes
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
