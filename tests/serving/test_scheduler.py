"""One model for many requests: nobody's answer depends on who else asks, nobody waits for a large search to end."""

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from lora_cot.engines.base import Ask, Sampling
from lora_cot.engines.batch import Batch
from lora_cot.engines.interleave import Interleave, Looking
from lora_cot.search.selectors import attention
from lora_cot.serving.tickets import CancelledError
from lora_cot.types import Exchange, Sample

RED = io.BytesIO()
Image.new("RGB", (30, 20), "red").save(RED, "PNG")
SAMPLES = [
    Sample("a", (Exchange("What is it?"),), (RED.getvalue(),)),
    Sample("b", (Exchange("And now, in many more words than before?"),)),
    Sample("c", (Exchange("Which colour is it?"),), (RED.getvalue(),)),
]


def ask(state, seeds="x", tokens=12, temperature=0.0, **keys):
    return Ask(state, list(seeds), tokens, sampling=Sampling(temperature), **keys)


def answer(engine, sample, **keys):
    return [candidate.text for candidate in engine.extend([ask(engine.start([sample])[0], **keys)])[0]]


def wait_for(what, seconds=5.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.001)


@pytest.fixture
def slow(monkeypatch):
    """Steps take a while, so that a test can do something in between; they are counted."""
    steps, step = [], Batch.step

    def slowly(self):
        steps.append(sum(len(group.rows) for group in self._groups.values()))
        time.sleep(0.005)
        step(self)

    monkeypatch.setattr(Batch, "step", slowly)
    return steps


@pytest.mark.parametrize("keys", [{}, {"seeds": "pqr", "temperature": 1.0}], ids=["greedy", "drawn"])
def test_concurrent_answers_are_those_of_requests_alone(engines, local, keys):
    """Whatever joins and leaves beside them, and whoever's prompt is read with theirs."""
    alone = [answer(local, sample, **keys) for sample in SAMPLES]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: answer(engines(), SAMPLES[n % 3], **keys), range(12)))
    assert found == [alone[n % 3] for n in range(12)]


def test_judges_and_searches_share_the_thread(engines, local):
    """Options are weighed as alone."""
    alone = local.plain().choose(SAMPLES, ("1", "2"))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: engines().plain().choose(SAMPLES, ("1", "2")), range(4)))
    for each in found:
        assert [pytest.approx(row, abs=1e-4) for row in alone] == each


def test_more_candidates_than_rows_take_turns(engines, slow):
    """A batch never holds more rows than it may; all candidates are drawn."""
    engine = engines()
    (found,) = engine.extend([ask(engine.start([SAMPLES[0]])[0], "abcdefghijklmnopqrst", 5, 1.0)])
    assert len(found) == 20 and all(candidate.tokens for candidate in found)
    assert max(slow) <= 8
    assert engine.ticket.spent.generated_tokens == sum(candidate.tokens for candidate in found)


def test_a_large_search_does_not_starve_a_small_request(engines, scheduler, slow):
    """While forty candidates wait for rows, a small request is answered in about its own number of steps."""
    large, small = engines(), engines()
    states = [engine.start([SAMPLES[0]])[0] for engine in (large, small)]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(large.extend, [ask(states[0], [str(n) for n in range(40)], 40, 1.0)])
        wait_for(lambda: len(slow) > 3)
        before = len(slow)
        small.extend([ask(states[1], tokens=5)])
        assert len(slow) - before <= 8
        assert not running.done() and scheduler.load.waiting > 20
        large.ticket.cancel()
        with pytest.raises(CancelledError):
            running.result(timeout=5)


def test_a_cancelled_request_leaves_within_a_step(engines, scheduler, slow):
    """Its rows are gone, its call raises, and so does the next one; the others go on as if it had not been."""
    gone, kept = engines(), engines()
    states = [engine.start([SAMPLES[0]])[0] for engine in (gone, kept)]
    with ThreadPoolExecutor(2) as pool:
        leaving = pool.submit(gone.extend, [ask(states[0], "abc", 400, 1.0)])
        staying = pool.submit(kept.extend, [ask(states[1], tokens=60)])
        wait_for(lambda: scheduler.load.rows == 4)
        gone.ticket.cancel()
        scheduler.wake()
        before = len(slow)
        wait_for(lambda: scheduler.load.rows <= 1)
        assert len(slow) - before <= 2
        with pytest.raises(CancelledError):
            leaving.result(timeout=5)
        with pytest.raises(CancelledError):
            gone.start([SAMPLES[0]])
        assert staying.result(timeout=10)[0][0].tokens == 60
    assert scheduler.load.rows == 0 and scheduler.load.waiting == 0


def test_a_fault_of_the_model_is_its_requests_alone(engines, scheduler, monkeypatch):
    """The rows of that step fail; the next request is answered. After three steps in a row the engine counts as broken."""
    engine, step, faults = engines(), Batch.step, []
    (state,) = engine.start([SAMPLES[0]])

    def fail(self):
        if faults:
            raise faults.pop()
        step(self)

    monkeypatch.setattr(Batch, "step", fail)
    faults += [ValueError("odd")]
    with pytest.raises(ValueError, match="odd"):
        engine.extend([ask(state)])
    assert scheduler.is_healthy
    assert engine.extend([ask(state)])[0][0].tokens == 12
    faults += [RuntimeError("gone")] * 3
    for _ in range(3):
        with pytest.raises(RuntimeError):
            engine.extend([ask(state)])
    assert not scheduler.is_healthy
    engine.extend([ask(state)])
    assert scheduler.is_healthy, "it answers again"


