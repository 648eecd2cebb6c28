"""A tiny T5 that sees through a tiny frozen ViT: the miniature of Multimodal-CoT.

The ViT is taught first and alone, by classification, as published ones were; afterwards it is frozen, and the T5 knows
images by its features only.

Traps:
- The tokenizer lacks what T5's lacks: `<`, `{`, `}` and `~` become `<unk>`, and a newline is a space like any other.
- Its texts must hold everything that formats write (tags in brackets, cues of prompts): what a base has never written,
  LoRA under a frozen head cannot teach.
"""

from __future__ import annotations

import functools
import string
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage
from torch import nn
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration, ViTConfig, ViTImageProcessor, ViTModel

from lora_cot.backbones.t5_vision import T5VisionProcessor
from lora_cot.backbones.t5_vision_model import T5VisionConfig, T5VisionForConditionalGeneration
from lora_cot.backbones.vision_features import VisionFeatures
from lora_cot.data import shapes
from lora_cot.data.images import open_image

IMAGE_SIZE, PATCH_SIZE = 56, 28
"""One patch for each cell of a scene."""
PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2 + 1
"""P, the class token first."""
VISION_WIDTH = 64
"""D_image."""
SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
"""In the order of their ids, T5's."""
MISSING = "<{}~"
"""Printable characters that the vocabulary lacks."""
BATCH = 64
"""Scenes of a step while the ViT is taught."""
_FOLDERS = ExitStack()
CONTENTS = ["nothing", *shapes.THING_NAMES]
"""What a cell may hold: the classes that the ViT is taught by."""


def tokenizer_texts() -> list[str]:
    """Text the tokenizer is made from: the corpus, with tags as T5 can write them, and the words of all prompts."""
    from lora_cot.backbones.mini import corpus
    from lora_cot.formats import FORMATS

    formats = [cot_format.spelled("brackets") for cot_format in FORMATS.values()]
    tags = [tag for f in formats for stage in f.stages for tag in (f.opening(stage), f.closing(stage)) if tag]
    cues = sorted({stage.cue for f in formats for stage in f.stages if stage.cue})
    words = " ".join([*dict.fromkeys(tags), *cues, "Question: Context: Options: (A) (B) (C) (D) (E)", *string.digits])
    texts = [in_brackets(text) for text in corpus.tokenizer_texts()]
    return [*texts, *[words] * 200]


def in_brackets(text: str) -> str:
    """A text of the corpus with its tags as T5 writes them."""
    return text.replace("<", "[").replace(">", "]")


