"""What prompts of one search have in common is read once, and no image is copied for its candidates."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lora_cot.engines.base import Ask
from lora_cot.engines.cache import StillLayer
from lora_cot.engines.local import LocalEngine
from lora_cot.formats import FORMATS
from lora_cot.types import Exchange, Sample
from tests.engines.reference import SAMPLES, TEXT_ONLY, full_logits, spy


def texts(candidates):
    return [candidate.text for candidate in candidates]


@pytest.fixture
def looks(monkeypatch):
    """How many images a model's vision encoder is given, call by call."""

    def count(engine):
        seen = []
        tower = engine.backbone.base_model.get_submodule(engine.backbone.family.parts["vision_encoder"])
        hook = tower.register_forward_pre_hook(lambda *_, **__: seen.append(1), with_kwargs=True)
        hooks.append(hook)
        return seen

    hooks = []
    yield count
    for hook in hooks:
        hook.remove()


def judged(sample, *texts_):
    """Prompts of a judge about one sample: the same image and question, then what differs."""
    return [Sample(sample.id, (Exchange(f"Question: what?\nResponse 1: {text}\nWhich?"),), sample.images) for text in texts_]


def test_judges_read_what_their_prompts_share_once(each_chat, looks):
    """The options' odds are those of a full forward, whatever was read before; no image is looked at twice."""
    engine = LocalEngine(each_chat, FORMATS["four_stage"]).for_search()
    plain = LocalEngine(each_chat, FORMATS["direct"])
    seen = looks(engine)
    engine.start(SAMPLES[:2])
    first = len(seen)
    judge = engine.plain()
    for words in (("red", "red and blue"), ("a", "b b b", "c"), ("red and blue", "red")):
        prompts = [prompt for sample in SAMPLES[:2] for prompt in judged(sample, *words)]
        prompts.append(TEXT_ONLY)
        scores = judge.choose(prompts, ("1", "2"))
        assert len(seen) == first, "an image was looked at again"
        ids = [plain.texts.tokenizer(option, add_special_tokens=False)["input_ids"][0] for option in "12"]
        for prompt, found in zip(prompts, scores, strict=True):
            options = engine.told_apart(("1", "2"))
            expected = full_logits(plain, prompt, options.begun).log_softmax(-1)[list(options.firsts)].tolist()
            assert found == pytest.approx(expected, abs=1e-5), (prompt, ids)
        seen.clear()
        seen += [1] * first


def test_what_a_search_learned_is_forgotten_with_it(engine):
    """Another search, and an engine outside of any, begin with nothing."""
    search = engine.for_search()
    search.start(SAMPLES[:1])
    assert search._memory._roots and search.plain()._memory is search._memory
    assert engine._memory is None and not engine.for_search()._memory._roots


def test_a_prompt_that_was_read_is_not_read_again(each_engine, monkeypatch):
    """The same prompt twice, or a longer one after it: the logits are those of a full forward."""
    engine = each_engine.for_search()
    (state,) = engine.start(SAMPLES[:1])
    (again,) = engine.start(SAMPLES[:1])
    asks = [Ask(one, ["x"], 12) for one in (state, again)]
    assert texts(engine.extend(asks[:1])[0]) == texts(engine.extend(asks[1:])[0])
    steps = spy(monkeypatch)
    longer = replace(SAMPLES[0], exchanges=(Exchange(SAMPLES[0].last.question + " And why?"),))
    engine.extend([Ask(engine.start([longer])[0], ["x"], 1)])
    torch.testing.assert_close(steps[-1][0], full_logits(each_engine, longer, []), atol=1e-5, rtol=1e-5)


class Made(TorchDispatchMode):
    """The most bytes of anything with the shape of an image's keys that one operation makes anew."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.most = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        known = {one.untyped_storage().data_ptr() for one in args if isinstance(one, torch.Tensor)}
        for one in found if isinstance(found, tuple | list) else (found,):
            is_new = isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in known
            if is_new and one.shape[-2:] == self.shape:
                self.most = max(self.most, one.untyped_storage().nbytes())
        return found


@torch.inference_mode()
def test_candidates_share_the_images_keys_and_values(load_tiny):
    """Ten candidates add nothing to the image cache of one (Mllama), however many questions are beside, nor does a step
    make anything as large as one image's keys for each of them.
    """
    engine = LocalEngine(load_tiny("mllama"), FORMATS["direct"])
    states = engine.start(SAMPLES[:2])
    held, largest, one = [], [], states[0].root.kv.still[0, 0]
    for count in (1, 10):
        rows = engine._decoder.rows()
        rows.join(states, [count, count])
        rows.step()
        rows.keep([place for place in range(2 * count) if place % 3 != 2])
        with Made(one.shape[-2:]) as seen:
            rows.step()
        layers = [layer for layer in rows._cache.layers if isinstance(layer, StillLayer)]
        parts = [part for layer in layers for side in (layer.keys, layer.values) for part, _ in side.parts]
        held.append(sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}.values()))
        largest.append(seen.most)
    assert held[0] == sum(state.root.kv.still.nbytes for state in states)
    assert held[1] <= 1.05 * held[0] and largest[1] <= one.nbytes, (held, largest, one.nbytes)
