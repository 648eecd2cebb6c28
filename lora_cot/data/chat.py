"""A sample for a model that goes on from its prompt: the chat template around it, and the prompt masked.

Training and inference share it, so that the masked part of a training sample *is* the generation prompt. The chat
template is rendered around placeholders first: text that people or models wrote cannot reach it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any

from PIL import Image as PILImage
from PIL.Image import Resampling

from lora_cot.data.images import open_image
from lora_cot.data.labels import IGNORE_INDEX, NO_STAGE, Encoded
from lora_cot.data.lengths import scaled
from lora_cot.data.tokens import SafeTokenizer
from lora_cot.errors import BackboneError, Problem
from lora_cot.formats import CotFormat
from lora_cot.types import Exchange, Image, Sample

DATE = "26 Jul 2024"
"""The date in Llama's templates, their own default: with today's, a sample would be another one tomorrow."""

_SPAN = "LORACOTSPAN{}X"
_SPANS = re.compile(r"(LORACOTSPAN\d+X)")


class ChatEncoder:
    """Turns samples into tokens for one processor and one format."""

    def __init__(self, processor: Any, cot_format: CotFormat):
        """
        Args:
            processor: a Hugging Face processor with `tokenizer`, `image_token` and a chat template.
            cot_format: how prompts and targets are written.

        Raises:
            BackboneError: the processor has no chat template.
        """
        if not getattr(processor, "chat_template", None):
            raise BackboneError(
                Problem(type(processor).__name__, "the processor has no chat template", "use the instruction-tuned checkpoint")
            )
        self.processor, self.format = processor, cot_format
        self.tokenizer = processor.tokenizer
        self.image_token = processor.image_token
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        self._safe = SafeTokenizer(self.tokenizer, [self.image_token])
        special = sorted(set(self.tokenizer.all_special_tokens) - {self.image_token}, key=len, reverse=True)
        first = self.tokenizer("x")["input_ids"][:1]
        self._bos = first if self.tokenizer.bos_token and first == [self.tokenizer.bos_token_id] else []
        self._rendered: dict[tuple[int, int, int], str] = {}
        self._end = re.compile(r"\s*(" + "|".join(map(re.escape, special)) + ")")

    def look(self, image: Image, max_pixels: int, scale: float = 1.0) -> PILImage.Image:
        """See `Encoder.look`: the image, decoded."""
        opened = open_image(image, max_pixels)
        return opened if scale == 1.0 else opened.resize(scaled(opened.size, scale), Resampling.BICUBIC)

    def prompt(self, sample: Sample, images: Sequence[PILImage.Image], like: Encoded | None = None) -> Encoded:
        """See `Encoder.prompt`."""
        seen = (like.image_slots, like.image_inputs) if like else image_slots(self.processor, images)
        return self._encode(sample, *seen, answered=len(sample.exchanges) - 1)

    def training(self, sample: Sample, images: Sequence[PILImage.Image]) -> Encoded:
        """See `Encoder.training`; all exchanges are trained."""
        return self._encode(sample, *image_slots(self.processor, images), answered=len(sample.exchanges))

    def count(self, sample: Sample) -> tuple[int, int]:
        """See `Encoder.count`."""
        encoded = self._encode(sample, [[] for _ in sample.images], {}, answered=len(sample.exchanges), staged=False)
        return encoded.length, encoded.trained

    def control_tokens(self, text: str) -> list[str]:
        """See `Encoder.control_tokens`."""
        return self._safe.control_tokens(text)

    def unknown_characters(self, text: str) -> list[str]:
        """See `Encoder.unknown_characters`."""
        return self._safe.unknown_characters(text)

    def answer_ids(self, answer: str) -> list[int]:
        """See `Encoder.answer_ids`."""
        encoded = self.training(Sample("", (Exchange("?", answer=answer),)), [])
        return [label for label in encoded.labels if label != IGNORE_INDEX]

    def _encode(
        self, sample: Sample, slots: Sequence[Sequence[int]], image_inputs: dict[str, Any], answered: int, staged: bool = True
    ) -> Encoded:
        """The sample with its first answers; without stage ids, if they are not asked for, in two thirds of the time."""
        images, waiting = len(slots) - sample.preface.count(None), list(slots)
        last = len(sample.exchanges) - 1
        trains = answered > last
        golds = [
            self.format.write(self.format.gold(exchange)) if trains else self.format.said(exchange)
            for exchange in sample.exchanges[:answered]
        ]
        texts = [
            self.format.question(exchange, sample.choices if turn == last else ())
            for turn, exchange in enumerate(sample.exchanges)
        ]
        out, end = Encoded([], [], [], image_inputs, len(slots), slots), ""
        for turn, question in enumerate(texts):
            prompt = self._render(turn + 1, turn, images)
            new = self._after(prompt, 2 * turn - 1).removeprefix(end) if turn else prompt
            before = [] if turn else self._before(prompt, images, sample.preface)
            self._append_prompt(out, new, question, waiting, before)
            if turn < answered:
                whole = self._render(turn + 1, turn + 1, images)
                after = self._after(whole, 2 * turn + 1)
                end = match.group() if (match := self._end.match(after)) else ""
                lead = whole[len(prompt) : -len(after) or None].removesuffix(_SPAN.format(2 * turn + 1))
                self._append_answer(out, lead if whole.startswith(prompt) else "", golds[turn], end, staged)
        if waiting:
            raise BackboneError(
                Problem("chat template", f"{len(waiting)} of {len(slots)} images found no slot", "check the template")
            )
        return out

    def _render(self, questions: int, answers: int, images: int) -> str:
        """The chat template around placeholders: spans 2i are questions, spans 2i+1 answers."""
        if (key := (questions, answers, images)) in self._rendered:  # placeholders make all samples alike
            return self._rendered[key]
        messages: list[dict[str, Any]] = []
        for turn in range(questions):
            content = [{"type": "image"}] * (images if turn == 0 else 0)
            messages.append({"role": "user", "content": [*content, {"type": "text", "text": _SPAN.format(2 * turn)}]})
            if turn < answers:
                text = {"type": "text", "text": _SPAN.format(2 * turn + 1)}
                messages.append({"role": "assistant", "content": [text]})
        dated = {"date_string": DATE} if "date_string" in str(self.processor.chat_template) else {}
        prompt = questions > answers
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **dated)
        return self._rendered.setdefault(key, text)

    def _after(self, rendered: str, number: int) -> str:
        """What the template writes after a placeholder."""
        _, found, after = rendered.partition(_SPAN.format(number))
        if not found:
            what = "it leaves out what was said before"
            raise BackboneError(Problem("chat template", what, "use a template that keeps the whole conversation"))
        return after

    def _before(self, rendered: str, images: int, preface: Sequence[str | None]) -> list[tuple[str, bool]]:
        """The first turn up to its images, and the preface, whose images are written as the template writes one."""
        if not preface:
            return []
        one, two = (self._render(1, 0, count).partition(_SPAN.format(0))[0] for count in (1, 2))
        image = two.removeprefix(one)
        lead = rendered.partition(_SPAN.format(0))[0].removesuffix(image * images)
        return [(lead, True), *((image, True) if piece is None else (piece, False) for piece in preface)]

    def _append_prompt(
        self, out: Encoded, rendered: str, question: str, slots: list[Sequence[int]], before: Sequence[tuple[str, bool]]
    ) -> None:
        """Add a prompt: the template's text around a question, what it begins with replaced; nothing of it is trained."""
        rest = rendered[len(before[0][0]) :] if before else rendered
        pieces = [(question, False) if _SPANS.fullmatch(piece) else (piece, True) for piece in _SPANS.split(rest) if piece]
        tokens = self._safe.tokens([*before, *pieces])
        if not out.input_ids:
            tokens = self._beginning(rendered) + tokens
        ids: list[int] = []
        for token in tokens:
            ids.extend(slots.pop(0) if token == self.image_token_id and slots else [token])
        out.input_ids.extend(ids)
        out.labels.extend([IGNORE_INDEX] * len(ids))
        out.stage_ids.extend([NO_STAGE] * len(ids))

    def _append_answer(self, out: Encoded, lead: str, gold: list, end: str, staged: bool) -> None:
        """Add an answer and its end token, both trained, as the model is to write them after the prompt.

        Args:
            out: what there is so far.
            lead: what the template writes before an answer beyond its own generation prompt: a space.
            gold: the stages with their text.
            end: what it writes after an answer, up to its end token. LLaVA-1.5's template writes none: without one the
                model would never learn to stop.
            staged: with stage ids.
        """
        pieces = [(lead, True), ("".join(text for _, text in gold), False), (end, True)]
        ends = list(accumulate((len(text) for _, text in gold), initial=len(lead)))
        last, edges = len(gold) - 1, ends[1:-1]
        written = [piece for piece in pieces if piece[0]]
        ids, positions = self._safe.placed_tokens(written) if staged else (self._safe.tokens(written), [])
        stages = [bisect_right(edges, position) for position in positions]
        if not end:
            ids, stages = [*ids, self.tokenizer.eos_token_id], [*stages, last]
        out.input_ids.extend(ids)
        out.labels.extend(ids)
        out.stage_ids.extend(stages)

    def _beginning(self, rendered: str) -> list[int]:
        return self._bos if self._bos and not rendered.startswith(self.tokenizer.bos_token) else []


def image_slots(processor: Any, images: Sequence[PILImage.Image]) -> tuple[list[list[int]], dict[str, Any]]:
    """Token ids that stand for each image, and what the model gets for all of them."""
    if not images:
        return [], {}
    # One call for all of a sample's images: how one is shown may depend on how many there are.
    text = "\n".join([processor.image_token] * len(images))
    made = dict(processor(images=[list(images)], text=text, add_special_tokens=False, return_tensors="pt"))
    ids = made.pop("input_ids")[0].tolist()
    made.pop("attention_mask", None)
    own = set(processor.image_token_ids)  # of some, marks around an image too
    runs = [list(run) for is_image, run in groupby(ids, own.__contains__) if is_image]
    assert len(runs) == len(images), "the processor joined the slots of two images"
    return runs, made
