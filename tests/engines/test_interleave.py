"""Texts that look at their images again: cached is what a full forward computes, and every case has a defined outcome."""

import time
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from lora_cot.backbones import Backbone
from lora_cot.backbones.llava import LLAVA
from lora_cot.backbones.loading import load_backbone
from lora_cot.backbones.mini.build import MiniSpec, random_base
from lora_cot.data.collate import encode
from lora_cot.engines import batch as batch_of_rows
from lora_cot.engines import looking
from lora_cot.engines.attention import Watch
from lora_cot.engines.base import Ask, Sampling
from lora_cot.engines.interleave import Gaze, Interleave, Looking
from lora_cot.engines.local import LocalEngine
from lora_cot.errors import SearchError
from lora_cot.formats import FORMATS
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import QuantizationSection
from lora_cot.search.selectors import at_random, attention
from lora_cot.types import Exchange
from tests.engines.reference import SAMPLES, TEXT_ONLY, Patches, whole

HOW = Interleave("attention", attention, n=2, cap=2)
SCRIPTS = ["A cat sits.\nIt is red.\n\nTwo dogs\nand more", "\nOne line here\n \n and\nthe end", "no line ends in this text"]


@pytest.fixture(params=["llava", "qwen2_vl", pytest.param("chameleon", marks=pytest.mark.slow)])
def engine(request, load_tiny):
    """An engine of each family that can show patches again."""
    return LocalEngine(load_tiny(request.param), FORMATS["direct"])


@pytest.fixture
def llava(load_tiny):
    """One of them, where nothing depends on which."""
    return LocalEngine(load_tiny("llava"), FORMATS["direct"])


@pytest.fixture(scope="module")
def wide():
    """One whose layers have two heads each."""
    model, processor = random_base(MiniSpec("llava", (), width=128, layers=2))
    return LocalEngine(Backbone(LLAVA, model.eval(), processor, "wide"), FORMATS["direct"])


