"""The surface of /v1/chat/completions on a model that writes nonsense."""

import gc

import pytest

from lora_cot.engines.cache import KeyValues
from lora_cot.engines.local import LocalEngine
from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.run import answer
from lora_cot.serving.models import ServedModel
from lora_cot.types import Exchange, Sample
from tests.serving.conftest import SHORT, chat, chunks, data_uri

BEAM = {"strategy": "stage_beam", "candidates": 3}


def post(client, **keys):
    return client.post("/v1/chat/completions", json=chat(**keys))


def test_a_served_recipe_may_look_at_its_images_again(serve):
    """The answer is another than without; a question without an image is answered too."""
    plain, looks = serve(), serve({"interleave": {"faithful": True}})  # at the prompt's end already
    texts = [[post(one, **image).json()["choices"][0]["message"]["content"] for one in (plain, looks)] for image in IMAGES]
    assert texts[0][0] != texts[0][1] and texts[1][0] == texts[1][1]


IMAGES: tuple[dict, ...] = ({"image": data_uri(), "include_reasoning": False}, {"include_reasoning": False})


def test_an_answer_is_the_engines(serve, local):
    """Greedy, the text that the engine writes alone, in OpenAI's shape; the cost in tokens is the true one."""
    client = serve()
    body = post(client, image=data_uri(), include_reasoning=False).json()
    import base64

    image = base64.b64decode(data_uri().partition(",")[2])
    sample = Sample("x", (Exchange("What is it?"),), (image,))
    config = SearchSection.model_validate(SHORT)
    (found,) = answer(LocalEngine(local.backbone, FORMATS["four_stage"]), FORMATS["four_stage"], [sample], config)
    (choice,) = body["choices"]
    assert choice["message"]["content"] == found.text and choice["finish_reason"] == "length"
    usage = body["usage"]
    assert usage["completion_tokens"] == found.kept_tokens == usage["search"]["generated_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["search"]["calls"] == {"generate": 1, "judge": 0} and usage["search"]["strategy"] == "greedy"
    assert body["object"] == "chat.completion" and body["model"] == "four_stage"
    assert client.service.admission.requests == 0 and client.service.admission.tokens == 0


@pytest.mark.parametrize(
    "search", [None, {"strategy": "stage_beam", "candidates": 3, "return": "trace"}], ids=["plain", "beam"]
)
@pytest.mark.parametrize("reasoning", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_says_what_the_whole_answer_says(serve, search, reasoning, n):
    """Text, reasoning and usage are the same; the last chunk but usage has the reason it ended."""
    client = serve()
    keys = {"seed": 3, "n": n, "include_reasoning": reasoning, **({"search": search} if search else {"temperature": 0.8})}
    whole = post(client, **keys).json()
    streamed = chunks(post(client, stream=True, stream_options={"include_usage": True}, **keys))
    for choice in whole["choices"]:
        mine = [c["choices"][0] for c in streamed if c["choices"] and c["choices"][0]["index"] == choice["index"]]
        for field in ("content", "reasoning_content", "reasoning"):
            assert "".join(c["delta"].get(field, "") for c in mine) == choice["message"].get(field, "")
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
    assert streamed[-1]["usage"] == whole["usage"]
    assert {chunk["id"] for chunk in streamed} == {streamed[0]["id"]}
    if n == 2:
        assert whole["choices"][0]["message"] != whole["choices"][1]["message"], "independent answers"


def test_without_a_search_text_comes_token_by_token(serve):
    """More than a few chunks for twenty tokens; with a search, a chunk for each stage."""
    client = serve()
    assert len(chunks(post(client, stream=True, include_reasoning=False))) > 8
    beam = chunks(post(client, stream=True, search={"strategy": "stage_beam", "candidates": 2}))
    stages = [c["choices"][0]["delta"]["stage"] for c in beam if "stage" in c["choices"][0]["delta"]]
    assert [stage["name"] for stage in stages] == ["SUMMARY"] and stages[0]["candidates"] == 2


def test_a_trace_has_all_candidates(serve):
    """Of each stage as it is decided, and in the message otherwise."""
    client = serve()
    search = {"strategy": "stage_beam", "candidates": 3, "scorer": "pairwise", "return": "trace"}
    streamed = chunks(post(client, stream=True, seed=1, search=search))
    (stage,) = [c["choices"][0]["delta"]["stage"] for c in streamed if "stage" in c["choices"][0]["delta"]]
    assert len(stage["candidates"]) == 3 and stage["comparisons"]
    assert {"text", "tokens", "score", "chosen"} <= set(stage["candidates"][0])
    assert {"first", "second", "margin", "winner", "flipped"} <= set(stage["comparisons"][0])
    message = post(client, seed=1, search=search).json()["choices"][0]["message"]

    def timeless(values):
        return [{**v, "seconds": 0} for v in values]

    assert timeless(message["trace"]["steps"][0]["candidates"]) == timeless(stage["candidates"])
    assert "trace" not in post(client, search=search | {"return": "stages"}).json()["choices"][0]["message"]


def test_judges_are_counted(serve):
    """In `usage.search`, not in the tokens of the answer."""
    body = post(serve(), search={"strategy": "stage_beam", "candidates": 3, "scorer": "self_judge"}, seed=1).json()
    search = body["usage"]["search"]
    assert search["calls"]["judge"] >= 2 and search["judge_prompt_tokens"] > 0
    assert search["generated_tokens"] == 18 and body["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize(
    ("swires", "high"),
    [({"mean": 0}, "stage_beam"), ({"mean": 0, "std": 1}, "swires"), ({"cutoff": 0}, "swires")],
)
def test_the_highest_effort_goes_back_where_it_is_known_when(swires, high):
    """A mean alone is no cutoff: the search would be refused."""
    search = SearchSection(scorer="reward", reward={"url": "http://localhost"}, swires=swires)
    model = ServedModel("m", FORMATS["four_stage"], search, lambda _: None, lambda *_: 0)
    assert model.presets["high"]["strategy"] == high


@pytest.mark.parametrize(
    ("keys", "strategy"),
    [
        ({}, "greedy"),
        ({"temperature": 0.7}, "sample"),
        ({"temperature": 0}, "greedy"),
        ({"reasoning_effort": "none", "temperature": 0.7}, "greedy"),
        ({"reasoning_effort": "low"}, "sample"),
        ({"reasoning_effort": "medium"}, "adaptive"),
        ({"reasoning_effort": "high"}, "stage_beam"),
        ({"reasoning_effort": "high", "search": {"strategy": "majority"}}, "majority"),
        ({"search": {"strategy": "best_of_n"}}, "best_of_n"),
        ({"search": {"strategy": "sentence_beam", "max_tokens": 60, "deadline_s": 5}}, "sentence_beam"),
    ],
)
def test_effort_and_search_choose_the_strategy(serve, keys, strategy):
    """What is said of the search wins over the preset, and that over the model's own."""
    response = post(serve(), **keys)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["search"]["strategy"] == strategy


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 11, 24, 500])
def test_an_answer_has_at_most_the_tokens_that_were_asked_for(serve, tokens):
    """Of one text exactly so many, if its budgets allow; a search needs one for each stage."""
    client = serve()
    for field in ("max_tokens", "max_completion_tokens"):
        body = post(client, **{field: tokens}).json()
        assert body["usage"]["completion_tokens"] == min(tokens, 24)
    response = post(client, max_tokens=tokens, search={"strategy": "stage_beam", "candidates": 2})
    assert response.status_code == (200 if tokens >= 4 else 400)


