"""From a sample to token ids with the prompt masked: the one place where text becomes tokens.

Training and inference share it, so that the masked part of a training sample *is* the generation prompt. Text that
people or models wrote is never trusted: the chat template is rendered around placeholders first, and a control token
or image slot inside such text is tokenised as the plain characters it is.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

from PIL import Image as PILImage

from lora_cot.errors import BackboneError, DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.types import Exchange, Sample

IGNORE_INDEX = -100
"""Label of a token that carries no loss."""
NO_STAGE = -1
"""Stage id of a token that carries no loss."""

DATE = "26 Jul 2024"
"""The date in Llama's templates, their own default: with today's, a sample would be another one tomorrow."""

_SPAN = "LORACOTSPAN{}X"
_SPANS = re.compile(r"(LORACOTSPAN\d+X)")


@dataclass(frozen=True)
class Encoded:
    """One sample as the model sees it."""

    input_ids: list[int]
    """(T,) with image slots expanded."""
    labels: list[int]
    """(T,) the token where it is trained, IGNORE_INDEX elsewhere."""
    stage_ids: list[int]
    """(T,) index of the stage a trained token belongs to, its tags included; the end token counts to the last."""
    image_inputs: dict[str, Any]
    """What the processor made of the sample's images: pixel values and their companions; empty if it has none."""
    images: int = 0
    """Number of images."""

    @property
    def prompt_length(self) -> int:
        """Tokens before the first trained one; all of them in a prompt."""
        return next((i for i, label in enumerate(self.labels) if label != IGNORE_INDEX), len(self.labels))


