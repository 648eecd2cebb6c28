"""Stage-level beam search beside the published procedure: the same weights, the same tokens, both sides in turn.

    python benchmarks/search.py [--rounds 3] [--json]
    python benchmarks/search.py --recipe recipes/llama3_2_vision_11b/four_stage_12gb.yaml [--layers 2] [--json]

The other side is LLaVA-CoT's released procedure: candidates one after another, each a `generate` that reads image and text
from the start; a stop test that decodes the whole text after each token; one verdict for each pair, generated, in one
order; reasoning checked before it is compared. Greedy is one plain `generate`.

A model of random weights would close no stage. So, on both sides, what it writes is bent in the same way: at fixed places
of the answer it can only be a stage's tags, elsewhere no tag and no end. Each stage is as long as the 1,000 published
answers are on average, for every candidate: stragglers, which cost a batch more than a row of calls, are left out. A verdict
has the length of the sentence that is asked for. Ours is `stage_beam` with `self_judge`: both orders, verdicts by logits.

`--recipe` builds random weights of a recipe's own shapes, quantised as it says: the 11B model on a GPU; with `--layers` a
rehearsal anywhere.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import command_line, device, now, tell  # beside this file

from lora_cot.backbones import FAMILIES, Backbone
from lora_cot.backbones.loading import load_backbone
from lora_cot.backbones.mini.build import MiniSpec, random_base
from lora_cot.data.collate import batch, encode, model_inputs
from lora_cot.data.shapes import make_sample
from lora_cot.engines.local import LocalEngine
from lora_cot.formats import FORMATS
from lora_cot.formats.judging import FIRST, published_check, published_question
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.run import answer
from lora_cot.types import Exchange, Sample

FORMAT = FORMATS["four_stage"]
STAGE_TOKENS = {"SUMMARY": 53, "CAPTION": 58, "REASONING": 107, "CONCLUSION": 1}
"""Between the tags: 212, 231, 428 and 2 characters on average in 1,000 published answers, at four for a token."""
VERDICT_TOKENS, CHECK_TOKENS = 40, 3
"""Of 'Since [reason], I choose response 1.' with a reason of one sentence; of 'correct' or 'incorrect'."""
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
QUESTION = "Look at the picture. Which shape is at the top left, and how many others have its colour?"
QUESTIONS = 8


def main() -> None:
    """Time all sides, print the ratios."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many rounds counts for each side")
    parser.add_argument("--bases", nargs="*", default=["tiny/mllama", "tiny/llava"], help="tiny/KIND, or a model's folder")
    parser.add_argument("--recipe", type=Path, help="random weights of this recipe's shapes instead")
    parser.add_argument("--layers", type=int, help="of the recipe's shapes, only so many layers in each tower")
    options = parser.parse_args()
    report: dict[str, Any] = {"device": device(), "threads": torch.get_num_threads(), "models": {}}
    for name, backbone in backbones(options):
        report["models"][name] = measured(backbone, options.rounds)
        print(name, json.dumps(report["models"][name]), file=sys.stderr, flush=True)
    lines = [f"{report['device']}, {report['threads']} threads"]
    for name, found in report["models"].items():
        lines += [name, *(f"  {key}: {value:.2f}" for key, value in found.items() if not key.endswith("_s"))]
    tell(report, options.json, lines)


def backbones(options: argparse.Namespace) -> Any:
    """(name, model) one after another."""
    if options.recipe is None:
        for base in options.bases:
            kind = base.removeprefix("tiny/")
            yield kind, tiny(kind) if kind != base else load_backbone(ModelSection(base=base))
        return
    from memory import build  # beside this file

    from lora_cot.recipe.load import load_recipe

    recipe = load_recipe(options.recipe, [])
    backbone = build(recipe, "cuda" if torch.cuda.is_available() else "cpu", options.layers)
    backbone.model.eval()
    read_with_a_tiny_tokenizer(backbone)
    yield options.recipe.parent.name, backbone


def read_with_a_tiny_tokenizer(backbone: Backbone) -> None:
    """Give a model of published shapes words to read: its own tokenizer is not in a recipe. Images are its own."""
    config, processor = backbone.base_model.config, backbone.processor
    _, other = random_base(MiniSpec(config.model_type, (), width=64, layers=2))
    for name in ("tokenizer", "chat_template", "image_token"):
        setattr(processor, name, getattr(other, name))
    processor.image_token_id = other.tokenizer.convert_tokens_to_ids(other.image_token)
    config.image_token_id = processor.image_token_id
    backbone.model.generation_config.eos_token_id = other.tokenizer.eos_token_id