def test_a_prompt_that_cannot_be_read_fails_alone(engines, local, scheduler, monkeypatch):
    """Others that were to be read with it are read."""
    read, seen = type(local).read, []

    def pick(self, searches):
        seen.append(len(searches))
        if any(one.lengths == bad for one in searches):
            raise ValueError("bad prompt")
        return read(self, searches)

    bad = local.encode([SAMPLES[1]]).lengths
    alone = answer(local, SAMPLES[0])
    monkeypatch.setattr(type(local), "read", pick)
    gate = threading.Event()
    monkeypatch.setattr(scheduler, "_end_some", lambda: gate.wait(5))
    with ThreadPoolExecutor(3) as pool:
        wrong = pool.submit(engines().start, [SAMPLES[1]])
        right = [pool.submit(answer, engines(), SAMPLES[0]) for _ in range(2)]
        wait_for(lambda: len(scheduler._readings) + scheduler.inbox.waiting == 3)
        gate.set()
        with pytest.raises(ValueError, match="bad prompt"):
            wrong.result(timeout=5)
        assert [one.result(timeout=5) for one in right] == [alone] * 2
    assert max(seen) > 1


def test_prompts_are_read_between_steps_a_bounded_number_at_a_time(engines, scheduler, local, monkeypatch):
    """A judge of many prompts does not hold up those who decode."""
    scheduler.prefill_tokens = 40
    sizes, weigh = [], type(local).weigh

    def measure(self, parts, options):
        sizes.append(sum(len(part.keys) for part in parts))
        return weigh(self, parts, options)

    monkeypatch.setattr(type(local), "weigh", measure)
    prompts = [Sample(str(n), (Exchange(f"Is it {n} or not, what do you say?"),)) for n in range(9)]
    assert len(engines().plain().choose(prompts, ("1", "2"))) == 9
    assert len(sizes) > 3 and sum(sizes) == 9


def test_text_is_told_as_it_is_drawn(engines):
    """Piece by piece; together it is the candidate's text."""
    pieces = []
    engine = engines(on_text=lambda cot_format, text: pieces.append(text))
    (found,) = engine.extend([ask(engine.start([SAMPLES[0]])[0], "q", 60, 1.0)])
    assert len(pieces) > 20
    assert found[0].text.startswith("".join(pieces)) and len(found[0].text) - len("".join(pieces)) <= 3


def test_a_stopped_engine_answers_nobody(local):
    """Who waits is told; who comes later too."""
    from lora_cot.serving.engine import ScheduledEngine
    from lora_cot.serving.scheduler import Scheduler
    from lora_cot.serving.tickets import Ticket
    from tests.serving.conftest import FOUR_STAGE

    scheduler = Scheduler()
    engine = ScheduledEngine(scheduler, local, Ticket(), threading.Lock(), FOUR_STAGE)
    (state,) = engine.start([SAMPLES[0]])
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.extend, [ask(state, tokens=1500)])
        wait_for(lambda: scheduler.load.rows)
        scheduler.stop()
        for call in (lambda: running.result(timeout=5), lambda: engine.extend([ask(state)])):
            with pytest.raises(RuntimeError, match="stopped"):
                call()
    assert not scheduler.is_healthy


def test_requests_that_look_at_their_images_again(engines, local):
    """Beside some that don't: each is answered, and shown, what it is alone."""
    how = Interleave("attention", attention, n=1, cap=None, marks=("a",), from_start=True)

    def looked(engine, number):
        sample = SAMPLES[number % 3]
        look = Looking(engine.see(how), sample) if number % 2 else None
        (found,) = engine.extend([ask(engine.start([sample])[0], "pq", 20, 1.0, look=look)])
        return [(one.text, one.looks) for one in found]

    alone = [looked(local, number) for number in range(6)]
    assert [any(looks for _, looks in one) for one in alone] == [False, False, False, True, False, True]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: looked(engines(), number % 6), range(12)))
    plain = [[(text, [(look.place, look.patches) for look in looks]) for text, looks in one] for one in found]
    assert plain == [[(text, [(look.place, look.patches) for look in looks]) for text, looks in one] for one in alone * 2]


def test_a_selector_that_fails_is_its_candidates_failure(engines, local, scheduler):
    """Who decodes in the same batch is answered, and nothing is held against the engine."""

    def fails(_look):
        raise ValueError("odd")

    how = Interleave("mine", fails, n=1, from_start=True)

    def asked(number):
        engine = engines()
        look = Looking(engine.see(how), SAMPLES[0]) if number % 2 else None
        return engine.extend([ask(engine.start([SAMPLES[0]])[0], look=look)])[0][0]

    alone = answer(local, SAMPLES[0])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(asked, range(8)))
    assert [one.text for one in found[::2]] == alone * 4 and {one.ended for one in found[1::2]} == {"failed"}
    assert scheduler.is_healthy and scheduler.load.rows == 0