def test_a_conversation_goes_on(serve):
    """System messages, earlier answers without their reasoning, reasoning sent back: all are taken."""
    client = serve()
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": data_uri()}}, {"type": "text", "text": "Colour?"}],
        },
        {
            "role": "assistant",
            "content": "Red",
            "refusal": None,
            "reasoning_content": "hm",
            "reasoning": "hm",
            "stages": [{"name": "SUMMARY"}],
        },
        {"role": "user", "content": "And now?"},
    ]
    long = client.post("/v1/chat/completions", json={"model": "four_stage", "messages": messages})
    assert long.status_code == 200, long.text
    without = [dict(messages[2]) if n == 2 else m for n, m in enumerate(messages)]
    for field in ("reasoning_content", "reasoning", "stages"):
        without[2].pop(field)
    short = client.post("/v1/chat/completions", json={"model": "four_stage", "messages": without})
    assert short.json()["usage"]["prompt_tokens"] == long.json()["usage"]["prompt_tokens"]


def test_models_are_listed_with_their_searches(serve):
    """Each by its name, with presets; another name is an error that lists them."""
    client = serve(formats=("four_stage", "direct"))
    listed = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["four_stage", "direct"]
    one = client.get("/v1/models/four_stage").json()
    assert one["x_search"]["reasoning_effort"]["high"]["strategy"] == "stage_beam" and one["x_search"]["max_candidates"] == 16
    assert client.get("/v1/models/direct").json()["x_search"]["reasoning_effort"]["high"]["strategy"] == "best_of_n"
    missing = post(client, model="other")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
    assert post(client, model="direct").status_code == 200
    wrong = post(client, model="direct", search={"strategy": "stage_beam"})
    assert wrong.status_code == 400 and "no stages" in wrong.json()["error"]["message"]


@pytest.mark.parametrize("keys", [{}, {"stream": True}, {"n": 2, "temperature": 1.0}], ids=str)
def test_what_was_read_goes_with_its_request(serve, keys):
    """No cache of keys and values waits for the garbage collector, but that of the request that the engine answered last."""
    client = serve()
    post(client, **keys)
    gc.collect()
    gc.disable()
    try:
        before = roots()
        for _ in range(3):
            post(client, image=data_uri(), **keys)
        assert roots() <= before + keys.get("n", 1)
    finally:
        gc.enable()


def roots():
    """Prompts whose keys and values are held."""
    return sum(isinstance(one, KeyValues) for one in gc.get_objects())


def test_stop_strings_end_the_visible_text(serve):
    """And are not in it."""
    client = serve()
    text = post(client).json()["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 :][:2]
    choice = post(client, stop=stop).json()["choices"][0]
    assert choice["message"]["content"] == text[: text.find(stop)] and choice["finish_reason"] == "stop"
    streamed = chunks(post(client, stop=[stop], stream=True))
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in streamed) == text[: text.find(stop)]
