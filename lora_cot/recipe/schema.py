"""Every legal key of a recipe; those of the model, of data sources and of the search are in `model`, `sources` and `search`.

Keys of BitsAndBytesConfig, LoraConfig and SFTConfig pass through under their names.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from lora_cot.errors import Problem, RunError
from lora_cot.formats import FORMATS, CotFormat, Stage, format_called
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.search import SearchSection
from lora_cot.recipe.sections import LibrarySection, Section
from lora_cot.recipe.sources import AnySource

Part = Literal["vision_encoder", "projector", "language_model", "vae", "unet"]
"""The last two are of a T5 with diffusion features."""
SEES_IMAGES: frozenset[str] = frozenset({"vision_encoder", "projector", "vae", "unet"})
"""Parts that a sample without an image does not train."""


class StageSection(Section):
    """A stage declared in the recipe."""

    name: str
    tag: str | None = None
    """What its tags say; the name if not given."""
    is_answer: bool = False
    max_new_tokens: int = Field(512, gt=0)
    criterion: str = "answers the question better"
    cue: str = ""
    """Of a split format: what the prompt ends with when this stage is asked for."""
    made_of: tuple[str, ...] = ()
    """Stages of other formats whose joined texts are this one's gold text where it has none of its own."""


class FormatSection(Section):
    """What the reasoning looks like."""

    name: str = "four_stage"
    """A built-in format, or a name for the stages declared here."""
    stages: list[StageSection] | None = None
    """Own ordered stages; exactly one is the answer."""
    split: bool = False
    """Of own stages: each is generated in a pass of its own, with a prompt and an adapter of its own."""

    @model_validator(mode="after")
    def _split_is_declared(self) -> FormatSection:
        if self.split and self.stages is None:
            raise ValueError("split belongs to stages declared here: a built-in format is split or not")
        return self

    def build(self) -> CotFormat:
        """The format itself."""
        if self.stages is None:
            return FORMATS[self.name]
        return CotFormat(self.name, tuple(Stage(**stage.model_dump()) for stage in self.stages), split=self.split)


class DataSection(Section):
    """What is trained and evaluated on."""

    train: list[AnySource] = Field(default_factory=list)
    eval: list[AnySource] = Field(default_factory=list)
    held_out: int | None = Field(None, gt=0)
    """Rows of train, drawn at random, that are kept back and evaluated on instead; where eval names no source."""
    max_pixels: int = Field(40_000_000, gt=0)
    """Images of more pixels are refused before they are decoded."""

    @model_validator(mode="after")
    def _one_way(self) -> DataSection:
        if self.held_out is not None and self.eval:
            raise ValueError("held_out is for recipes whose eval names no source: drop one of them")
        return self


class QuantizationSection(LibrarySection):
    """Keys of BitsAndBytesConfig."""

    _library_keys: ClassVar[tuple[str, ...]] = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type")

    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    skip_parts: list[Literal[Part, "lm_head"]] = Field(["vision_encoder", "projector", "vae", "unet", "lm_head"])
    """Parts that keep full precision; lm_head must be one of them."""

    @field_validator("skip_parts")
    @classmethod
    def _head_is_whole(cls, value: list[str]) -> list[str]:
        if "lm_head" not in value:
            raise ValueError("lm_head must be among them: losses are computed from its weight, which must not be in 4-bit")
        return value


class PartLora(Section):
    """Settings of the adapters of one part that differ from the rest."""

    r: int | None = Field(None, gt=0)
    lora_alpha: int | None = Field(None, gt=0)
    learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)


NOT_LORA = {
    "loftq": "it fits the base's weights in one 4-bit form, which a merge into the base does not have",
    "corda": "it needs a pass over the data for its covariances, which is not made",
    "eva": "it needs a pass over the data, which is not made",
    "lora_ga": "it needs gradients over the data before training, which are not taken",
}
"""Initialisations of PEFT that are refused, and why."""
INITIALISATIONS = "allowed: true, false, gaussian, orthogonal, olora, pissa, pissa_niter_N"


