"""What an engine should compute: one forward over everything, without a cache."""

import torch

from lora_cot.data.collate import batch, encode
from lora_cot.data.shapes import make_sample
from lora_cot.engines import batch as batch_of_rows
from lora_cot.engines.sampling import draw
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
    inputs = batch([encoded], engine.backbone.processor, engine.backbone.family.image_inputs)
    inputs = {k: v for k, v in inputs.items() if k not in ("labels", "stage_ids")}
    with torch.inference_mode():
        return engine.backbone.model(**inputs).logits[0, -1]


def decoded_logits(engine, encoded, generated):
    """The same of an encoder-decoder."""
    inputs = batch([encoded], engine.backbone.processor, engine.backbone.family.image_inputs)
    inputs = {k: v for k, v in inputs.items() if k not in ("labels", "stage_ids")}
    written = torch.tensor([[engine.backbone.model.config.decoder_start_token_id, *generated]])
    with torch.inference_mode():
        return engine.backbone.model(**inputs, decoder_input_ids=written, use_cache=False).logits[0, -1]


def spy(monkeypatch):
    """The logits of every step, in order."""
    steps = []
    monkeypatch.setattr(batch_of_rows, "draw", lambda logits, *rest: steps.append(logits) or draw(logits, *rest))
    return steps
