"""From a request to the question that is asked and the search that answers it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from lora_cot.errors import nearest
from lora_cot.recipe.schema import SearchSection
from lora_cot.recipe.search import UNSCORED
from lora_cot.serving.errors import ApiError
from lora_cot.serving.images import check_pixels, image_bytes
from lora_cot.serving.limits import Limits
from lora_cot.serving.models import ServedModel
from lora_cot.serving.schema import ImagePart, Message, SearchOptions, TextPart
from lora_cot.types import Exchange, Sample

SENTENCE_ANSWERS = 4
"""Whole answers that each candidate of a sentence beam may come to: nothing else bounds what is drawn and not chosen."""


def image_urls(messages: Sequence[Message], limits: Limits) -> list[str]:
    """The images of all messages, as they are named there.

    Raises:
        ApiError: an image in a message that can have none, or too many.
    """
    urls: list[str] = []
    for number, message in enumerate(messages):
        parts = message.content if isinstance(message.content, list) else []
        images = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
        if images and message.role != "user":
            raise ApiError(400, "only a user's message can hold images", "invalid_value", f"messages.{number}")
        urls += images
    if len(urls) > limits.max_images:
        raise ApiError(400, f"{len(urls)} images, at most {limits.max_images} are allowed", "invalid_image", "messages")
    return urls


def sample_of(messages: Sequence[Message], limits: Limits, fetched: Mapping[str, bytes]) -> Sample:
    """The question, what was said before it, and the images.

    System messages stand before the first question. Images of any message are shown with the first one, as models are
    trained. Of earlier answers, the content is shown, and no reasoning.

    Args:
        messages: of a request.
        limits: of the server.
        fetched: images that were named by their address.

    Raises:
        ApiError: the messages make no question.
        DataError: an image that is none, or more pixels than are decoded.
    """
    turns: list[tuple[str, str]] = []
    for message in messages:
        parts = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content or []
        text = "\n".join(part.text for part in parts if isinstance(part, TextPart))
        who = "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1][0] == who:
            turns[-1] = (who, "\n\n".join(filter(None, (turns[-1][1], text))))
        else:
            turns.append((who, text))
    if (count := sum(len(text) for _, text in turns)) > limits.max_characters:
        what = f"the messages have {count:,} characters, at most {limits.max_characters:,} are read"
        raise ApiError(400, what, "context_length_exceeded", "messages")
    if not turns or turns[0][0] != "user" or turns[-1][0] != "user" or messages[-1].role != "user":
        what = "the first message must not be the assistant's, and the last one must be the user's"
        raise ApiError(400, what, "invalid_value", "messages")
    urls = image_urls(messages, limits)
    if not turns[-1][1].strip() and not urls:
        raise ApiError(400, "the question is empty", "invalid_value", "messages")
    pairs = zip(turns[::2], turns[1::2], strict=False)
    exchanges = [Exchange(question, answer=answer) for (_, question), (_, answer) in pairs]
    images = tuple(fetched.get(url) or image_bytes(url, limits.fetching.most_bytes) for url in urls)
    check_pixels(images, limits.max_image_pixels)
    return Sample("answer", (*exchanges, Exchange(turns[-1][1])), images)


def search_of(
    model: ServedModel, effort: str | None, options: SearchOptions | None, sampling: dict[str, Any], limits: Limits
) -> SearchSection:
    """The settings of a request's search: the model's own, over them the preset, the options, and how tokens are drawn.

    Args:
        model: that answers.
        effort: names a preset.
        options: the request's own.
        sampling: temperature, top_p, seed; None where not given. A temperature alone asks for a drawn text.
        limits: of the server.

    Raises:
        ApiError: settings that are none, or too much.
    """
    options = options or SearchOptions()
    keys = options.model_dump(include={"strategy", "candidates", "keep", "scorer", "weighted"}, exclude_none=True)
    values = {**model.search.model_dump(), **(model.presets[effort] if effort else {}), **keys}
    values |= {key: value for key, value in sampling.items() if value is not None}
    if sampling.get("seed") is None:
        values["seed"] = secrets.randbits(31)
    if values["strategy"] == "greedy" and sampling.get("temperature") and not (effort or "strategy" in keys):
        values["strategy"] = "sample"
    if values["scorer"] == "pairwise":
        values["scorer"] = "self_judge"
    if values["scorer"] == "reward" and model.search.reward is None:
        raise ApiError(400, "this model has no reward server", "invalid_value", "search.scorer")
    values["stages"] = _stages(model, values["stages"], options)
    values["max_search_tokens"] = options.max_tokens or model.search.max_search_tokens
    seconds = [limits.request_seconds, options.deadline_s, model.search.deadline_seconds]
    values["deadline_seconds"] = min(one for one in seconds if one is not None)
    try:
        config = SearchSection.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(["search", *map(str, first["loc"])])
        raise ApiError(400, f"{place}: {first['msg']}", "invalid_value", place) from None
    if (most := max(config.most_candidates, config.candidates)) > limits.max_candidates:
        what = f"{most} candidates, at most {limits.max_candidates} are allowed"
        raise ApiError(400, what, "search_budget_exceeded", "search.candidates")
    return config


def _stages(model: ServedModel, known: dict[str, Any], options: SearchOptions) -> dict[str, Any]:
    names = [stage.name for stage in model.cot_format.stages]
    merged = dict(known)
    for name, stage in options.stages.items():
        if name not in names:
            raise ApiError(400, f"no stage of that name: {nearest(name, names)}", "invalid_value", "search.stages")
        given = stage.model_dump(exclude_none=True)
        if "max_tokens" in given:
            given["max_new_tokens"] = given.pop("max_tokens")
        merged[name] = {**merged.get(name, {}), **given}
    return merged


def within(
    model: ServedModel,
    config: SearchSection,
    prompt: int,
    most: int | None,
    shown: Callable[[int], int] = lambda drawn: 0,
) -> SearchSection:
    """The settings with budgets that fit.

    Args:
        model: that answers.
        config: its budgets by stage are made smaller in proportion, if they are more than what is left.
        prompt: tokens of the prompt.
        most: tokens of an answer that the request allows.
        shown: tokens of an answer to those of its images that it may be shown again.

    Raises:
        ApiError: the prompt, or what was asked for after it, is longer than the model's context.
    """
    budgets = {stage.name: config.budget(stage) for stage in model.cot_format.stages}
    allowed = sum(budgets.values()) if most is None else min(most, sum(budgets.values()))
    if model.context is not None:
        asked = 1 if most is None else most
        if prompt + asked + (again := shown(asked)) > model.context:
            has = f"{prompt:,}, its images may be shown again in {again:,}," if again else f"{prompt:,},"
            what = f"the model reads {model.context:,} tokens; the prompt has {has} and {asked:,} more were asked for"
            raise ApiError(400, what, "context_length_exceeded", "messages")
        room = model.context - prompt
        allowed = next(count for count in range(min(allowed, room), 0, -1) if count + shown(count) <= room)
    if allowed < len(budgets):
        if config.strategy not in UNSCORED:
            what = f"a search needs a token for each of {len(budgets)} stages, and {allowed} are left"
            raise ApiError(400, what, "invalid_value", "max_completion_tokens")
        config = config.model_copy(update={"max_search_tokens": min(allowed, config.max_search_tokens or allowed)})
    if allowed < sum(budgets.values()):
        values = config.model_dump()
        for name, tokens in shared(budgets, allowed).items():
            values["stages"].setdefault(name, {})["max_new_tokens"] = tokens
        config = SearchSection.model_validate(values)
    if config.strategy == "sentence_beam" and config.max_search_tokens is None:
        config = config.model_copy(update={"max_search_tokens": SENTENCE_ANSWERS * config.candidates * allowed})
    return config


def shared(budgets: dict[str, int], allowed: int) -> dict[str, int]:
    """Budgets in proportion that make up what is allowed, at least one token each."""
    total = sum(budgets.values())
    found = {name: max(1, allowed * budget // total) for name, budget in budgets.items()}
    while sum(found.values()) > max(allowed, len(found)):
        found[max(found, key=lambda name: found[name])] -= 1
    found[list(found)[-1]] += max(0, allowed - sum(found.values()))
    return found