class LoraSection(LibrarySection):
    """Keys of LoraConfig, and where the adapters go."""

    _library_keys: ClassVar[tuple[str, ...]] = ("r", "lora_alpha", "lora_dropout", "init_lora_weights")

    r: int = Field(8, gt=0)
    """Rank."""
    lora_alpha: int = Field(8, gt=0)
    """The update is scaled by lora_alpha / r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    init_lora_weights: bool | str = True
    """As in PEFT. pissa and olora rewrite the base's weights: they need one that is not quantised, and are saved as the
    plain LoRA (of twice the rank) that gives the same model on the original base."""
    parts: dict[Part, PartLora] = Field({"language_model": PartLora()}, min_length=1)
    """Parts whose linear layers get an adapter, as a list, or as a mapping to a part's own r, lora_alpha, learning_rate."""
    target_modules: list[str] | None = Field(None, min_length=1)
    """Leaf names of the layers, such as q_proj; all linear layers of the parts if not given."""
    loraplus_lr_ratio: float | None = Field(None, gt=0, allow_inf_nan=False)
    """LoRA+ (Hayou et al. 2024): the learning rate of B over that of A."""

    @field_validator("parts", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not value:
            raise ValueError("an adapter must go somewhere: name vision_encoder, projector or language_model")
        return {part: {} for part in value} if isinstance(value, list) and all(isinstance(v, str) for v in value) else value

    @field_validator("init_lora_weights")
    @classmethod
    def _known(cls, value: bool | str) -> bool | str:
        if value in NOT_LORA:
            raise ValueError(f"{value} is not possible: {NOT_LORA[str(value)]}; {INITIALISATIONS}")
        known = isinstance(value, bool) or re.fullmatch(r"gaussian|orthogonal|olora|pissa(_niter_\d+)?", value)
        if not known:
            raise ValueError(INITIALISATIONS)
        return value

    @property
    def rewrites_base(self) -> bool:
        """Whether the initialisation changes the base's own weights."""
        return str(self.init_lora_weights).startswith(("pissa", "olora"))


class TrainingSection(LibrarySection):
    """Keys of SFTConfig, and ours."""

    train_sampling_strategy: Literal["random", "group_by_length"] = "random"
    """Which samples make a step. A step is shared out to its batches by length either way; group_by_length makes steps
    of like length too: less padding where a step is one batch, and at times a worse model."""
    stage_weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field({})
    """Weight of each stage's loss; 1 where not given."""
    long_samples: Literal["error", "drop", "shrink_image"] = "error"
    """What happens to a sample of more than max_length tokens, image slots expanded: nothing is ever cut."""
    hand_on: Literal["gold", "predicted"] = "gold"
    """Of a split format, what later passes are trained on: gold text of the earlier stages, or what the earlier passes
    wrote for the same sample. They are asked with what was written either way."""
    early_stopping_patience: int | None = Field(None, gt=0)
    """Stop after so many evaluations without a better metric_for_best_model."""
    hang_after: float = Field(600, gt=0, allow_inf_nan=False)
    """Seconds without progress after which a run says which rank and which samples it hangs at."""
    eval_generations: int = Field(64, ge=0)
    """Held-out samples that are answered at each evaluation, for format validity and accuracy."""


class EvaluationSection(Section):
    """What `lora-cot eval` runs if not told otherwise."""

    benchmark: Literal[
        "shapes",
        "scienceqa",
        "aokvqa",
        "m3cot",
        "llava_wild",
        "multi30k",
        "mmmu",
        "mmstar",
        "mmbench",
        "ai2d",
        "mathvista",
        "mmvet",
        "hallusionbench",
    ] = "shapes"
    data: str | None = None
    """Where the benchmark's files are; not for shapes. Where data.train or data.eval names the same source, its own."""
    split: str | None = None
    """The benchmark's first split if not given."""
    limit: int | None = Field(None, gt=0)
    batch_size: int = Field(8, gt=0)
    """Questions answered at once; each takes memory for all its candidates."""
    after_training: bool = False
    """Whether the run that training leaves is measured at once; into evaluation.json, each answer into evaluation.jsonl."""


class Recipe(Section):
    """One run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    """The run's folder is runs/NAME."""
    model: ModelSection
    format: FormatSection = FormatSection()
    data: DataSection = DataSection()
    quantization: QuantizationSection | None = None
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()
    search: SearchSection = SearchSection()
    evaluation: EvaluationSection = EvaluationSection()
    versions: dict[str, str] | None = None
    """Written into a run's own copy: the packages it ran with."""

    def in_format(self, name: str | None) -> Recipe:
        """The recipe with a built-in format in place of its own; as it is where none is named.

        Raises:
            RunError: there is none of that name, or one of both is generated in passes, each by an adapter of its own.
        """
        if name is None:
            return self
        if format_called(name).split or self.format.build().split:
            what = "a format that is generated in passes needs the adapters that were trained in it"
            raise RunError(Problem("--format", what, "leave it out"))
        return self.model_copy(update={"format": FormatSection(name=name)})

    @model_validator(mode="after")
    def _parts_agree(self) -> Recipe:
        given = self.model.diffusion
        for part in ("vae", "unet"):
            is_lora = given is not None and getattr(given, part) == "lora"
            if is_lora and part not in self.lora.parts:
                raise ValueError(f"model.diffusion.{part} is lora: name {part} in lora.parts")
            if part in self.lora.parts and not is_lora:
                raise ValueError(f"lora.parts names {part}: set model.diffusion.{part}: lora")
        model, is_named = self.model, "vision_encoder" in self.lora.parts
        if model.vision_training == "lora" and not is_named:
            raise ValueError("model.vision_training is lora: name vision_encoder in lora.parts")
        if is_named and (model.vision_training or "lora") != "lora":
            raise ValueError("lora.parts names vision_encoder: set model.vision_training: lora")
        return self
