"""A sample as a chat is the prompt that the model gets here, token by token."""

import io

from PIL import Image

from lora_cot.data.collate import encode
from lora_cot.data.images import open_image
from lora_cot.engines.prompts import chat_messages
from lora_cot.formats import FORMATS
from lora_cot.types import Exchange, Sample

FORMAT = FORMATS["four_stage"]
GOLD = {stage.name: f"some {stage.name.lower()}" for stage in FORMAT.stages}


def picture():
    buffer = io.BytesIO()
    Image.effect_noise((40, 40), 90).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def rendered(processor, messages, images):
    """The tokens that a server makes of it: every content as parts, the template around them."""
    parts = [
        {**m, "content": [{"type": "text", "text": m["content"]}] if isinstance(m["content"], str) else m["content"]}
        for m in messages
    ]
    placed = [
        {**m, "content": [{"type": "image"} if part["type"] == "image_url" else part for part in m["content"]]} for m in parts
    ]
    text = processor.apply_chat_template(placed, tokenize=False, add_generation_prompt=True)
    return processor(images=images or None, text=text)["input_ids"][0]


def test_the_prompt_is_the_same(tiny):
    """With earlier exchanges as they were answered, options of the last question, and an image in the first turn."""
    exchanges = (Exchange("What is it?", stages=GOLD, answer="4"), Exchange("How many?"))
    for images in ((), (picture(),)):
        sample = Sample("s", exchanges, images, choices=("one", "two"))
        messages = chat_messages(FORMAT, sample)
        assert [message["role"] for message in messages] == ["user", "assistant", "user"]
        found = rendered(tiny.processor, messages, [open_image(image) for image in images])
        assert list(found) == encode(tiny.encoder(FORMAT), sample, False).input_ids


def test_demonstrations_come_first(tiny):
    """Texts and images in turn, before the question's own image."""
    images = (picture(), picture(), picture())
    sample = Sample("s", (Exchange("How many?"),), images, preface=(None, "One: ", None, "two."))
    messages = chat_messages(FORMAT, sample)
    kinds = [part["type"] for part in messages[0]["content"]]
    assert kinds == ["image_url", "text", "image_url", "text", "image_url", "text"]
    found = rendered(tiny.processor, messages, [open_image(image) for image in images])
    assert list(found) == encode(tiny.encoder(FORMAT), sample, False).input_ids