def tiny(kind: str) -> Backbone:
    """Random, of the size of the tests' models."""
    model, processor = random_base(MiniSpec(kind, (), width=64, layers=2))
    return Backbone(next(f for f in FAMILIES.values() if kind in f.model_types), model.eval(), processor, kind)


def measured(backbone: Backbone, rounds: int) -> dict[str, Any]:
    """Ratios of the best of the rounds, and each side's shortest and longest seconds."""
    samples = [
        Sample(f"q{i}", (Exchange(QUESTION),), make_sample(i, "test", 0).images) for i in range(QUESTIONS)
    ]  # of one length, so that the tags stand at the same places
    other = replace(backbone, model=copy.deepcopy(backbone.model))  # nothing of ours is in its way
    published = Published(other, samples[0])
    Bent(backbone, published.prompt_length, "steps")
    sides: dict[str, Callable[[], float]] = {"greedy": lambda: published.greedy(samples[0])}
    for count in (4, 10):
        sides |= {
            f"published_n{count}": lambda count=count: published.search(samples[0], count),
            f"ours_n{count}": lambda count=count: ours(backbone, samples[:1], count),
            f"ours_n{count}_batch8": lambda count=count: ours(backbone, samples, count),
        }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items() if number % 2 else reversed(sides.items()):
            if number == 0 and name.startswith("published"):
                continue  # a round to warm up; `generate` is warm by the greedy one
            begin = now()
            generated = side()
            if number:
                seconds[name].append(now() - begin)
                assert generated == expected(name, total_tokens(backbone.processor.tokenizer)), (name, generated)
    best = {name: min(times) for name, times in seconds.items()}
    ratios = {f"speedup_n{n}": best[f"published_n{n}"] / best[f"ours_n{n}"] for n in (4, 10)}
    ratios["cost_vs_greedy_n4"] = best["ours_n4"] / best["greedy"]
    for n in (4, 10):
        ratios[f"speedup_n{n}_batch8"] = best[f"published_n{n}"] / (best[f"ours_n{n}_batch8"] / QUESTIONS)
    spread = {f"{name}_s": [min(times), max(times)] for name, times in seconds.items()}
    return {**ratios, **spread}


def ours(backbone: Backbone, samples: Sequence[Sample], count: int) -> int:
    """Our search; returns the tokens generated."""
    config = SearchSection(strategy="stage_beam", scorer="self_judge", candidates=count)
    found = answer(LocalEngine(backbone, FORMAT), FORMAT, samples, config)
    assert all(one.stopped == "complete" for one in found), [one.stopped for one in found]
    return sum(one.generated_tokens for one in found)


class Published:
    """LLaVA-CoT's released search with plain transformers."""

    def __init__(self, backbone: Backbone, sample: Sample):
        self.backbone, self.tokenizer = backbone, backbone.processor.tokenizer
        self.encoder, self.plain = backbone.encoder(FORMAT), backbone.encoder(FORMATS["direct"])
        self.prompt_length = len(encode(self.encoder, sample, False).input_ids)
        self.bent = Bent(backbone, self.prompt_length, "all")

    def greedy(self, sample: Sample) -> int:
        """One whole answer."""
        total = total_tokens(self.tokenizer)
        return len(self._generate(self.encoder, sample, [], max_new_tokens=total, min_new_tokens=total, do_sample=False))

    def search(self, sample: Sample, count: int) -> int:
        """The winner of each stage goes on; returns the tokens of all candidates."""
        ids: list[int] = []
        generated = 0
        given: list[tuple[str, str]] = []
        for stage in FORMAT.stages:
            closing = f"</{stage.name}>"
            drawn = [self._generate(self.encoder, sample, ids, closing, max_new_tokens=512, **SAMPLING) for _ in range(count)]
            generated += sum(map(len, drawn))
            texts = [self.tokenizer.decode(each).removeprefix(f"<{stage.name}>").removesuffix(closing) for each in drawn]
            players = list(range(count))
            while len(players) > 1:
                first, second, *players = players
                players.append(self._better(sample, stage, given, texts, first, second))
            ids = ids + drawn[players[0]]
            given.append((stage.name, texts[players[0]]))
        return generated

    def _better(
        self, sample: Sample, stage: Any, given: list[tuple[str, str]], texts: Sequence[str], first: int, second: int
    ) -> int:
        if stage.name == "REASONING":
            for one, other in ((first, second), (second, first)):
                check = published_check(dict(given)["CAPTION"], texts[one])
                if "incorrect" in self._say(check, (), CHECK_TOKENS):
                    return other
        told = published_question(sample.last.question, stage.name, given, texts[first], texts[second])
        return first if FIRST in self._say(told, sample.images, VERDICT_TOKENS) else second

    def _say(self, text: str, images: tuple[Any, ...], tokens: int) -> str:
        sample = Sample("judge", (Exchange(text),), images)
        self.bent.where = "nowhere"
        ids = self._generate(self.plain, sample, [], max_new_tokens=tokens, min_new_tokens=tokens, **SAMPLING)
        self.bent.where = "all"
        return self.tokenizer.decode(ids)

    @torch.inference_mode()
    def _generate(self, encoder: Any, sample: Sample, begun: list[int], stop: str | None = None, **keys: Any) -> list[int]:
        """New tokens after a prompt and a beginning of its answer; image and text are read anew."""
        encoded = encode(encoder, sample, False)
        for values, filler in ((encoded.input_ids, None), (encoded.labels, -100), (encoded.stage_ids, -1)):
            values.extend(begun if filler is None else [filler] * len(begun))
        made = batch([encoded], self.backbone.processor, self.backbone.family.image_inputs)
        inputs = self.backbone.place(model_inputs(made))
        criteria = (
            [lambda ids, _: stop in self.tokenizer.decode(ids[0][len(encoded.input_ids) - len(begun) :])] if stop else []
        )
        whole = self.backbone.model.generate(**inputs, stopping_criteria=_criteria(criteria), **keys)
        return whole[0][len(encoded.input_ids) :].tolist()


