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
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, ViTConfig, ViTImageProcessor, ViTModel

from lora_cot.backbones.t5_vision_model import T5VisionConfig, T5VisionForConditionalGeneration
from lora_cot.data import shapes

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


def make_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> T5VisionForConditionalGeneration:
    """A random FLAN-T5 with a fusion: gated GELU, a head of its own. Widths are multiples of 64, as 4-bit layers want.

    Args:
        tokenizer: gives the size of the vocabulary.
        width: D.
        layers: of the encoder, and of the decoder: with more of the latter, transformers' `generate` makes a cache too short.
    """
    other: dict[str, Any] = {"tie_word_embeddings": False, "decoder_start_token_id": tokenizer.pad_token_id}
    config = T5VisionConfig(
        **other,
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=32,
        num_heads=width // 32,
        d_ff=2 * width,
        num_layers=layers,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        image_width=VISION_WIDTH,
        image_patches=PATCHES,
        vision_features="vit",
    )
    model = T5VisionForConditionalGeneration(config)
    with torch.no_grad():  # T5's own deviation of 1 begins with a loss of dozens of nats
        model.lm_head.weight.mul_(width**-0.5)
    return model


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


def make_processor(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> Any:
    """The tokenizer, and a random ViT in a folder of its own that is gone with the process."""
    import tempfile
    from pathlib import Path

    from lora_cot.backbones.t5_vision import T5VisionProcessor
    from lora_cot.backbones.vision_features import VisionFeatures

    folder = tempfile.mkdtemp()
    make_vision_encoder().save_pretrained(folder)
    make_image_processor().save_pretrained(folder)
    return T5VisionProcessor(tokenizer, VisionFeatures("vit", folder, cache=Path(folder) / "kept"))
