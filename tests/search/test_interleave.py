"""Looks in every strategy, what selectors choose, and what a recipe may ask for."""

import json
import random
from dataclasses import replace
from importlib import metadata

import pytest
import torch

from lora_cot.data.shapes import CELL, make_sample
from lora_cot.engines import batch as batch_of_rows
from lora_cot.engines.batch import Batch
from lora_cot.engines.interleave import Patch
from lora_cot.engines.local import LocalEngine
from lora_cot.engines.looking import Look
from lora_cot.engines.sight import Sight, covered
from lora_cot.errors import DataError, RecipeError, SearchError
from lora_cot.formats import FORMATS
from lora_cot.recipe.load import change_search, load_recipe
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.interleave import interleave
from lora_cot.search.run import answer, prepare
from lora_cot.search.selectors import GROUP, at_random, attention, boxes, selector
from lora_cot.search.swires import calibrate
from tests.conftest import ROOT
from tests.search.scripted import ScriptedEngine

FOUR = FORMATS["four_stage"]
SAMPLES = [make_sample(number, "test", 0) for number in range(2)]
TEXTS = {
    "SUMMARY": "<SUMMARY> I look.\nI count. </SUMMARY>\n\n",
    "CAPTION": "<CAPTION> A cat.\nA dog. </CAPTION>\n\n",
    "REASONING": "<REASONING> One.\nTwo. </REASONING>\n\n",
    "CONCLUSION": "<CONCLUSION> 2 </CONCLUSION>",
}
WHOLE = "".join(TEXTS.values())


@pytest.fixture
def engine(load_tiny, monkeypatch):
    """A random LLaVA that writes the four stages; what comes between them is left to whoever is asked."""
    found = LocalEngine(load_tiny("llava"), FOUR)
    scripts = {}
    add = Batch.add

    def noted(batch, ask):
        job = add(batch, ask)
        text = TEXTS[ask.stop[0].strip("</>")].rstrip() if ask.stop else WHOLE
        ids = found.texts.tokenizer(text, add_special_tokens=False)["input_ids"] + [found.texts.tokenizer.eos_token_id]
        scripts.update({id(row.draws): (row, ids) for row in job.rows})
        return job

    def draw(logits, _samplings, draws):
        rows = [scripts[id(one)] for one in draws]
        return [ids[len(row.ids)] for row, ids in rows], [-0.1 - 0.01 * row.number for row, _ in rows]

    monkeypatch.setattr(Batch, "add", noted)
    monkeypatch.setattr(batch_of_rows, "draw", draw)
    return found


def chosen(completion):
    return [candidate for step in completion.trace for candidate in step.candidates if candidate.chosen]


@pytest.mark.parametrize("strategy", ["greedy", "sample", "majority", "best_of_n", "stage_beam"])
def test_every_strategy_looks(engine, strategy, monkeypatch):
    """Several questions at once; no marker is in a text, nothing counts that was not written, no patch comes twice."""
    config = SearchSection(strategy=strategy, candidates=2, interleave={"selector": "attention", "n": 1})
    plain = answer(engine, FOUR, SAMPLES, config.model_copy(update={"interleave": None}))
    looked = answer(engine, FOUR, SAMPLES, config)
    for one, other in zip(plain, looked, strict=True):
        assert one.text == other.text and one.generated_tokens == other.generated_tokens
        assert not any(candidate.looks for candidate in chosen(one))
        shown = [patch for candidate in chosen(other) for look in candidate.looks for patch in look.patches]
        assert len(shown) == len({*shown}) == 3, "the cap is the whole text's"
        steps = json.loads(json.dumps(other.to_json()))["steps"]
        told = [look for step in steps for one in step["candidates"] if one["chosen"] for look in one["looks"]]
        assert [look["patches"][0] for look in told] == [vars(patch) for patch in shown] and told[0]["grids"] == [[2, 2]]


def test_a_stage_ends_with_a_look_of_those_that_go_on(engine, monkeypatch):
    """At the beginning of the next: candidates that lost are shown nothing, and all of the next have the same before them."""
    calls = []
    monkeypatch.setattr(
        batch_of_rows, "look", lambda *args, look=batch_of_rows.look: calls.append(len(args[1])) or look(*args)
    )
    config = SearchSection(strategy="stage_beam", candidates=3, interleave={"n": 1, "at": "stage"})
    (found,) = answer(engine, FOUR, SAMPLES[:1], config)
    assert calls == [1, 1, 1]
    for number, step in enumerate(found.trace):
        assert len({candidate.looks for candidate in step.candidates}) == 1 and len(step.candidates) == 3
        assert [look.place for look in step.candidates[0].looks] == [0] * (number > 0)
    (whole,) = answer(engine, FOUR, SAMPLES[:1], config.model_copy(update={"strategy": "greedy"}))
    ends = [WHOLE.index(f"</{name}>") + len(f"</{name}>") for name in ("SUMMARY", "CAPTION", "REASONING")]
    assert [look.place for look in chosen(whole)[0].looks] == ends