class Script:
    """Rows draw what they are told, in the order in which they first draw, and their logits are noted."""

    def __init__(self, monkeypatch, engine, texts):
        encoded = [engine.texts.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        self.engine, self.ids, self.logits, self._rows = engine, encoded, [[] for _ in texts], []
        monkeypatch.setattr(batch_of_rows, "draw", self.draw)

    def draw(self, logits, _samplings, draws):
        self._rows += [one for one in draws if one not in self._rows]
        rows = [self._rows.index(one) for one in draws]
        tokens = [self.ids[row][len(self.logits[row])] for row in rows]
        for row, mine in zip(rows, logits, strict=True):
            self.logits[row].append(mine.clone())
        return tokens, [-1.0] * len(rows)

    def pieces(self, row, candidate, count, numbers):
        """The first so many tokens of a row, with what it was shown among them."""
        ids, found, begin = self.ids[row], [], 0
        for shown, chosen in zip(candidate.looks, numbers, strict=True):
            place = next(k for k in range(len(ids) + 1) if len(self.engine.texts.text(ids[:k])) == shown.place)
            if place > count:
                break
            found += [ids[begin:place], Patches(chosen)]
            begin = place
        return [*found, ids[begin:count]]


def numbers_of(candidate):
    """Of the patches of each look, counted through all images."""

    def number(patch, grids):
        before = sum(rows * columns for rows, columns in grids[: patch.image])
        return before + patch.row * grids[patch.image][1] + patch.column

    return [[number(patch, one.grids) for patch in one.patches] for one in candidate.looks]


def extend(engine, samples, how, tokens, seeds="a", **keys):
    how = engine.see(how)
    states = engine.start(samples)
    asks = [
        Ask(state, list(seeds), count, look=Looking(how, sample), **keys)
        for sample, state, count in zip(samples, states, tokens, strict=True)
    ]
    return engine.extend(asks)


def stepwise(engine, sample, pieces):
    """Logits after pieces by the stock model and cache, token by token; keys and values of patches are copied in."""
    backbone = engine.backbone
    encoded = encode(engine.encoder, sample, False)
    inputs = {"input_ids": torch.tensor([encoded.input_ids]), "attention_mask": torch.ones(1, len(encoded.input_ids)).long()}
    inputs |= backbone.family.image_inputs(backbone.processor, [encoded], inputs)
    positions, ahead = backbone.family.positions(backbone.base_model, inputs)
    token = backbone.processor.tokenizer.convert_tokens_to_ids(backbone.processor.image_token)
    slots = [place for place, one in enumerate(encoded.input_ids) if one == token]
    cache = DynamicCache()
    logits = backbone.model(**inputs, position_ids=positions, past_key_values=cache).logits
    position = len(encoded.input_ids) + int(ahead[0])
    for number, piece in enumerate(pieces):
        for place, one in enumerate(piece if not isinstance(piece, Patches) else ()):
            if place == len(piece) - 1 and number + 1 < len(pieces):
                for layer in cache.layers:
                    chosen = [slots[k] for k in pieces[number + 1]]
                    layer.keys = torch.cat([layer.keys, layer.keys[:, :, chosen]], dim=2)
                    layer.values = torch.cat([layer.values, layer.values[:, :, chosen]], dim=2)
            at = torch.full((*positions.shape[:-2], 1, 1), position)
            logits = backbone.model(input_ids=torch.tensor([[one]]), position_ids=at, past_key_values=cache).logits
            position += 1
    return logits[0, -1]


@torch.inference_mode()
@pytest.mark.parametrize("insert", ["input", "kv_copy"])
def test_after_looks_cached_is_what_a_full_forward_computes(engine, monkeypatch, insert):
    """At every step of every row, beside rows that look elsewhere or never, to 1e-5; patches are those of most attention."""
    script = Script(monkeypatch, engine, SCRIPTS)
    tokens = [len(ids) for ids in script.ids]
    found = [mine[0] for mine in extend(engine, SAMPLES, replace(HOW, insert=insert), tokens)]
    assert [candidate.text for candidate in found] == SCRIPTS
    assert [[one.place for one in candidate.looks] for candidate in found] == [[12, 23], [15, 22], []]
    for row, (sample, candidate) in enumerate(zip(SAMPLES, found, strict=True)):
        numbers = numbers_of(candidate)
        flat = [number for mine in numbers for number in mine]
        assert len({*flat}) == len(flat), "no patch is shown twice"
        for step, logits in enumerate(script.logits[row]):
            pieces = script.pieces(row, candidate, step, numbers)
            expected = whole(engine, sample, pieces)[0] if insert == "input" else stepwise(engine, sample, pieces)
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        if insert == "input":
            check_chosen(engine, sample, script.pieces(row, candidate, tokens[row], numbers), candidate)


@torch.inference_mode()
def test_of_several_images_cached_is_what_a_full_forward_computes(engine, monkeypatch):
    """Two of the question's own, and one beside a worked example's, which is not shown again."""
    both = replace(SAMPLES[0], images=SAMPLES[0].images + SAMPLES[1].images)
    shot = replace(both, id="shot", preface=("Look. ", None, " So it is red.\n"))
    check_rows(engine, [both, shot], monkeypatch)


@torch.inference_mode()
@pytest.mark.parametrize("quantization", [None, QuantizationSection(load_in_4bit=True)])
def test_an_adapter_looks_too(make_base, monkeypatch, quantization):
    """A QLoRA adapter on Qwen2-VL, which is what fine-tuning leaves; its base in float32, and in NF4."""
    backbone = load_backbone(ModelSection(base=str(make_base("qwen2_vl"))), quantization)
    lora = LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    backbone.model = get_peft_model(backbone.model, lora).eval()
    check_rows(LocalEngine(backbone, FORMATS["direct"]), SAMPLES[:2], monkeypatch)


def check_rows(engine, samples, monkeypatch):
    """Every step of rows that look, against a full forward."""
    script = Script(monkeypatch, engine, SCRIPTS[: len(samples)])
    found = [mine[0] for mine in extend(engine, samples, HOW, [len(ids) for ids in script.ids])]
    assert all(candidate.looks for candidate in found)
    for row, (sample, candidate) in enumerate(zip(samples, found, strict=True)):
        own = sample.preface.count(None)
        assert all(patch.image >= own for one in candidate.looks for patch in one.patches)
        for step, logits in enumerate(script.logits[row]):
            expected, _ = whole(engine, sample, script.pieces(row, candidate, step, numbers_of(candidate)))
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def check_chosen(engine, sample, pieces, candidate):
    """What was shown has most of the attention of the token before, among what was not shown yet."""
    encoded = encode(engine.encoder, sample, False)
    token = engine.backbone.processor.tokenizer.convert_tokens_to_ids(engine.backbone.processor.image_token)
    slots = [place for place, one in enumerate(encoded.input_ids) if one == token]
    taken, places = [], [place for place, piece in enumerate(pieces) if isinstance(piece, Patches)]
    for place, shown in zip(places, candidate.looks, strict=True):
        _, maps = whole(engine, sample, pieces[:place])
        weights = torch.stack([one[0, :, -1].mean(0) for one in maps]).mean(0)[slots]
        best = sorted((k for k in range(len(slots)) if k not in taken), key=lambda k: -weights[k])[:2]
        assert sorted(best) == pieces[place]
        assert shown.weights == pytest.approx([weights[k].item() for k in sorted(best)], abs=1e-6)
        taken += best


@torch.inference_mode()
def test_the_released_choices(load_tiny, monkeypatch):
    """On Qwen2-VL every second line and a square; elsewhere also at the prompt's end, and without a cap."""
    qwen, llava = (LocalEngine(load_tiny(name), FORMATS["direct"]) for name in ("qwen2_vl", "llava"))
    how = qwen.see(replace(HOW, is_faithful=True, n=0))
    assert (how.every, how.cap, how.n, how.is_square, how.from_start) == (2, 3, 16, True, False)
    how = llava.see(replace(HOW, is_faithful=True, n=0))
    assert (how.every, how.cap, how.n, how.from_start) == (2, None, 36, True)
    text = "a\nb\nc\nd\ne"
    for engine, places in ((qwen, [4, 8]), (llava, [0, 4, 8])):
        script = Script(monkeypatch, engine, [text])
        ((found,),) = extend(engine, SAMPLES[:1], replace(HOW, is_faithful=True, n=1), [len(script.ids[0])])
        assert [one.place for one in found.looks] == places
        for step, logits in enumerate(script.logits[0]):
            pieces = script.pieces(0, found, step, numbers_of(found))
            torch.testing.assert_close(logits, whole(engine, SAMPLES[0], pieces, True)[0], atol=1e-5, rtol=1e-5)


def test_batched_is_alone(engine):
    """Rows draw by themselves: the same text and looks, whatever looks beside them."""
    how = replace(HOW, marks=("a",), cap=None)  # a letter: a random model writes it now and then

    def drawn(samples):
        found = extend(engine, samples, how, [25] * len(samples), seeds="xy", sampling=Sampling(1.0))
        return [[(one.text, numbers_of(one), one.logprob) for one in mine] for mine in found]

    together = drawn(SAMPLES)
    assert any(numbers for mine in together for _, numbers, _ in mine)
    for mine, alone in zip(together, [drawn([sample])[0] for sample in SAMPLES], strict=True):
        assert [one[:2] for one in mine] == [one[:2] for one in alone]
        assert [one[2] for one in mine] == pytest.approx([one[2] for one in alone], abs=1e-3)


def gazes(pieces, **keys):
    gaze, found = Gaze(), []
    for piece in pieces:
        mark = next((mark for mark in keys.get("marks", ()) if piece.endswith(mark)), "")
        gaze = gaze.after(replace(HOW, **keys), piece, mark)
        found.append(gaze.is_due)
    return found


def test_a_line_break_is_a_signal_once():
    """Whatever token carries it, with whatever blanks after it; not before there is a text."""
    assert gazes(["\n", "\n\n", " ", "a", "\n", "\n", " \n", "b.\n\n", "\nc", "\n"]) == [False] * 4 + [True] + [False] * 2 + [
        True,
        False,
        True,
    ]
    assert gazes(["a", "\n", "b", "\n", "c", "\n"], every=2) == [False] * 3 + [True] + [False] * 2
    assert gazes(["a\nb\n", "c", "\n"], every=2) == [True, False, False]


def test_any_mark_is_a_signal_once():
    """Repeated without a text between, it is one; at the beginning none."""
    assert gazes([".", "a", ".", ".", " .", "b.", " c"], marks=(".",)) == [False, False, True, False, False, True, False]
    assert gazes(["a", "\n", "b"], marks=(".",)) == [False] * 3


def test_without_an_image_of_its_own_a_question_is_shown_nothing(llava, monkeypatch):
    """Whatever its demonstrations show."""
    shot = replace(SAMPLES[0], preface=(None, "A worked example."))
    for only_last in (False, True):
        Script(monkeypatch, llava, ["a\nb"])
        ((found,),) = extend(llava, [shot], replace(HOW, n=99, only_last=only_last), [3])
        assert found.looks == ()


def test_attention_that_tells_no_weights_is_refused(llava, monkeypatch):
    """Before anything is decoded."""
    monkeypatch.setattr(llava.backbone.base_model.config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(SearchError, match="flash_attention_2 tells no weights · set model"):
        llava.see(HOW)


def test_no_look_makes_a_map_of_all_tokens(llava, monkeypatch):
    """One token's weights, once in each layer: nothing has the text's length twice."""
    made, layers = [], []
    see = Watch.see

    class Noted(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            made.extend(one.shape for one in tree_leaves(found) if isinstance(one, torch.Tensor))
            return found

    def noted(watch, module, *rest):
        layers.append(module.layer_idx)
        with Noted():
            see(watch, module, *rest)

    monkeypatch.setattr(Watch, "see", noted)
    Script(monkeypatch, llava, ["a\nb"])
    asked = [replace(SAMPLES[0], exchanges=(Exchange("word " * 99),))]  # longer than the model is wide
    ((found,),) = extend(llava, asked, HOW, [3])
    length = llava.encode(asked).lengths[0] + 2
    assert len(found.looks) == 1 and sorted(layers) == [0, 1]
    assert any(length in shape for shape in made) and not [s for s in made if sum(size >= length for size in s) > 1]


def test_a_model_that_prints_only_line_breaks_never_looks(llava, monkeypatch):
    """It ends at its budget, like any other."""
    Script(monkeypatch, llava, ["\n" * 9])
    ((found,),) = extend(llava, SAMPLES[:1], HOW, [9])
    assert (found.text, found.looks, found.ended) == ("\n" * 9, (), "length")


def test_the_cap_counts_looks_at_which_something_was_shown(llava, monkeypatch):
    """Not those at which a selector chose nothing."""
    chosen = iter([[], [0], [], [1]])
    for select, places in ((attention, [2, 4]), (lambda _look: next(chosen), [4, 8])):
        Script(monkeypatch, llava, ["a\nb\nc\nd\ne\nf"])
        ((found,),) = extend(llava, SAMPLES[:1], replace(HOW, select=select, n=1), [11])
        assert [one.place for one in found.looks] == places


def test_without_an_image_there_is_no_look(llava, monkeypatch):
    """And none of an ask that is not to look."""
    Script(monkeypatch, llava, ["a\nb\nc", "a\nb\nc"])
    monkeypatch.setattr(looking, "attend", None)
    ((found,),) = extend(llava, [TEXT_ONLY], HOW, [5])
    assert (found.text, found.looks) == ("a\nb\nc", ())
    (state,) = llava.start(SAMPLES[:1])
    assert llava.extend([Ask(state, ["a"], 5)])[0][0].looks == ()


def test_what_is_left_is_shown_and_then_nothing(llava, monkeypatch):
    """More patches than there are, and looks when all have been shown."""
    Script(monkeypatch, llava, ["a\nb\nc\nd\n"])
    ((found,),) = extend(llava, SAMPLES[:1], replace(HOW, n=10, cap=None), [8])
    patches = len(llava.start(SAMPLES[:1])[0].root.sight.patches)
    sizes = [len(one.patches) for one in found.looks]
    assert sum(sizes) == patches and sizes[:-1] == [10] * (len(sizes) - 1) and found.text == "a\nb\nc\nd\n"


def test_of_several_images_the_last_may_be_the_only_one(llava, monkeypatch):
    """Patches know their image."""
    sample = replace(SAMPLES[0], images=SAMPLES[0].images + SAMPLES[1].images)
    for only_last, images in ((False, {0, 1}), (True, {1})):
        Script(monkeypatch, llava, ["a\nb"])
        count = 3 if only_last else 99
        ((found,),) = extend(llava, [sample], replace(HOW, n=count, only_last=only_last), [3])
        (shown,) = found.looks
        assert {patch.image for patch in shown.patches} == images and len(shown.grids) == 2
    Script(monkeypatch, llava, ["a\nb"])
    shot = replace(sample, preface=(None, "A worked example."))  # what it shows is not what the question is about
    ((found,),) = extend(llava, [shot], replace(HOW, n=99), [3])
    assert {patch.image for patch in found.looks[0].patches} == {1}


def test_forks_share_what_was_shown_before_and_nothing_after(llava, monkeypatch):
    """A text that ends at a signal looks once for all that go on from it; later looks are each one's own."""
    how = llava.see(replace(HOW, select=at_random, is_watched=False, cap=4, n=1))
    (state,) = llava.start(SAMPLES[:1])
    look = Looking(how, SAMPLES[0])
    Script(monkeypatch, llava, ["a\n"])
    ((parent,),) = llava.extend([Ask(state, ["a"], 9, stop=("\n",), look=look)])
    assert parent.looks == () and parent.ended == "stop" and parent.state.gaze.is_due
    Script(monkeypatch, llava, ["b\nc\n", "d\ne\n"])
    calls = []
    monkeypatch.setattr(batch_of_rows, "look", lambda *args: calls.append(len(args[1])) or looking.look(*args))
    (forks,) = llava.extend([Ask(parent.state, ["a", "b"], 4, look=look)])
    assert calls == [1, 2]
    assert forks[0].looks[0] == forks[1].looks[0] and forks[0].looks[0].place == 0
    assert forks[0].looks[1].patches != forks[1].looks[1].patches and forks[0].looks[1].place == 2
    for fork in forks:
        shown = [patch for one in fork.looks for patch in one.patches]
        assert len({*shown}) == len(shown) == 2 == len(fork.state.gaze.taken)
        assert fork.state.gaze.text == "a\n" + fork.text and fork.state.gaze.looks == 2
    (only,) = llava.extend([Ask(parent.state, ["b"], 0, look=look)])[0]
    assert only.looks == () and only.state is parent.state


@torch.inference_mode()
def test_a_text_in_segments_is_the_text_in_one(engine, monkeypatch):
    """Looks at the seams too: the cap, the taken patches and the logits are the same."""
    how, (state,) = engine.see(HOW), engine.start(SAMPLES[:1])
    look = Looking(how, SAMPLES[0])
    script = Script(monkeypatch, engine, [SCRIPTS[0]])
    ((one,),) = engine.extend([Ask(state, ["a"], len(script.ids[0]), look=look)])
    parts, looks, text = [], [], ""
    ids = script.ids[0]
    for begin in range(0, len(ids), 3):
        part = Script(monkeypatch, engine, [""])
        part.ids = [ids[begin : begin + 3]]
        ((found,),) = engine.extend([Ask(state, ["a"], len(part.ids[0]), look=look)])
        looks += [replace(shown, place=len(text) + shown.place) for shown in found.looks]
        state, text = found.state, text + found.text
        parts += part.logits[0]
    assert text == one.text and [(s.place, s.patches) for s in looks] == [(s.place, s.patches) for s in one.looks]
    torch.testing.assert_close(torch.stack(parts), torch.stack(script.logits[0]), atol=1e-5, rtol=1e-5)


def test_a_deadline_after_a_look_leaves_a_text_that_goes_on(engine, monkeypatch):
    """The marker after the patches is fed, and stands in no text; before the first token, the look is made anew."""
    script = Script(monkeypatch, engine, ["a\nb\nc"])
    how, (state,) = engine.see(HOW), engine.start(SAMPLES[:1])
    look = Looking(how, SAMPLES[0])
    with engine.running():
        batch = engine.batch()
        job = batch.add(Ask(state, ["a"], 5, look=look, deadline=time.monotonic() + 999))
        while not job.rows[0].looks:
            batch.step()
        job.ask = replace(job.ask, deadline=0.0)
        batch.step()
    cut = job.candidates[0]
    assert (cut.text, cut.ended, len(cut.looks)) == ("a\n", "deadline", 1) and not cut.state.gaze.is_due
    rest = Script(monkeypatch, engine, ["b\nc"])
    engine.extend([Ask(cut.state, ["a"], 3, look=look)])
    expected = whole_of(engine, script.ids[0][:2], Patches(numbers_of(cut)[0]))
    torch.testing.assert_close(rest.logits[0][0], expected, atol=1e-5, rtol=1e-5)
    due = replace(cut.state, gaze=replace(cut.state.gaze, is_due=True))
    ((late,),) = engine.extend([Ask(due, ["a"], 3, look=look, deadline=0.0)])
    assert (late.looks, late.state, late.ended) == ((), due, "deadline")


@torch.inference_mode()
def whole_of(engine, *pieces):
    return whole(engine, SAMPLES[0], pieces)[0]


def fails(_look):
    raise KeyError("mine is odd")


@pytest.mark.parametrize(
    ("select", "problem"),
    [(fails, "the selector mine fails: KeyError: 'mine is odd'")]
    + [(lambda _look, wrong=wrong: wrong, "the selector mine chose") for wrong in ([99], [0, 0], [0, 1, 2], ["a"], None)],
)
def test_a_selector_that_fails_or_chooses_what_it_may_not_is_its_rows_alone(llava, monkeypatch, select, problem):
    """Different ones, not too many, none that was shown; who decodes beside it is answered as alone, and looks."""
    how = replace(HOW, name="mine", select=select, from_start=True)
    good = Looking(llava.see(replace(HOW, n=1)), SAMPLES[0])
    wrong = Looking(llava.see(how), SAMPLES[0])
    states = llava.start([SAMPLES[0]] * 3)
    Script(monkeypatch, llava, ["a\nb"] * 5)
    later = Looking(llava.see(replace(how, from_start=False)), SAMPLES[0])
    asks = [Ask(states[0], ["a", "b"], 3, look=wrong), Ask(states[1], ["a"], 3, look=good), Ask(states[2], ["a"], 3)]
    asks.append(Ask(states[0], ["c"], 3, look=later))
    *both, seeing, plain, last = (one for mine in llava.extend(asks) for one in mine)
    for failed in (*both, last):
        assert (failed.text, failed.tokens, failed.ended, failed.state) == ("", 0, "failed", None)
        assert failed.problem.startswith("the selector mine") and (problem in failed.problem or "fails" in failed.problem)
    assert seeing.text == plain.text == "a\nb" and len(seeing.looks) == 1 and plain.looks == ()


def test_rows_that_all_fail_at_once_leave_nothing(llava):
    """And the batch is empty."""
    look = Looking(llava.see(replace(HOW, select=fails, from_start=True)), SAMPLES[0])
    (state,) = llava.start(SAMPLES[:1])
    with llava.running():
        batch = llava.batch()
        job = batch.add(Ask(state, ["a", "b"], 3, look=look))
        batch.step()
        assert batch.is_empty and job.done and batch.bytes == 0


def test_a_selector_may_choose_nothing(llava, monkeypatch):
    """There is no look then."""
    Script(monkeypatch, llava, ["a\nb"])
    ((found,),) = extend(llava, SAMPLES[:1], replace(HOW, select=lambda look: []), [3])
    assert found.text == "a\nb" and found.looks == ()


def test_chosen_layers_and_heads(wide, monkeypatch):
    """Only their attention counts; others than the model has are refused."""
    weights = {}
    for name, keys in {"all": {}, "layer": {"layers": (1,)}, "head": {"layers": (1,), "heads": (0,)}}.items():
        Script(monkeypatch, wide, ["a\nb"])
        kept = []
        how = replace(HOW, select=lambda look, kept=kept: kept.append(look.weights) or [0], **keys)
        extend(wide, SAMPLES[:1], how, [3])
        weights[name] = kept[0]
    assert not any(torch.equal(weights[a], weights[b]) for a, b in (("all", "layer"), ("layer", "head")))
    for keys in ({"layers": (2,)}, {"heads": (99,)}):
        with pytest.raises(SearchError, match="the model has"):
            wide.see(replace(HOW, **keys))


@torch.inference_mode()
def test_one_head_is_that_head(wide, monkeypatch):
    """Of a full map."""
    script, kept = Script(monkeypatch, wide, ["a\nb"]), []
    how = replace(HOW, select=lambda look: kept.append((look.weights, look.sight.slots)) or [0], layers=(0,), heads=(1,))
    extend(wide, SAMPLES[:1], how, [3])
    _, maps = whole(wide, SAMPLES[0], [script.ids[0][:2]])
    ((weights, slots),) = kept
    torch.testing.assert_close(weights, maps[0][0, 1, -1][slots], atol=1e-6, rtol=1e-4)


def test_nothing_is_left_of_watching(llava, monkeypatch):
    """Layers run with the attention that they had."""
    modules = [one for one in llava._decoder.language_model.modules() if hasattr(one, "k_proj")]
    before = [one.config for one in modules]
    Script(monkeypatch, llava, ["a\nb"])
    extend(llava, SAMPLES[:1], HOW, [3])
    assert all(one.config is config for one, config in zip(modules, before, strict=True))
    assert {one.config._attn_implementation for one in modules} == {"sdpa"}


def test_what_cannot_show_patches_says_so(load_tiny):
    """Images that are in no text."""
    for name, what in (("mllama", "mllama"), ("t5_vision", "an encoder-decoder"), ("llava_next", "llava_next")):
        with pytest.raises(SearchError, match=f"patches of {what} cannot be shown again"):
            LocalEngine(load_tiny(name), FORMATS["direct"]).see(HOW)


def test_a_look_depends_on_text_and_seed_alone(llava, monkeypatch):
    """So a drawn choice is the same in any batch, and another for another seed."""
    found = []
    for seed in (0, 0, 1):
        Script(monkeypatch, llava, ["a\nb"])
        how, (state,) = llava.see(replace(HOW, select=at_random, is_watched=False)), llava.start(SAMPLES[:1])
        ((one,),) = llava.extend([Ask(state, ["a"], 3, look=Looking(how, SAMPLES[0], seed))])
        found.append(one.looks[0])
    assert found[0] == found[1] != found[2] and found[0].weights is None