@functools.cache
def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """BPE over words with a mark for the space before each, as T5's pieces look; spells all printable ASCII but `MISSING`.

    Runs of whitespace are one space, `</s>` ends every text, and nothing begins one.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS["unk_token"], fuse_unk=True))
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    alphabet = [chr(code) for code in range(33, 127) if chr(code) not in MISSING]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=["▁", *alphabet],
        limit_alphabet=len(alphabet) + 1,
        show_progress=False,
    )
    tokenizer.train_from_iterator(tokenizer_texts(), trainer)
    eos = SPECIAL_TOKENS["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, tokenizer.token_to_id(eos))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **SPECIAL_TOKENS)


def t5_values(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> dict[str, Any]:
    """Of a T5: gated GELU, its head tied to its embedding. Widths are multiples of 64, as 4-bit layers want."""
    return {
        "decoder_start_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
        "d_model": width,
        "d_kv": 32,
        "num_heads": width // 32,
        "d_ff": 2 * width,
        "num_layers": layers,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def make_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> T5VisionForConditionalGeneration:
    """A random T5 with a fusion.

    Args:
        tokenizer: gives the size of the vocabulary.
        width: D.
        layers: of the encoder, and of the decoder: with more of the latter, transformers' `generate` makes a cache too short.
    """
    values = t5_values(tokenizer, width, layers)
    config = T5VisionConfig(**values, vision_features="vit", image_width=VISION_WIDTH, image_patches=PATCHES)
    model = T5VisionForConditionalGeneration(config)
    begin_copying(model, config)
    return model


@torch.no_grad()
def begin_copying(model: T5VisionForConditionalGeneration, config: T5VisionConfig) -> None:
    """Random, but for what training from nothing is slow to find: how to go on with a text that is being copied.

    One head looks at the token before; the decoder looks at encoded tokens that are like its own, and writes what it
    finds there. Without it a line of seven pieces is still not repeated after 300 steps; with it, after 100.
    """
    # transformers skips T5's own rules in classes that are not its own, and leaves an encoder with deviations of 1
    model.load_state_dict(T5ForConditionalGeneration(config).state_dict(), strict=False)
    decoder: Any = model.decoder
    stacks: list[Any] = [model.encoder, decoder]
    for stack in stacks:
        stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight[1, 0] += 4.0
    for block in decoder.block:
        attention = block.layer[1].EncDecAttention
        attention.o.weight.copy_(attention.v.weight.T)
        attention.q.weight.copy_(attention.k.weight * model.config.d_kv**-0.5)


def make_image_processor() -> ViTImageProcessor:
    """Images of any shape become 56×56."""
    return ViTImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})


def make_vision_encoder(width: int = VISION_WIDTH, layers: int = 2) -> ViTModel:
    """A random ViT without a pooler."""
    config = ViTConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=2 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTModel(config, add_pooling_layer=False)


def make_processor(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> T5VisionProcessor:
    """The tokenizer, and a random ViT in a folder that is gone with the process."""
    folder = Path(_FOLDERS.enter_context(tempfile.TemporaryDirectory(prefix="lora_cot-vit-")))
    make_vision_encoder().save_pretrained(folder)
    make_image_processor().save_pretrained(folder)
    return T5VisionProcessor(tokenizer, VisionFeatures("vit", str(folder), cache=folder / "features"))


def teach_first(model: Any, processor: T5VisionProcessor) -> None:
    """Teach the ViT that the processor holds; the model is given its features."""
    teach_to_see(processor)


def teach_to_see(processor: T5VisionProcessor, scenes: int = 4000, steps: int = 400) -> None:
    """Teach the ViT, before its features are first asked for, to tell what is in each cell and which cell it is.

    By two linear heads on each patch's token, which are thrown away; training scenes alone.
    """
    assert processor.features is not None
    folder = Path(processor.features.encoder)
    read = make_image_processor()
    images, contents = zip(*(labelled_scene(number) for number in range(scenes)), strict=True)
    pixels = read(images=list(images), return_tensors="pt")["pixel_values"]
    labels = torch.tensor(contents)
    places = torch.arange(PATCHES - 1).repeat(BATCH)
    encoder = make_vision_encoder()
    heads = nn.ModuleList([nn.Linear(VISION_WIDTH, len(CONTENTS)), nn.Linear(VISION_WIDTH, PATCHES - 1)])
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.2)
    for _ in range(steps):
        rows = torch.randint(0, scenes, (BATCH,))
        tokens = encoder(pixel_values=pixels[rows]).last_hidden_state[:, 1:].flatten(0, 1)
        answers = (labels[rows].flatten(), places)
        loss = sum(nn.functional.cross_entropy(head(tokens), answer) for head, answer in zip(heads, answers, strict=True))
        loss.backward()  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    encoder.save_pretrained(folder)


def labelled_scene(number: int) -> tuple[PILImage.Image, list[int]]:
    """A training scene as a picture, and what is in each of its cells; none that the T5 is taught with."""
    from lora_cot.backbones.mini import corpus

    scene, rng = shapes.scene_of(10_000_000 + number, "train", corpus.SEED)
    contents = [CONTENTS.index(str(cell)) if cell else 0 for cell in scene.cells]
    return open_image(shapes.draw(scene, rng)), contents
