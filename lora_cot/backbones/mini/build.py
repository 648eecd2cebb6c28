"""Making a miniature base: tokenizer, architecture, minutes of training, and a cache by what made it.

`python -m lora_cot.backbones.mini.build NAME FOLDER` builds one where one likes; `mini/NAME` in a recipe, in the cache.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_cot.backbones.cache_root import cache_root
from lora_cot.data.images import open_image
from lora_cot.errors import BackboneError, Problem, nearest
from lora_cot.types import Image, Sample

if TYPE_CHECKING:
    from lora_cot.backbones import Backbone, Family

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "<|end|>", "pad_token": "<pad>"}
SHIPPED = Path(__file__).parent / "shipped"
"""Bases that come with the package, so that the demo need not train one."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training on one mixture of the corpus."""

    steps: int
    batch_size: int
    mixture: Mapping[str, float]
    learning_rate: float = 1e-3


PERCEPTION = Phase(300, 64, {"captions": 1.0})
LANGUAGE = {"captions": 0.25, "direct": 0.2, "reasoning": 0.4, "words": 0.15}


@dataclass(frozen=True)
class MiniSpec:
    """Everything a base is made from. Perception comes first: taught all at once, captions never leave their plateau."""

    family: str
    phases: tuple[Phase, ...]
    vocab_size: int = 640
    width: int = 192
    layers: int = 4
    seed: int = 0

    def fingerprint(self) -> str:
        """Hash of the specification and of the first samples of each kind it is taught."""
        from lora_cot.backbones.mini import corpus

        kinds = sorted({kind for phase in self.phases for kind in phase.mixture})
        samples = [corpus.make(kind, number) for kind in kinds for number in range(50)]
        taught = [(s.last.question, s.last.answer, [_pixels(image) for image in s.images]) for s in samples]
        template = chat_template(architecture(self.family).image)
        made_of = repr((dataclasses.asdict(self), template, kinds, taught, corpus.tokenizer_texts(50)))
        return hashlib.sha256(made_of.encode()).hexdigest()[:16]


def _pixels(image: Image) -> str:
    """Hash of an image's pixels: another Pillow may write other bytes for the same picture."""
    return hashlib.sha256(open_image(image).tobytes()).hexdigest()


JUDGING = Phase(400, 40, {**LANGUAGE, "judging": 1.0}, learning_rate=5e-4)
T5_LANGUAGE = {"captions": 0.25, "direct": 0.2, "reasoning": 0.4, "bracket_words": 0.15}
T5_PHASES = (Phase(100, 64, {"captions": 1.0}, 3e-3), Phase(2500, 48, T5_LANGUAGE, 3e-3))

MINIS = {
    "llava": MiniSpec("llava", (PERCEPTION, Phase(1300, 48, LANGUAGE), JUDGING)),
    "llava-nojudge": MiniSpec("llava", (PERCEPTION, Phase(1300, 48, LANGUAGE))),
    "mllama": MiniSpec("mllama", (PERCEPTION, Phase(1300, 48, LANGUAGE))),
    "qwen2_vl": MiniSpec("qwen2_vl", (PERCEPTION, Phase(1300, 48, LANGUAGE))),
    "t5_vit": MiniSpec("t5_vision", T5_PHASES, width=128, layers=2),
    "t5_diffusion": MiniSpec("t5_diffusion", T5_PHASES, width=128, layers=2),
}
"""Bases by name: `model.base: mini/NAME`."""


def locate(name: str, taught: bool = True) -> Path:
    """Folder of a miniature base: shipped, cached, or built now.

    Args:
        name: of the base.
        taught: whether its weights are needed; a folder without them is made in no time.

    Raises:
        BackboneError: no base of that name.
    """
    if name not in MINIS:
        raise BackboneError(Problem("model.base", f"no miniature base 'mini/{name}'", nearest(name, MINIS)))
    spec = MINIS[name]
    fingerprint = spec.fingerprint()
    shipped = SHIPPED / name
    if (shipped / "built_from.json").is_file() and _built_from(shipped) == fingerprint:
        return shipped
    folder = cache_root("mini") / f"{name}-{fingerprint}"
    if not folder.is_dir() and not taught:
        folder = cache_root("mini") / f"{name}-{fingerprint}-untaught"
    if not folder.is_dir():
        build(spec, folder, taught)
    return folder


def _built_from(folder: Path) -> str:
    return json.loads((folder / "built_from.json").read_text())["fingerprint"]


