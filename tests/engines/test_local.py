"""The local engine: what it caches is what a full forward would compute, whatever else is in the batch."""

import random

import pytest
import torch

from lora_cot.data.collate import batch, encode, model_inputs
from lora_cot.engines import batch as batch_of_rows
from lora_cot.engines import sampling
from lora_cot.engines.base import Ask, Sampling
from lora_cot.engines.sampling import draw
from lora_cot.errors import SearchError
from lora_cot.types import Exchange, Sample
from tests.engines.reference import SAMPLES, TEXT_ONLY, full_logits, spy


def extend(engine, states, seeds, stop, max_new_tokens, sampling):
    """Candidates of each state, one for each of its seeds."""
    stops = () if stop is None else (stop,)
    return engine.extend(
        [Ask(state, own, max_new_tokens, stops, sampling=sampling) for state, own in zip(states, seeds, strict=True)]
    )


def test_cached_logits_equal_a_full_forward_at_every_step(each_engine, monkeypatch):
    """Prefilled once, forked, continued: every step's logits are those of one forward over the whole text."""
    engine = each_engine
    steps = spy(monkeypatch)
    questions = [SAMPLES[0], TEXT_ONLY, SAMPLES[1]]
    states, rows = engine.start(questions), [[], [], []]
    of_pairs = engine.backbone.family.is_encoder_decoder
    prompts = {(state.root.kv.still.shape[3] if of_pairs else state.root.kv.length) for state in states}
    assert len(prompts) > 1, "no padding to test"
    for step in range(12):
        for row, (sample, ids) in enumerate(zip(questions, rows, strict=True)):
            (candidate,) = extend(engine, [states[row]], [[f"{row}/{step}"]], None, 1, Sampling(1.0))[0]
            torch.testing.assert_close(steps[-1][0], full_logits(engine, sample, ids), atol=1e-5, rtol=1e-5)
            ids.append(candidate.state.last)
            states[row] = candidate.state


def test_rows_of_a_batch_get_the_logits_they_get_alone(each_engine, monkeypatch):
    """Padding, batch mates with and without images, and rows that leave change no row's logits."""
    engine = each_engine
    steps = spy(monkeypatch)
    questions = [SAMPLES[0], TEXT_ONLY, SAMPLES[1]]
    seeds = [["a", "b"], ["c"], ["d", "e", "f"]]
    states = engine.start(questions)
    extend(engine, states, seeds, None, 1, Sampling(1.0))
    batched = torch.cat(steps)  # rows of questions that cannot share a batch come after the others
    keys = [state.root.kv.shape_key for state in states]
    order = sorted(range(3), key=lambda question: keys.index(keys[question]))
    steps.clear()
    for question in order:
        extend(engine, engine.start([questions[question]]), [seeds[question]], None, 1, Sampling(1.0))
    torch.testing.assert_close(batched, torch.cat(steps), atol=3e-6, rtol=1e-5)
    together = extend(engine, states, seeds, None, 25, Sampling(1.0))
    alone = [
        extend(engine, engine.start([question]), [mine], None, 25, Sampling(1.0))[0]
        for question, mine in zip(questions, seeds, strict=True)
    ]
    assert [[c.text for c in mine] for mine in together] == [[c.text for c in mine] for mine in alone]
    assert len({c.text for mine in together for c in mine}) > 3, "different seeds draw different texts"
    for mine, other in zip(together, alone, strict=True):
        assert [c.logprob for c in mine] == pytest.approx([c.logprob for c in other], abs=1e-3)


def test_a_text_continued_in_pieces_is_the_text_drawn_at_once(each_engine):
    """A winner's cache is the next root: stopping and going on changes nothing (greedy)."""
    engine = each_engine
    (whole,) = extend(engine, engine.start(SAMPLES[:1]), [["x"]], None, 24, Sampling())[0]
    state, text, logprob = engine.start(SAMPLES[:1])[0], "", 0.0
    for _ in range(4):
        (piece,) = extend(engine, [state], [["x"]], None, 6, Sampling())[0]
        state, text, logprob = piece.state, text + piece.text, logprob + piece.logprob
    assert text == whole.text, "also where a cut goes through a character"
    assert logprob == pytest.approx(whole.logprob, abs=1e-4)


def test_greedy_equals_generate(each_engine):
    """Greedy decoding gives the tokens that transformers' own generate gives."""
    engine = each_engine
    encoded = encode(engine.encoder, SAMPLES[0], False)
    inputs = model_inputs(batch([encoded], engine.backbone.processor, engine.backbone.family.image_inputs))
    ids = engine.backbone.model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]
    ids = ids[1 if encoded.is_pair else len(encoded.input_ids) :]
    (mine,) = extend(engine, engine.start(SAMPLES[:1]), [["x"]], None, 20, Sampling())[0]
    text = engine.texts.tokenizer.decode([i for i in ids if i != engine.texts.tokenizer.eos_token_id])
    assert mine.text == text.rstrip("\ufffd"), "a character that was only begun belongs to what ends it"


