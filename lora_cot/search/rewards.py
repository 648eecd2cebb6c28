"""Scores from a reward model behind HTTP.

The server is sent a contest with one POST of a JSON object:

    {"candidates": [{"question": "…", "image": "data:image/png;base64,…", "stage": "REASONING", "given": "…", "text": "…"}]}

`image` is null where the question has none, and the first one where it has several; `given` is what stands before `text`,
without tags; `stage` is `all` for a whole answer and `sentence` for a sentence. It answers, in the same order:

    {"scores": [-0.31]}

finite numbers, the higher the better. Passing faults are tried again (`engines/chat.py`); a server that gives no scores
for a contest leaves it to likelihood, counted as a failure. An address that no server answers at is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, FiniteFloat

from lora_cot.engines.chat import ChatServer, Patience
from lora_cot.engines.image_parts import image_part
from lora_cot.errors import AccessError, EngineError, Problem, SearchError
from lora_cot.recipe.search import RewardSection
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
        AccessError: it is no address; or, as it is called: nothing answers there, or only with a key.
    """
    if section is None:
        raise SearchError(Problem("search.reward.url", "the scorer reward has no server", "name its address"))
    patience = Patience(section.timeout_seconds, section.tries)
    ChatServer(section.url).close()  # refuses what is no address
    scheme, _, rest = section.url.strip().partition("://")
    host, _, path = rest.partition("/")

    def score(contests: Sequence[Contest]) -> list[Verdict]:
        server = ChatServer(section.url, patience=patience)
        server.url = f"{scheme}://{host}"  # it is asked at this very address, and not beneath /v1

        def one(contest: Contest) -> Verdict:
            try:
                scores = server._ask("POST", path, {"candidates": _told(contest)}, _Answer.model_validate_json).scores
            except AccessError:
                raise
            except EngineError:
                scores = []
            if len(scores) != len(contest.texts):
                return verdict_of(contest, logprob([contest])[0].scores, failures=1)
            return verdict_of(contest, scores, "reward")

        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                return list(pool.map(one, contests))
        finally:
            server.close()

    return score


def _told(contest: Contest) -> list[dict[str, str | None]]:
    images = contest.sample.images
    shared = {
        "question": contest.question,
        "image": image_part(images[0])["image_url"]["url"] if images else None,
        "stage": contest.stage.name,
        "given": " ".join(text for _, text in contest.given),
    }
    return [{**shared, "text": text} for text in contest.texts]