def build(spec: MiniSpec, folder: Path, taught: bool = True) -> None:
    """Train a base and write it in bf16, or all of it but its weights. The folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        import torch

        model, processor = random_base(spec)
        if taught:
            if (teach_first := architecture(spec.family).teach_first) is not None:
                torch.manual_seed(spec.seed)
                teach_first(processor)
            _train(model, processor, spec)
            model.to(torch.bfloat16).save_pretrained(staging)
        else:
            model.to(torch.bfloat16).config.save_pretrained(staging)
        processor.save_pretrained(staging)
        _family(model).save_whole(processor, staging)
        made_from = {"fingerprint": spec.fingerprint(), **dataclasses.asdict(spec)}
        (staging / "built_from.json").write_text(json.dumps(made_from, indent=2) + "\n")
        staging.chmod(0o755)  # mkdtemp makes it private
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def chat_template(image: str) -> str:
    """The template of all miniatures.

    Args:
        image: what is written for an image.
    """
    return (
        "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}"
        "{% endif %}{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


@dataclass(frozen=True)
class Architecture:
    """How one kind of model is made small."""

    make_model: Callable[[Any, int, int], Any]
    """(tokenizer, width, layers) to a random model."""
    make_processor: Callable[[Any, str], Any]
    """(tokenizer, chat template) to its processor."""
    image: str = ""
    """What the chat template writes for an image."""
    special_tokens: tuple[str, ...] = ()
    """Control tokens for images that are part of the vocabulary."""
    teach_first: Callable[[Any], None] | None = None
    """Teaches what the processor holds of the model, before the rest."""
    own_tokenizer: Callable[[int], Any] | None = None
    """Size of a vocabulary to the tokenizer, of a kind that takes no chat."""


def architecture(name: str) -> Architecture:
    """The architecture of that `model_type`."""
    from lora_cot.backbones.mini import chameleon, llava, mllama, qwen2_vl, t5_diffusion, t5_vision

    marks = {module: (module.IMAGE, module.SPECIAL_TOKENS) for module in (chameleon, llava, mllama, qwen2_vl)}
    return {
        "chameleon": Architecture(chameleon.make_model, chameleon.make_processor, *marks[chameleon]),
        "llava": Architecture(llava.make_model, llava.make_processor, *marks[llava]),
        "llava_next": Architecture(llava.make_next_model, llava.make_next_processor, *marks[llava]),
        "llava_onevision": Architecture(llava.make_onevision_model, llava.make_onevision_processor, *marks[llava]),
        "mllama": Architecture(mllama.make_model, mllama.make_processor, *marks[mllama]),
        "qwen2_vl": Architecture(qwen2_vl.make_model, qwen2_vl.make_processor, *marks[qwen2_vl]),
        "qwen2_5_vl": Architecture(qwen2_vl.make_2_5_model, qwen2_vl.make_2_5_processor, *marks[qwen2_vl]),
        "t5_vision": Architecture(
            t5_vision.make_model, t5_vision.make_processor, "", (), t5_vision.teach_to_see, t5_vision.make_tokenizer
        ),
        "t5_diffusion": Architecture(*t5_diffusion.MADE, "", (), None, t5_vision.make_tokenizer),
    }[name]


def random_base(spec: MiniSpec) -> tuple[Any, Any]:
    """(model, processor) with random weights."""
    import torch

    made = architecture(spec.family)
    make_own = made.own_tokenizer or functools.partial(make_tokenizer, image=made.image, special_tokens=made.special_tokens)
    tokenizer = make_own(spec.vocab_size)
    torch.manual_seed(spec.seed)
    return made.make_model(tokenizer, spec.width, spec.layers), made.make_processor(tokenizer, chat_template(made.image))


@functools.cache
def make_tokenizer(vocab_size: int, image: str, special_tokens: tuple[str, ...]) -> Any:
    """Byte-level BPE of the corpus: short for its own words, able to spell any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from lora_cot.backbones.mini import corpus

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*SPECIAL_TOKENS.values(), *special_tokens, "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.tokenizer_texts(), trainer)
    added = special[3:] if special_tokens else [*special[3:], image]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=added, model_max_length=2048, **SPECIAL_TOKENS
    )


def _train(model: Any, processor: Any, spec: MiniSpec) -> None:
    from tqdm import tqdm

    from lora_cot.backbones import Backbone
    from lora_cot.data.collate import Collator
    from lora_cot.data.lengths import LengthLimit
    from lora_cot.formats import FORMATS

    family = _family(model)
    backbone = Backbone(family, model, processor, "")
    collate = Collator(LengthLimit(family.encoder(processor, FORMATS["direct"]), family.image_tokens), family.image_inputs)
    total = sum(phase.steps for phase in spec.phases)
    start = 0
    with tqdm(total=total, desc=f"building mini/{spec.family}", file=sys.stderr, mininterval=5) as bar:
        for phase in spec.phases:
            _train_phase(backbone, collate, phase, start, bar)
            start += phase.steps * phase.batch_size
    model.eval()


def _family(model: Any) -> Family:
    from lora_cot.backbones import FAMILIES

    return next(family for family in FAMILIES.values() if model.config.model_type in family.model_types)


def _train_phase(backbone: Backbone, collate: Any, phase: Phase, start: int, bar: Any) -> None:
    """All steps of a phase on the samples from number `start` on, with an optimizer of its own."""
    import torch

    from lora_cot.backbones.mini import corpus

    model, mixes = backbone.model, backbone.family.mixes_image_counts
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, phase.learning_rate, total_steps=phase.steps, pct_start=0.1)
    for step in range(phase.steps):
        samples = corpus.draw_batch(phase.mixture, phase.batch_size, start + step * phase.batch_size)
        groups = [samples] if mixes else [[s for s in samples if bool(s.images) == kind] for kind in (False, True)]
        loss = _loss(backbone, collate, [group for group in groups if group])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _loss(backbone: Backbone, collate: Any, groups: list[list[Sample]]) -> Any:
    """Mean loss of the texts' tokens plus mean loss of the verdicts', over groups of samples that share a forward.

    A verdict is one token among a hundred: in one mean over all tokens it would teach nothing.
    """
    import torch

    from lora_cot.data.labels import IGNORE_INDEX

    found: dict[bool, list[Any]] = {False: [], True: []}
    for samples in groups:
        logits, labels = backbone.label_logits(collate([{"sample": sample} for sample in samples]))
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        is_verdict = torch.tensor([[sample.meta.get("is_verdict", False)] for sample in samples])
        for kind, members in found.items():
            members.append(losses[(labels != IGNORE_INDEX) & (is_verdict == kind)])
    return sum(torch.cat(members).mean() for members in found.values() if any(len(m) for m in members))


if __name__ == "__main__":
    build(MINIS[sys.argv[1]], Path(sys.argv[2]))
