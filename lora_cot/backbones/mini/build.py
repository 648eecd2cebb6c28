"""Making a miniature base: tokenizer, architecture, minutes of training, and a cache by what made it.

`python -m lora_cot.backbones.mini.build NAME FOLDER` builds one where one likes; `mini/NAME` in a recipe, in the cache.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_cot.backbones.cache_root import appearing, cache_root
from lora_cot.backbones.mini.teaching import Phase, family_of_model, teach
from lora_cot.data.images import open_image
from lora_cot.errors import BackboneError, Problem, nearest
from lora_cot.types import Image

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "<|end|>", "pad_token": "<pad>"}
SHIPPED = Path(__file__).parent / "shipped"
"""Bases that come with the package, so that the demo need not train one."""


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

DIFFUSION_PHASES = (
    Phase(300, 32, {"reasoning": 0.6, "bracket_words": 0.4}, 3e-3),
    Phase(350, 32, {"captions": 0.7, "direct": 0.1, "reasoning": 0.1, "bracket_words": 0.1}, 1.5e-3),
)
"""Language first: it is cheap without images. With faster steps than the last phase's, the latents shrink to nothing."""

MINIS = {
    "llava": MiniSpec("llava", (PERCEPTION, Phase(1300, 48, LANGUAGE), JUDGING)),
    "llava-nojudge": MiniSpec("llava", (PERCEPTION, Phase(1300, 48, LANGUAGE))),
    "mllama": MiniSpec("mllama", (PERCEPTION, Phase(1300, 48, LANGUAGE))),
    "qwen2_vl": MiniSpec("qwen2_vl", (PERCEPTION, Phase(1300, 48, LANGUAGE))),
    "t5_vit": MiniSpec("t5_vision", T5_PHASES, width=128, layers=2),
    "t5_diffusion": MiniSpec("t5_diffusion", DIFFUSION_PHASES, width=64, layers=2),
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
    """Train a base and write it in bf16, or all of it but its weights; see `appearing`."""
    import torch

    with appearing(folder) as staging:
        model, processor = random_base(spec)
        if taught:
            if (teach_first := architecture(spec.family).teach_first) is not None:
                torch.manual_seed(spec.seed)
                teach_first(model, processor)
            teach(model, processor, spec.phases, f"building mini/{spec.family}")
            model.to(torch.bfloat16).save_pretrained(staging)
        else:
            model.to(torch.bfloat16).config.save_pretrained(staging)
        processor.save_pretrained(staging)
        family_of_model(model).save_whole(processor, staging)
        made_from = {"fingerprint": spec.fingerprint(), **dataclasses.asdict(spec)}
        (staging / "built_from.json").write_text(json.dumps(made_from, indent=2) + "\n")


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
    teach_first: Callable[[Any, Any], None] | None = None
    """(model, processor): teaches what is learned by pictures alone, before the rest."""
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
            t5_vision.make_model, t5_vision.make_processor, "", (), t5_vision.teach_first, t5_vision.make_tokenizer
        ),
        "t5_diffusion": Architecture(*t5_diffusion.MADE, "", (), t5_diffusion.teach_first, t5_vision.make_tokenizer),
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


if __name__ == "__main__":
    wanted = Path(sys.argv[2])
    if wanted.exists():
        sys.exit(str(Problem(str(wanted), "there is something at this place already", "name another, or remove it")))
    build(MINIS[sys.argv[1]], wanted)