def test_a_cutoff_is_measured_on_texts_that_look(engine, monkeypatch):
    """As those that it decides on will; by an engine that forgets with the search what it learned."""
    begun, seen = [], []
    start = LocalEngine.start
    monkeypatch.setattr(LocalEngine, "start", lambda one, samples: begun.append(one) or start(one, samples))

    def score(contests):
        seen.extend(contest.candidates[0].looks for contest in contests)
        return [[1.0]] * len(contests)

    config = SearchSection(interleave={"selector": "attention", "n": 1})
    assert calibrate(engine, FOUR, SAMPLES, score, config).count == 2
    assert len(seen) == 2 and all(len(looks) == 1 for looks in seen)
    assert begun and engine not in begun


def look_of(grid=(2, 4), n=3, taken=(), weights=None, sample=None, draws="a", processor=None):
    patches = tuple(Patch(0, row, column) for row in range(grid[0]) for column in range(grid[1]))
    sight = Sight(torch.arange(len(patches)), torch.zeros(len(patches), 1), patches, (grid,))
    left = tuple(number for number in range(len(patches)) if number not in taken)
    weights = None if weights is None else torch.tensor(weights)
    return Look(sample or SAMPLES[0], sight, left, n, weights, "", random.Random(draws), processor)


def test_attention_takes_the_most():
    """Of equals the lowest numbers; never what was taken; what is left, if that is less."""
    assert attention(look_of(weights=[0.1, 0.2, 0.0, 0.4, 0.1, 0.3, 0.0, 0.0])) == [3, 5, 1]
    assert attention(look_of(weights=[0.1] * 8)) == [0, 1, 2]
    assert attention(look_of(weights=[0.1] * 8, taken=(0, 2))) == [1, 3, 4]
    assert attention(look_of(weights=[0.1] * 8, taken=range(7))) == [7]


def test_random_takes_any():
    """Of those that are left, seeded; each as often as another."""
    assert at_random(look_of()) == at_random(look_of()) and len({*at_random(look_of())}) == 3
    assert at_random(look_of(taken=range(7))) == [7]
    counts = [0] * 8
    for number in range(800):
        for patch in at_random(look_of(draws=str(number))):
            counts[patch] += 1
    assert min(counts) > 240 and max(counts) < 360


class Processor:
    """That takes whole images, or cuts out their middle."""

    def __init__(self, **keys):
        self.image_processor = type("Maker", (), keys)


CUT = {"do_center_crop": True, "crop_size": {"height": 336, "width": 336}}


def test_what_a_grid_covers():
    """All of an image, or the square that is cut out of its middle; padding, where that is larger."""
    assert covered(Processor(), (640, 480)) == (0, 0, 1, 1)
    assert covered(Processor(**CUT, size={"shortest_edge": 336}), (672, 336)) == (0.25, 0, 0.75, 1)
    assert covered(Processor(**CUT, size={"shortest_edge": 168}), (100, 100)) == (-0.5, -0.5, 1.5, 1.5)
    assert covered(Processor(**CUT, size={"height": 336, "width": 672}), (10, 10)) == (0.25, 0, 0.75, 1)


def test_boxes_take_the_patches_inside():
    """By their centres; of too many, evenly spaced ones; a miniature's objects are boxes."""
    own = {"box": [0, 0, CELL, 2 * CELL]}
    left = replace(SAMPLES[0], meta={"boxes": [own]})
    whole = Processor()
    assert boxes(look_of(n=9, sample=left, processor=whole)) == [0, 1, 4, 5]
    assert boxes(look_of(n=2, sample=left, processor=whole)) == [1, 5]
    assert boxes(look_of(n=9, taken=(1, 4), sample=left, processor=whole)) == [0, 5]
    with pytest.raises(DataError, match="is on no image of the question · image is 0 to 0"):
        boxes(look_of(n=9, sample=replace(left, meta={"boxes": [own | {"image": 1}]}), processor=whole))
    assert boxes(look_of(n=9, sample=replace(left, meta={}), processor=whole)) == []
    things = SAMPLES[0].meta["boxes"]
    assert all(one["name"].split()[0] in SAMPLES[0].meta["caption"] for one in things)
    one = replace(left, meta={"boxes": things[:1]})
    assert len(boxes(look_of(grid=(16, 16), n=99, sample=one, processor=whole))) in range(12, 42)
    with pytest.raises(DataError, match=r"boxes · 3 is no box"):
        boxes(look_of(sample=replace(left, meta={"boxes": 3}), processor=whole))