class Encoder:
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
        control = {*self.tokenizer.get_added_vocab(), *self.tokenizer.all_special_tokens, self.image_token}
        self._control = re.compile("|".join(re.escape(token) for token in sorted(control, key=len, reverse=True)))
        special = sorted(set(self.tokenizer.all_special_tokens) - {self.image_token}, key=len, reverse=True)
        first = self.tokenizer("x")["input_ids"][:1]
        self._bos = first if self.tokenizer.bos_token and first == [self.tokenizer.bos_token_id] else []
        self._rendered: dict[tuple[int, int, int], str] = {}
        self._end = re.compile(r"\s*(" + "|".join(map(re.escape, special)) + ")")

    def prompt(self, sample: Sample, images: Sequence[PILImage.Image]) -> Encoded:
        """The generation prompt of the last exchange, the earlier ones answered by their gold text."""
        return self._encode(sample, *image_slots(self.processor, images), answered=len(sample.exchanges) - 1)

    def training(self, sample: Sample, images: Sequence[PILImage.Image]) -> Encoded:
        """Prompt and gold answers of all exchanges; only the answers and their end tokens are trained.

        Raises:
            DataError: an exchange has no gold text for some stage.
        """
        return self._encode(sample, *image_slots(self.processor, images), answered=len(sample.exchanges))

    def count(self, sample: Sample) -> tuple[int, int]:
        """Number of tokens of `training` without its image slots, and how many of them are trained; no image is opened.

        Raises:
            DataError: an exchange has no gold text for some stage.
        """
        encoded = self._encode(sample, [[] for _ in sample.images], {}, answered=len(sample.exchanges), staged=False)
        return len(encoded.input_ids), len(encoded.labels) - encoded.labels.count(IGNORE_INDEX)

    def control_tokens(self, text: str) -> list[str]:
        """The tokenizer's own tokens that a text quotes, in order; they are tokenised as plain characters."""
        return self._control.findall(text)

    def answer_ids(self, answer: str) -> list[int]:
        """The tokens of a short answer as a model would write them after any prompt."""
        encoded = self.training(Sample("", (Exchange("?", answer=answer),)), [])
        return [label for label in encoded.labels if label != IGNORE_INDEX]

    def _encode(
        self, sample: Sample, slots: Sequence[list[int]], image_inputs: dict[str, Any], answered: int, staged: bool = True
    ) -> Encoded:
        """The sample with its first answers; without stage ids, if they are not asked for, in two thirds of the time."""
        images, waiting = len(slots), list(slots)
        golds = [self.format.write(self.format.gold(exchange)) for exchange in sample.exchanges[:answered]]
        last = len(sample.exchanges) - 1
        texts = [
            self.format.question(exchange, sample.choices if turn == last else ())
            for turn, exchange in enumerate(sample.exchanges)
        ]
        out, end = Encoded([], [], [], image_inputs, images), ""
        for turn, question in enumerate(texts):
            prompt = self._render(turn + 1, turn, images)
            new = self._after(prompt, 2 * turn - 1).removeprefix(end) if turn else prompt
            self._append_prompt(out, new, question, waiting)
            if turn < answered:
                whole = self._render(turn + 1, turn + 1, images)
                after = self._after(whole, 2 * turn + 1)
                end = match.group() if (match := self._end.match(after)) else ""
                lead = whole[len(prompt) : -len(after) or None].removesuffix(_SPAN.format(2 * turn + 1))
                self._append_answer(out, lead if whole.startswith(prompt) else "", golds[turn], end, staged)
        if waiting:
            raise BackboneError(
                Problem("chat template", f"{len(waiting)} of {images} images found no slot", "check the template")
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

    def _append_prompt(self, out: Encoded, rendered: str, question: str, slots: list[list[int]]) -> None:
        """Add a prompt: the template's text around a question; nothing of it is trained."""
        pieces = [(question, False) if _SPANS.fullmatch(piece) else (piece, True) for piece in _SPANS.split(rendered) if piece]
        tokens, _ = self._tokenize(pieces, placed=False)
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
        ids, positions = self._tokenize([piece for piece in pieces if piece[0]], staged)
        stages = [bisect_right(edges, position) for position in positions]
        if not end:
            ids, stages = [*ids, self.tokenizer.eos_token_id], [*stages, last]
        out.input_ids.extend(ids)
        out.labels.extend(ids)
        out.stage_ids.extend(stages)

    def _beginning(self, rendered: str) -> list[int]:
        return self._bos if self._bos and not rendered.startswith(self.tokenizer.bos_token) else []

    def _tokenize(self, pieces: list[tuple[str, bool]], placed: bool) -> tuple[list[int], list[int]]:
        """Tokens of the joined pieces, and the position of each one's first character; False marks text that is not trusted.

        A control token in such text is cut after its first character and the halves are tokenised apart, which
        leaves the text as it is and every other text tokenised as the tokenizer itself would. Positions are left out
        where they are not asked for.
        """
        joined = "".join(text for text, _ in pieces)
        cuts, start = [0], 0
        for text, trusted in pieces:
            if not trusted:
                cuts.extend(start + match.start() + 1 for match in self._control.finditer(text))
            start += len(text)
        ids: list[int] = []
        positions: list[int] = []
        for begin, end in zip(cuts, [*cuts[1:], len(joined)], strict=True):
            # SentencePiece puts a space before the first word of a text: a later run is no beginning.
            before = self.tokenizer.eos_token if begin else ""
            text = before + joined[begin:end]
            if not placed:
                ids += self._ids(text)[bool(before) :]
                continue
            run = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids += run["input_ids"][bool(before) :]
            shift = begin - len(before)
            positions += [shift + offset[0] for offset in run["offset_mapping"][bool(before) :]]
        return ids, positions

    def _ids(self, text: str) -> list[int]:
        """The tokens alone, in half the time: nothing is kept of where in the text they came from."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()  # an earlier call of somebody else's may have set either
        backend.no_padding()
        return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids


def image_slots(processor: Any, images: Sequence[PILImage.Image]) -> tuple[list[list[int]], dict[str, Any]]:
    """Token ids that stand for each image, and what the model gets for all of them."""
    if not images:
        return [], {}
    # One call for all of a sample's images: how one is shown may depend on how many there are.
    text = "\n".join([processor.image_token] * len(images))
    made = dict(processor(images=[list(images)], text=text, add_special_tokens=False, return_tensors="pt"))
    ids = made.pop("input_ids")[0].tolist()
    made.pop("attention_mask", None)
    image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    runs = [list(run) for is_image, run in groupby(ids, lambda token: token == image_token_id) if is_image]
    assert len(runs) == len(images), "the processor joined the slots of two images"
    return runs, made


def check_trained(encoded: Encoded, sample: Sample) -> None:
    """Raise if nothing in the sample is trained."""
    if encoded.prompt_length == len(encoded.labels):
        raise DataError(Problem(sample.id, "no token of this sample is trained", "give it an answer", "nothing_trained"))
