"""Scores from a reward model behind HTTP.

The server is sent a contest with one POST of a JSON object:

    {"question": "…", "image": "data:image/png;base64,…", "stage": "REASONING", "given": "…", "candidates": ["…", "…"]}

`image` is null where the question has none, and the first one where it has several; `given` is what stands before each of
the candidates, without tags; `stage` is `all` for a whole answer and `sentence` for a sentence. It answers, in the same order:

    {"scores": [-0.31, 0.2]}

finite numbers, the higher the better. Passing faults are tried again (`engines/chat.py`), but not beyond the search's
deadline, and a server that left four requests in a row unanswered is left alone for half a minute. A server that gives no
scores for a contest leaves it to likelihood, counted as a failure. An address that no server answers at is an error, if it
never scored anything in this search.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel, FiniteFloat

from lora_cot.engines.chat import ChatServer, Patience
from lora_cot.engines.image_parts import image_part
from lora_cot.engines.retries import Circuit, Retries
from lora_cot.errors import AccessError, DataError, EngineError, LoraCotError, SearchError
from lora_cot.recipe.search import NO_SERVER, RewardSection
from lora_cot.search.contests import Contest, Scorer, Verdict, logprob, verdict_of

AT_ONCE = 8
"""Contests that are sent at the same time."""


class _Answer(BaseModel):
    scores: list[FiniteFloat]


def reward(section: RewardSection | None) -> Scorer:
    """The scorer of a server.

    Args:
        section: where it is.

    Raises:
        SearchError: no server is named.
        AccessError: it is no address; or, as it is called: nothing ever answered there, or only with a key.
    """
    if section is None:
        raise SearchError(NO_SERVER)
    patience, url = Patience(section.timeout_seconds, section.tries), section.url
    ChatServer(url, key_option=None).close()  # refuses what is no address
    retries, has_answered = Retries(Circuit()), False

    def score(contests: Sequence[Contest]) -> list[Verdict]:
        nonlocal has_answered
        server = ChatServer(url, patience=patience, exact=True, key_option=None)
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                found = list(pool.map(lambda one: _scores(server, one, retries), contests))
        finally:
            server.close()
        has_answered |= any(isinstance(scores, list) for scores in found)
        refused = next((one for one in found if isinstance(one, AccessError)), None)
        if refused and not has_answered:
            raise refused
        return [_verdict(one, scores) for one, scores in zip(contests, found, strict=True)]

    return score


def _scores(server: ChatServer, contest: Contest, retries: Retries) -> list[float] | LoraCotError:
    """A score for each candidate, or why there is none."""
    try:
        told = server.post("", _told(contest), _Answer.model_validate_json, contest.deadline, retries)
    except (EngineError, DataError) as error:
        return error
    if len(told.scores) != len(contest.texts):
        return EngineError(f"{len(told.scores)} scores for {len(contest.texts)} candidates")
    return told.scores


def _verdict(contest: Contest, found: list[float] | LoraCotError) -> Verdict:
    if isinstance(found, LoraCotError):
        return verdict_of(contest, logprob([contest])[0].scores, failures=1)
    return verdict_of(contest, found, "reward")


def _told(contest: Contest) -> dict[str, Any]:
    images = contest.sample.own_images
    return {
        "question": contest.question,
        "image": image_part(images[0], sys.maxsize)["image_url"]["url"] if images else None,  # the engine has accepted it
        "stage": contest.stage.name,
        "given": " ".join(text for _, text in contest.given),
        "candidates": list(contest.texts),
    }
