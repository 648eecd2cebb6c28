"""Keys of a recipe's search section."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from lora_cot.errors import Problem, nearest
from lora_cot.formats import Stage
from lora_cot.recipe.interleave import InterleaveSection, section_of, unseen
from lora_cot.recipe.sections import OWN_FUNCTION, Section

StrategyName = Literal[
    "greedy", "sample", "majority", "best_of_n", "sentence_beam", "stage_beam", "swires", "two_pass", "adaptive"
]
UNSCORED = ("greedy", "sample", "two_pass")
"""Strategies that write one text: they choose nothing, so no scorer is made for them."""
ScorerName = Literal["logprob", "self_judge", "reward"]


UNBOUNDED: dict[str, None] = {"max_search_tokens": None, "deadline_seconds": None, "interleave": None}
"""Keys of a search that nothing bounds but its stages, for answers that must not depend on time; nor on further looks."""

NO_SERVER = Problem("search.reward.url", "the scorer reward has no server", "name its address")
NO_SCORE = Problem(
    "search.scorer",
    "a judge of pairs gives no score that a cutoff could be for",
    "use logprob or reward, or a function of your own",
)
NO_CUTOFF = Problem(
    "search.swires",
    "it is not known which scores are good ones",
    "set search.swires.mean and std to what lora_cot.calibrate measures, or a cutoff",
)


class StageSearch(Section):
    """Settings of one stage that differ from the rest."""

    candidates: int | None = Field(None, gt=0)
    keep: int | None = Field(None, gt=0)
    max_new_tokens: int | None = Field(None, gt=0)
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)


class SwiresSection(Section):
    """Retracing search: go back to the last stage but two while the reasonings are not good enough."""

    keep: int = Field(2, gt=0)
    """Candidates of a stage that go on; a round is accepted when so many reasonings score above the cutoff."""
    retraces: int = Field(3, ge=0)
    """Further rounds at most."""
    cutoff: float | None = Field(None, allow_inf_nan=False)
    """Score in the scorer's unit; mean + z · std if not given."""
    mean: float | None = Field(None, allow_inf_nan=False)
    """Of the scores of reasonings; `lora_cot.calibrate` measures both."""
    std: float | None = Field(None, ge=0, allow_inf_nan=False)
    z: float = Field(0.2533, allow_inf_nan=False)
    """0.2533 accepts what is among the best 40 % of a normal distribution."""

    @property
    def accepts_above(self) -> float | None:
        """The score that a reasoning must be above; None if it is not known."""
        if self.cutoff is None and self.mean is not None and self.std is not None:
            return self.mean + self.z * self.std
        return self.cutoff


class RewardSection(Section):
    """A server that scores texts: see `search/rewards.py` for what it is sent."""

    url: str
    timeout_seconds: float = Field(60, gt=0, allow_inf_nan=False)
    """For one answer, each time it is asked."""
    tries: int = Field(3, gt=0)


class SearchSection(Section):
    """How an answer is looked for."""

    strategy: StrategyName = "greedy"
    candidates: int = Field(4, gt=0)
    """Texts drawn at each step; of adaptive, at most."""
    keep: int = Field(1, gt=0)
    """Of a beam: texts that go on, each with its share of the candidates; at most as many as there are candidates."""
    temperature: float = Field(0.6, ge=0, allow_inf_nan=False)
    top_p: float = Field(0.9, gt=0, le=1)
    seed: int = 0
    weighted: bool = False
    """Of majority and adaptive: each vote counts by its score; adaptive stops by their number all the same."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Of adaptive: how sure it must be that the leading answer stays ahead of the second."""
    max_search_tokens: int | None = Field(None, gt=0)
    """Tokens of all candidates of a question together, and of what its judges write."""
    deadline_seconds: float | None = Field(None, gt=0, allow_inf_nan=False)
    """For all the questions that are answered together, judging included."""
    scorer: str = "logprob"  # and not self_judge: judging itself does not help every model
    """One of `ScorerName`; or package.module:function, of an installed package that declares it: see `search/scorers.py`."""
    judge_adapter: bool = True
    """Whether the judge is the fine-tuned model (on) or its base (off)."""
    faithful: bool = False
    """Of self_judge and swires: the procedure as it was released, faults included."""
    reward: RewardSection | None = None
    """Of the scorer reward: where it is."""
    swires: SwiresSection = SwiresSection()
    stages: dict[str, StageSearch] = Field({})
    interleave: InterleaveSection | None = None
    """Whether and how patches of the image are shown again while the answer is written, whatever the strategy."""

    @field_validator("interleave", mode="before")
    @classmethod
    def _interleave_is_named(cls, value: Any) -> Any:
        return section_of(value)

    @field_validator("scorer")
    @classmethod
    def _scorer_is_named(cls, value: str) -> str:
        names = get_args(ScorerName)
        if value not in names and not re.fullmatch(OWN_FUNCTION, value):
            raise ValueError(f"no scorer '{value}': {nearest(value, names)}, or package.module:function")
        return value

    def problems(self, is_encoder_decoder: bool, hides_images: bool = False) -> list[Problem]:
        """What is wrong with the section whatever the questions, as far as it can be told before a model is loaded.

        Args:
            is_encoder_decoder: the model is known to be one.
            hides_images: its images are known not to be in its text.
        """
        found = [NO_SERVER] if self.scorer == "reward" and self.reward is None else []
        if self.interleave and (is_encoder_decoder or hides_images):
            found.append(unseen("an encoder-decoder" if is_encoder_decoder else "Mllama, which are not in its text,"))
        if self.strategy == "swires" and not self.faithful and self.swires.accepts_above is None:
            found.append(NO_CUTOFF)
        if self.strategy == "swires" and self.scorer == "self_judge":
            found.append(NO_SCORE)
        elif self.scorer == "self_judge" and is_encoder_decoder:
            what = "an encoder-decoder answers nothing but what it was trained on: it cannot judge"
            found.append(Problem("search.scorer", what, "use logprob or reward"))
        return found

    def budget(self, stage: Stage) -> int:
        """Tokens of a stage at most: those given here, or the format's own."""
        own = self.stages.get(stage.name)
        return (own and own.max_new_tokens) or stage.max_new_tokens

    @property
    def most_candidates(self) -> int:
        """Texts of a question that are written at once, at most."""
        if self.strategy in UNSCORED:
            return 1
        return max(self.candidates, *(stage.candidates or 0 for stage in self.stages.values()), 1)
