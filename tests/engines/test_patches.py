"""Patches shown again: what is cached is what a full forward over the same text would compute, at true positions."""

import pytest
import torch

from lora_cot.data.collate import encode
from lora_cot.engines import batch as batch_of_rows
from lora_cot.engines.base import Ask, Sampling
from lora_cot.engines.local import LocalEngine
from lora_cot.engines.patches import attend, copy_in, insert
from lora_cot.engines.sampling import draw
from lora_cot.engines.sight import patch_view
from lora_cot.errors import SearchError
from lora_cot.formats import FORMATS
from tests.engines.reference import SAMPLES, TEXT_ONLY, Patches, whole


@pytest.fixture(params=["llava", "qwen2_vl", "chameleon", pytest.param("qwen2_5_vl", marks=pytest.mark.slow)])
def engine(request, load_tiny):
    """An engine that keeps what its images' patches are."""
    found = LocalEngine(load_tiny(request.param), FORMATS["direct"])
    found._decoder.keeps_sight = True
    return found


def drawn(engine, states, seeds, tokens):
    """States a few tokens on."""
    asks = [Ask(state, [seed], tokens, sampling=Sampling(1.0)) for state, seed in zip(states, seeds, strict=True)]
    return [candidate.state for (candidate,) in engine.extend(asks)]


@torch.inference_mode()
def test_attention_of_one_token_is_that_of_a_full_map(engine):
    """Averaged over layers and heads, or of chosen layers; rows of different lengths beside each other."""
    states = engine.start([SAMPLES[0], SAMPLES[1]])
    states = [*drawn(engine, states[:1], "a", 7), *drawn(engine, states[1:], "b", 3)]
    begun = [len(encode(engine.encoder, sample, False).input_ids) for sample in SAMPLES[:2]]
    for layers in (None, [1]):
        with engine.running():
            roots, found = attend(engine._decoder, states, layers)
        for sample, state, root, weights, prompt in zip(SAMPLES[:2], states, roots, found, begun, strict=True):
            assert root.kv.length == len(weights) == state.root.kv.length + 1
            assert weights.sum().item() == pytest.approx(1, abs=1e-5)
            generated = tokens_of(engine, state, prompt)
            _, maps = whole(engine, sample, [generated])
            chosen = maps if layers is None else [maps[layer] for layer in layers]
            expected = torch.stack([one[0, :, -1].mean(0) for one in chosen]).mean(0)
            torch.testing.assert_close(weights, expected.float(), atol=1e-5, rtol=1e-4)


TOKENS = {}


@pytest.fixture(autouse=True)
def remember(monkeypatch):
    """Which tokens were drawn, by the row that drew them."""
    TOKENS.clear()

    def note(logits, samplings, draws):
        tokens, logprobs = draw(logits, samplings, draws)
        for own, token in zip(draws, tokens, strict=True):
            TOKENS.setdefault(id(own), []).append(token)
        KEPT.extend(draws)
        return tokens, logprobs

    KEPT.clear()
    monkeypatch.setattr(batch_of_rows, "draw", note)


KEPT = []


def tokens_of(engine, state, prompt):
    """The generated tokens of a state: the only row whose last one is the state's, and that is as long."""
    length = state.root.kv.length + 1 - prompt
    (found,) = {tuple(tokens) for tokens in TOKENS.values() if len(tokens) == length and tokens[-1] == state.last}
    return list(found)


@torch.inference_mode()
def test_patches_that_were_inserted_are_read_like_any_text(engine):
    """Logits after insertions equal a full forward to 1e-5, alone and beside others, with different numbers of patches."""
    states = engine.start([SAMPLES[0], SAMPLES[1], SAMPLES[2]])
    states = [*drawn(engine, states[:1], "a", 7), *drawn(engine, states[1:2], "b", 3), *drawn(engine, states[2:], "c", 5)]
    prompts = [len(encode(engine.encoder, sample, False).input_ids) for sample in SAMPLES]
    generated = [tokens_of(engine, state, prompt) for state, prompt in zip(states, prompts, strict=True)]
    chosen = [[1, 3], [0], [0, 2, 3]]
    with engine.running():
        roots, _ = attend(engine._decoder, states)
        shown = insert(engine._decoder, roots, chosen)
    TOKENS.clear()
    steps = []
    asks = [Ask(state, ["x"], 4, sampling=Sampling()) for state in shown]
    original = batch_of_rows.draw
    batch_of_rows.draw = lambda logits, *rest: steps.append(logits.clone()) or original(logits, *rest)
    try:
        engine.extend(asks)
    finally:
        batch_of_rows.draw = original
    for place, sample in enumerate(SAMPLES):
        then = []
        for logits in steps:
            expected, _ = whole(engine, sample, [generated[place], Patches(chosen[place]), then])
            torch.testing.assert_close(logits[place], expected, atol=1e-5, rtol=1e-5)
            then.append(int(logits[place].argmax()))


@torch.inference_mode()
def test_copied_patches_are_the_ones_of_the_prompt(engine):
    """Their keys and values stand again at the end; the text's positions go on as if they were not there."""
    (state,) = drawn(engine, engine.start(SAMPLES[:1]), "a", 7)
    (shown,) = copy_in([state], [[1, 3]])
    slots = state.root.sight.slots
    whole_text = torch.cat(state.root.kv.pieces, dim=3)
    torch.testing.assert_close(shown.root.kv.pieces[-1], whole_text[..., slots[[1, 3]], :], atol=0, rtol=0)
    assert shown.root.kv.length == state.root.kv.length + 2 and shown.last == state.last
    assert shown.root.kv.length + shown.root.ahead == state.root.kv.length + state.root.ahead
    (longer,) = drawn(engine, [shown], "a", 3)
    assert longer.root.kv.length == shown.root.kv.length + 3


def test_a_text_without_an_image_has_no_patches(engine):
    """Its sight is empty."""
    (state,) = engine.start([TEXT_ONLY])
    assert len(state.root.sight.slots) == len(state.root.sight.patches) == 0


def test_what_no_patch_can_be_shown_of_is_refused(load_tiny):
    """Tiles of several sizes, and images that stand in no text."""
    for name in ("llava_next", "mllama"):
        with pytest.raises(SearchError, match=f"patches of {name} cannot be shown again"):
            patch_view(load_tiny(name))


def test_a_sight_is_kept_only_where_it_is_asked_for(load_tiny):
    """It costs the memory of the image's embeddings."""
    engine = LocalEngine(load_tiny("llava"), FORMATS["direct"])
    assert engine.start(SAMPLES[:1])[0].root.sight is None