def _criteria(tests: Sequence[Callable[..., bool]]) -> Any:
    from transformers import StoppingCriteriaList

    return StoppingCriteriaList(
        [lambda ids, scores, test=test, **_: torch.tensor([test(ids, scores)], device=ids.device) for test in tests]
    )


def script(tokenizer: Any) -> list[int | None]:
    """What an answer must be at each place; None is free."""
    places: list[int | None] = []
    for stage in FORMAT.stages:
        tags = [tokenizer(tag, add_special_tokens=False)["input_ids"] for tag in (f"<{stage.name}>", f"</{stage.name}>")]
        places += [*tags[0], *[None] * STAGE_TOKENS[stage.name], *tags[1]]
    return places


def total_tokens(tokenizer: Any) -> int:
    """Of a whole answer."""
    return len(script(tokenizer))


def expected(name: str, total: int) -> int:
    """Tokens that a side generates."""
    if name == "greedy":
        return total
    count = int(name.split("_")[1].removeprefix("n"))
    return total * count * (QUESTIONS if name.endswith("batch8") else 1)


class Bent:
    """A model that writes tags where they belong in an answer, and only there.

    A judge's answer is no such text: `where` says whether all that is computed is bent, the steps of one token, or nothing.
    """

    def __init__(self, backbone: Backbone, prompt_length: int, where: str):
        tokenizer, self.where, self.prompt_length = backbone.processor.tokenizer, where, prompt_length
        places = script(tokenizer)
        device, rows = backbone.device, backbone.base_model.get_output_embeddings().weight.shape[0]
        pieces = [tokenizer.decode([token]) if token < len(tokenizer) else "<" for token in range(rows)]
        self.banned = torch.tensor(["<" in piece or "\ufffd" in piece or not piece for piece in pieces], device=device)
        self.banned[sorted(set(tokenizer.all_special_ids) & set(range(rows)))] = True
        self.forced = torch.tensor([-1 if token is None else token for token in places] + [-1] * 4096, device=device)
        backbone.base_model.register_forward_hook(self, with_kwargs=True)

    def __call__(self, _module: Any, _args: Any, keys: Any, output: Any) -> Any:
        """A forward hook."""
        if self.where == "nowhere" or (self.where == "steps" and keys["input_ids"].shape[1] > 1):
            return output
        mask = keys.get("attention_mask")  # `generate` leaves out a mask that hides nothing, as we do
        length = output.past_key_values.get_seq_length() if mask is None or mask.dim() != 2 else mask.sum(1)
        place = (
            (torch.as_tensor(length, device=self.forced.device) - self.prompt_length).clamp(min=-1).expand(len(output.logits))
        )
        token = torch.where(place < 0, -1, self.forced[place.clamp(min=0)])
        logits = output.logits[:, -1].masked_fill(self.banned, -1e4)
        more = torch.where(token < 0, 0.0, 2e4).to(logits.dtype)
        output.logits[:, -1] = logits.scatter_add(1, token.clamp(min=0)[:, None], more[:, None])
        return output


if __name__ == "__main__":
    main()