def test_a_selector_of_an_installed_package(monkeypatch):
    """And no other function."""
    point = metadata.EntryPoint("mine", f"{__name__}:first", GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == GROUP else [])
    assert selector(f"{__name__}:first") is first
    with pytest.raises(SearchError, match=r"search\.interleave\.selector · no installed package declares 'os:remove'"):
        selector("os:remove")


def first(look):
    return look.open[:1]


def test_a_recipe_names_a_selector_or_more():
    """The word alone is the selector; mistakes are told by their key."""
    assert SearchSection(interleave="random").interleave == SearchSection(interleave={"selector": "random"}).interleave
    changed = change_search(SearchSection(), {"interleave.selector": "boxes", "interleave.n": 4})
    assert (changed.interleave.selector, changed.interleave.n, changed.interleave.cap) == ("boxes", 4, 3)
    assert change_search(changed, {"interleave": None}).interleave is None
    assert change_search(SearchSection(interleave={"faithful": True}), {}).interleave.faithful


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("search.interleave=atention", r"search\.interleave\.selector · .*did you mean 'attention'"),
        ("search.interleave={m: 3}", r"search\.interleave\.m · unknown key · .*allowed: at, cap, every"),
        ("search.interleave={n: 0}", r"search\.interleave\.n · "),
        ("search.interleave={heads: [-1]}", r"search\.interleave\.heads"),
        (
            "search.interleave={faithful: true, n: 3}",
            r"search\.interleave · .*faithful sets all keys but .*: drop n",
        ),
        ("search.interleave={signal: '. '}", r"search\.interleave · .*a signal cannot end in a blank"),
        ("search.interleave={at: word}", r"search\.interleave\.at"),
    ],
)
def test_what_a_recipe_cannot_ask_for(override, told):
    """In the house's words."""
    with pytest.raises(RecipeError, match=told):
        load_recipe(ROOT / "recipes/mini/llava_four_stage.yaml", [override])


@pytest.mark.parametrize(("name", "what"), [("mllama_four_stage", "Mllama"), ("t5_vit_two_stage", "an encoder-decoder")])
def test_a_recipe_of_what_shows_no_patches(name, what):
    """Before anything is loaded."""
    with pytest.raises(RecipeError, match=rf"search\.interleave · patches of {what}.* cannot be shown again"):
        load_recipe(ROOT / f"recipes/mini/{name}.yaml", ["search.interleave=attention"])


def test_any_text_can_be_a_signal():
    """In place of line and stage, and not beside them."""
    how = interleave(FORMATS["direct"], SearchSection(interleave={"signal": ":"}))
    assert how.marks == (":",)
    with pytest.raises(ValueError, match="signal and at say both where a text looks"):
        SearchSection(interleave={"signal": ":", "at": "stage"})


def test_stages_need_a_format_that_has_them():
    """A format of one stage has none that ends before the answer; the answer's end is no signal."""
    marks = interleave(FOUR, SearchSection(interleave={"at": "stage"})).marks
    assert marks == ("</SUMMARY>", "</CAPTION>", "</REASONING>")
    assert interleave(FOUR, SearchSection(interleave={"at": ["CAPTION", "REASONING"]})).marks == marks[1:]
    with pytest.raises(SearchError, match=r"has no stage CONCLUSION that ends before the answer · allowed: SUMMARY, CA"):
        interleave(FOUR, SearchSection(interleave={"at": ["CONCLUSION"]}))
    control = interleave(FOUR, SearchSection(interleave={"faithful": True, "selector": "random"}))
    assert control.only_last and control.is_faithful and control.select is at_random
    with pytest.raises(SearchError, match=r"search\.interleave\.at · the format direct has no stages"):
        interleave(FORMATS["direct"], SearchSection(interleave={"at": "stage"}))


def test_nothing_is_asked_of_an_engine_that_is_not_to_look():
    """One that cannot see serves every other search."""
    passes = prepare(ScriptedEngine(None), FOUR, SearchSection())
    assert [one.look for one in passes] == [None]