def test_the_same_seed_draws_the_same_text(engine):
    """A seed fixes a candidate's draws; its logprob is that of the tokens it drew."""
    states = engine.start(SAMPLES[:1])
    ((first, again, other),) = extend(engine, states, [["s", "s", "t"]], None, 20, Sampling(1.0))
    assert first.text == again.text != other.text
    assert first.logprob < 0 and first.tokens == 20


def test_a_stop_string_is_looked_for_in_new_text_only(engine, monkeypatch):
    """A question that quotes the closing tag stops nothing; generated text that holds it ends there, closed."""
    sample = Sample("q", (Exchange("What does </SUMMARY> mean?"),), SAMPLES[0].images)
    script = engine.texts.tokenizer("ab</SUMMARY> cd", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(batch_of_rows, "draw", lambda logits, *rest: ([script[len(calls)]], calls.append(0) or [0.0]))
    calls = []
    (found,) = extend(engine, engine.start([sample]), [["x"]], "</SUMMARY>", 40, Sampling())[0]
    assert found.ended == "stop" and found.text == "ab</SUMMARY>"


def test_the_end_token_ends_any_text(engine, monkeypatch):
    """Also where a stop string is waited for; the token is not part of the text."""
    end = engine.texts.tokenizer.eos_token_id
    monkeypatch.setattr(batch_of_rows, "draw", lambda logits, *rest: ([end] * len(logits), [0.0] * len(logits)))
    states = engine.start(SAMPLES[:1])
    for stop in (None, "</SUMMARY>"):
        (found,) = extend(engine, states, [["x"]], stop, 40, Sampling())[0]
        assert (found.text, found.tokens, found.ended) == ("", 1, "end")


@pytest.mark.parametrize("tries", [0, sampling.TRIES], ids=["sorted", "drawn"])
@pytest.mark.parametrize("temperature", [1.0, 1e-30, 5e-324])
@pytest.mark.parametrize("top_p", [1.0, 1e-30, 5e-324])
def test_the_smallest_numbers_draw_the_likeliest(monkeypatch, tries, temperature, top_p):
    """Those that single precision has no room for too; one such request is no fault of its batch."""
    monkeypatch.setattr(sampling, "TRIES", tries)
    logits = torch.tensor([[1.0, 3.0, 2.0], [900.0, -900.0, 0.0]])
    tokens, _ = draw(logits, [Sampling(temperature, top_p)] * 2, [random.Random(0), random.Random(1)])
    assert temperature == top_p == 1.0 or tokens == [1, 0]


@pytest.mark.parametrize("tries", [0, 1, sampling.TRIES], ids=["sorted", "both", "drawn"])
@pytest.mark.parametrize("top_p", [1.0, 0.7, 0.35])
def test_draws_follow_the_probabilities_within_top_p(monkeypatch, tries, top_p):
    """Drawn until within or sorted first, it is the same distribution; a token that crosses top_p is within."""
    monkeypatch.setattr(sampling, "TRIES", tries)
    logits = torch.tensor([[0.0, 1.0, 2.0, 0.5, -9.0]]).repeat(8000, 1)
    tokens, logprobs = draw(logits, [Sampling(2.0, top_p)] * 8000, [random.Random(i) for i in range(8000)])
    expected = (logits[0] / 2).softmax(-1)
    within = {1.0: [0, 1, 2, 3, 4], 0.7: [2, 1, 3], 0.35: [2]}[top_p]
    expected = torch.tensor([float(expected[token]) * (token in within) for token in range(5)])
    shares = torch.bincount(torch.tensor(tokens), minlength=5) / 8000
    assert set(tokens) <= set(within), "a token beyond top_p was drawn"
    torch.testing.assert_close(shares, expected / expected.sum(), atol=0.02, rtol=0)
    assert logprobs[:20] == pytest.approx([float(logits[0].log_softmax(-1)[token]) for token in tokens[:20]])


def test_a_row_draws_its_own_tokens_in_any_batch():
    """Greedy rows, cold and narrow ones beside it ask nothing of its seed, however often they are drawn again."""
    torch.manual_seed(0)
    logits, how = torch.randn(6, 300) * 3, [Sampling(0.6, 0.9), Sampling(), Sampling(1.0, 0.05), Sampling(1.5)] * 2
    rows = range(6)
    together = draw(logits, how[:6], [random.Random(f"r{row}") for row in rows])[0]
    alone = [draw(logits[row : row + 1], [how[row]], [random.Random(f"r{row}")])[0][0] for row in rows]
    assert together == alone and together[1] == int(logits[1].argmax())


def test_verdicts_are_read_from_logits(engine):
    """An option's score is the log-probability of its first token after the prompt."""
    question = Sample("j", (Exchange("Which? Answer 1 or 2."),), SAMPLES[0].images)
    first, second = engine.choose([question, TEXT_ONLY], ("1", "2"))
    ids = [engine.texts.tokenizer(option, add_special_tokens=False)["input_ids"][0] for option in "12"]
    expected = full_logits(engine, question, []).log_softmax(-1)[ids].tolist()
    assert first == pytest.approx(expected, abs=1e-5)
    assert first != second
    with pytest.raises(SearchError, match="cannot be told apart"):
        engine.choose([question], ("1", "1"))
    with pytest.raises(SearchError, match="no adapter that could be switched off"):
        engine.plain(adapter=False)
