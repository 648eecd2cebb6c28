"""What an engine should compute: one forward over everything, without a cache."""

import copy
import sys
from contextlib import contextmanager

import torch
from transformers import AttentionInterface

from lora_cot.data.collate import batch, encode, model_inputs
from lora_cot.data.shapes import make_sample
from lora_cot.engines import batch as batch_of_rows
from lora_cot.engines.sampling import draw
from lora_cot.engines.sight import patch_view
from lora_cot.types import Exchange, Sample

SAMPLES = [make_sample(i, "test", 0) for i in range(3)]
TEXT_ONLY = Sample("text", (Exchange("2 and 2?"),))  # shorter than the others, so that batches are padded


def full_logits(engine, sample, generated):
    """Logits of the next token by one forward over everything, without a cache."""
    encoded = encode(engine.encoder, sample, False)
    if encoded.is_pair:
        return decoded_logits(engine, encoded, generated)
    encoded.input_ids.extend(generated)
    encoded.labels.extend(generated)
    encoded.stage_ids.extend([0] * len(generated))
    inputs = model_inputs(batch([encoded], engine.backbone.processor, engine.backbone.family.image_inputs))
    with torch.inference_mode():
        return engine.backbone.model(**inputs).logits[0, -1]


def decoded_logits(engine, encoded, generated):
    """The same of an encoder-decoder."""
    inputs = model_inputs(batch([encoded], engine.backbone.processor, engine.backbone.family.image_inputs))
    written = torch.tensor([[engine.backbone.model.config.decoder_start_token_id, *generated]])
    with torch.inference_mode():
        return engine.backbone.model(**inputs, decoder_input_ids=written, use_cache=False).logits[0, -1]


def spy(monkeypatch):
    """The logits of every step, in order."""
    steps = []
    monkeypatch.setattr(batch_of_rows, "draw", lambda logits, *rest: steps.append(logits) or draw(logits, *rest))
    return steps


class Patches(list):
    """Numbers of patches that were shown, among pieces of tokens."""


def whole(engine, sample, pieces, is_square=False):
    """Logits and attentions after one forward over a prompt and pieces of tokens or patches, without a cache.

    Positions are worked out anew: text counts on after an image's largest coordinate.
    """
    backbone, model = engine.backbone, engine.backbone.base_model
    encoded = encode(engine.encoder, sample, False)
    inputs = {"input_ids": torch.tensor([encoded.input_ids]), "attention_mask": torch.ones(1, len(encoded.input_ids)).long()}
    inputs |= backbone.family.image_inputs(backbone.processor, [encoded], inputs)
    embed = model.get_input_embeddings()
    seen = []
    language_model = model.get_submodule(backbone.family.parts["language_model"])
    hook = language_model.layers[0].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    model(**inputs)
    hook.remove()
    prompt = seen[0][0]
    grids = patch_view(backbone).grids(backbone.processor, encoded)
    cells = [[divmod(n, columns) for n in range(rows * columns)] for rows, columns in grids]
    token = backbone.processor.tokenizer.convert_tokens_to_ids(backbone.processor.image_token)
    slots = [place for place, one in enumerate(encoded.input_ids) if one == token]
    before, last = patch_view(backbone).marks(backbone.processor)
    is_qwen = "qwen" in model.config.model_type
    places, begin = [], 0

    def text(count):
        nonlocal begin
        places.extend([(begin + k,) * 3 for k in range(count)])
        begin += count

    def patches(cells):
        nonlocal begin
        if not is_qwen:
            return text(len(cells))
        found = [(begin, begin + row, begin + column) for row, column in cells]
        places.extend(found)
        begin = max(max(place) for place in found) + 1

    read, left = 0, list(slots)
    for mine in cells:
        text(left[0] - read)
        patches(mine)
        read, left = left[0] + len(mine), left[len(mine) :]
    text(len(prompt) - read)
    cells = [cell for mine in cells for cell in mine]
    embedded = [prompt]
    for piece in pieces:
        if isinstance(piece, Patches):
            text(len(before))
            side = next(side for side in range(1, 99) if side * side >= len(piece))
            patches([divmod(k, side) if is_square else cells[n] for k, n in enumerate(piece)])
            text(1)
            marks = torch.tensor(before, dtype=torch.long), torch.tensor([last])
            embedded += [embed(marks[0]), prompt[slots][piece], embed(marks[1])]
        else:
            text(len(piece))
            embedded.append(embed(torch.tensor(piece, dtype=torch.long)))
    positions = torch.tensor(places).T[:, None] if is_qwen else torch.tensor(places)[None, :, 0]
    maps = []
    eager = sys.modules[type(language_model).__module__].eager_attention_forward

    def full(module, query, key, value, mask, **keys):
        found, weights = eager(module, query, key, value, causal, **keys)
        maps.append(weights)
        return found, weights

    length = sum(map(len, embedded))
    causal = torch.full((length, length), -torch.inf).triu(1)[None, None]
    with other_attention(language_model, full):
        logits = model(inputs_embeds=torch.cat(embedded)[None], position_ids=positions).logits
    return logits[0, -1], maps


@contextmanager
def other_attention(language_model, function):
    """Another attention in all layers."""
    modules = [module for module in language_model.modules() if hasattr(module, "k_proj")]
    before = [module.config for module in modules]
    AttentionInterface.register("test", function)
    for module in modules:
        module.config = copy.copy(module.config)
        module.config._attn_implementation = "test"
    try:
        yield
    finally:
        for module, config in zip(modules, before, strict=True):
            module.config = config
