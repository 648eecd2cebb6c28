"""Too little memory: rows wait for room, a batch that did not fit begins again smaller, and nobody is forgotten."""

import gc
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from lora_cot.engines import batch as batch_of_rows
from lora_cot.engines import cache
from lora_cot.engines.base import Ask
from lora_cot.engines.batch import Batch
from lora_cot.engines.cache import KeyValues, bytes_at_rest
from lora_cot.engines.interleave import Interleave, Looking
from lora_cot.engines.local import LocalEngine
from lora_cot.formats import FORMATS
from lora_cot.search.selectors import at_random
from lora_cot.serving import room as rooms
from lora_cot.serving.room import GIB, Room, RowLimit, most_tokens, room_of
from lora_cot.types import Exchange, Sample
from tests.serving.conftest import chat
from tests.serving.test_scheduler import SAMPLES, answer, ask, slow, wait_for

assert slow
LONG = Sample("long", (Exchange("word " * 120 + "?"),))


def out_of_memory():
    return torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def failing(monkeypatch):
    """Steps and readings raise what is in these lists, last one first."""
    faults = {"step": [], "read": [], "drop": []}

    def failing(name, whole):
        def fail(*args):
            if faults[name]:
                raise faults[name].pop()
            return whole(*args)

        return fail

    for kind, name in ((Batch, "step"), (LocalEngine, "read"), (Batch, "drop")):
        monkeypatch.setattr(kind, name, failing(name, getattr(kind, name)))
    return faults


@pytest.mark.parametrize("each_tiny", ["llava", "t5_vision"], indirect=True)
def test_rows_never_hold_more_than_was_counted(each_tiny):
    """Whatever joins, leaves and ends: what is counted when a row joins is what it may come to."""
    engine, draws = LocalEngine(each_tiny, FORMATS["direct"]), random.Random(5)
    states = engine.start([SAMPLES[0], SAMPLES[1], LONG])
    with engine.running():
        batch, jobs, most = engine.batch(), [], 0.0
        for step in range(150):
            if draws.random() < 0.15:
                jobs.append(batch.add(ask(draws.choice(states), "abc"[: draws.randint(1, 3)], draws.randint(1, 90), 1.0)))
            if jobs and draws.random() < 0.05:
                batch.drop(jobs.pop(draws.randrange(len(jobs))))
            room = Room(10**12)
            for one in batch.asks:
                room.add("x", one)
            batch.step()
            held = (10**12 - room.left) / 2
            assert batch.bytes <= held, step
            most = max(most, batch.bytes / held if room.rows else 0)
            jobs = [job for job in jobs if not job.done]
    assert most > 0.5, "the count is no more than twice what there is"


@pytest.mark.parametrize("insert", ["input", "kv_copy"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_rows_that_look_never_hold_more_than_was_counted(load_tiny, monkeypatch, family, insert):
    """Marks included, wherever they begin and go on; a buffer of one row grows to what was counted, less its spare room."""
    engine = LocalEngine(load_tiny(family), FORMATS["direct"])
    monkeypatch.setattr(cache, "ROOM", 0)
    how = Interleave("random", at_random, False, n=1, cap=3, marks=("a",), insert=insert, from_start=True)
    vocabulary = sorted(engine.texts.tokenizer.get_vocab().items())
    words = ((word.strip("Ġ▁"), number) for word, number in vocabulary)
    token = next(number for word, number in words if word.isalpha() and word.endswith("a") and word != "a")
    monkeypatch.setattr(batch_of_rows, "draw", lambda logits, *_: ([token] * len(logits), [-1.0] * len(logits)))
    look = Looking(engine.see(how), SAMPLES[0])
    (state,) = engine.start(SAMPLES[:1])
    for cap, tokens in ((3, 5), (1, 5), (99, 8), (3, 1)):
        looking = Looking(replace(look.how, cap=cap), SAMPLES[0])
        first = Ask(state, ["x"], tokens, look=looking)
        (found,) = engine.extend([first])[0]
        assert found.looks and found.state.root.kv.length - state.root.kv.length == most_tokens(first)
        again = Ask(found.state, ["x"], tokens, look=looking)
        (more,) = engine.extend([again])[0]
        assert more.state.root.kv.length - found.state.root.kv.length == most_tokens(again)
    room = Room(10**9)
    room.add("x", first)
    assert (10**9 - room.left) // 2 == state.root.kv.row_bytes(most_tokens(first))[0]


def test_what_is_kept_of_images_is_counted(local):
    """As long as it is kept."""
    engine = LocalEngine(local.backbone, FORMATS["direct"])
    engine.see(Interleave("random", at_random, False))
    gc.collect()
    before = bytes_at_rest()
    (state,) = engine.start(SAMPLES[:1])
    own = state.root.sight.features.nbytes + state.root.sight.slots.nbytes
    assert bytes_at_rest() - before == state.root.kv.bytes + own and own > 0
    del state
    gc.collect()
    assert bytes_at_rest() == before


def test_what_texts_hold_is_counted_once(local):
    """Candidates share their prompt; what nobody holds any more is not counted."""
    gc.collect()
    before = bytes_at_rest()
    (state,) = local.start([SAMPLES[0]])
    prompt = state.root.kv.bytes
    assert bytes_at_rest() - before >= prompt > 0
    held = bytes_at_rest()
    (found,) = local.extend([ask(state, "ab", 10, 1.0)])
    own = sum(candidate.state.root.kv.bytes - prompt for candidate in found)
    assert bytes_at_rest() - held == own > 0
    piece = state.root.kv.pieces[0]
    seen = KeyValues((piece[..., :2, :],), piece)
    assert bytes_at_rest() - held == own, "a view holds what it is a view of"
    assert seen.row_bytes(3)[1] == 0 and KeyValues((piece,), piece, True).row_bytes(3)[1] == piece.nbytes
    del found, state, piece, seen
    gc.collect()
    assert bytes_at_rest() <= before


def test_room_is_what_was_asked_for_or_a_part_of_what_is_free(monkeypatch):
    """In GiB; on a GPU of what is free there."""
    assert room_of(torch.device("cpu"), 0.5) == GIB // 2
    monkeypatch.setattr(rooms.psutil, "virtual_memory", lambda: type("M", (), {"available": 4000}))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (800, 8000))
    assert room_of(torch.device("cpu")) == 3000 and room_of(torch.device("cuda")) == 600


def room_for(local, rows, tokens=12, held=None):
    """Bytes in which so many rows of the first sample fit."""
    (state,) = local.start([SAMPLES[0]])
    (text, _) = state.root.kv.row_bytes(tokens)
    return (bytes_at_rest() if held is None else held) + 2 * rows * text


def test_a_row_joins_where_it_fits_to_the_byte(local):
    """The only one always, in whatever room; the next one exactly where twice both of them fit."""
    (state, longer) = local.start([SAMPLES[0], LONG])
    short, text = ask(state, tokens=5), state.root.kv.row_bytes(5)[0]
    for most, fits in ((100 + 4 * text, True), (100 + 4 * text - 1, False)):
        room = Room(most, 100)
        assert Room(1, 100).fits("a", short), "alone"
        room.add("a", short)
        assert room.fits("a", short) is fits and not room.fits("a", ask(longer, tokens=5))
        assert room.fits("b", short) is fits, "another batch holds its own"
        assert not room.fits("a", short, 0.99)
        assert room.left == most - 100 - 2 * text
    assert Room(None).fits("a", short) and Room(None).left is None


def test_rows_wait_for_memory(engines, local, scheduler, monkeypatch):
    """No more decode at once than fit; all are answered, as they are alone."""
    alone = [answer(local, sample, tokens=12) for sample in SAMPLES]
    most, step = [], Batch.step

    def measured(self):
        step(self)
        most.append((len(self.asks), bytes_at_rest() + 2 * self.bytes))

    monkeypatch.setattr(Batch, "step", measured)
    scheduler.kv_bytes = bytes_at_rest() + 5 * 2 * 10**5
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda n: answer(engines(), SAMPLES[n % 3], tokens=12), range(12)))
    assert found == [alone[n % 3] for n in range(12)]
    assert 1 < max(rows for rows, _ in most) < 6
    assert max(held for rows, held in most if rows > 1) <= scheduler.kv_bytes


def test_in_no_room_at_all_one_row_decodes_at_a_time(engines, local, scheduler, slow):
    """A prompt is read, and a row joins, whenever there is none."""
    alone = [answer(local, sample, tokens=6) for sample in SAMPLES]
    scheduler.kv_bytes = 1
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda n: answer(engines(), SAMPLES[n], tokens=6), range(3))) == alone
    engine = engines()
    assert len(engine.extend([ask(engine.start([SAMPLES[0]])[0], "abcd", 4, 1.0)])[0]) == 4
    wait_for(lambda: not scheduler._batches)
    assert max(slow) <= 1


def test_a_row_that_does_not_fit_is_not_passed_by(engines, scheduler, local, slow):
    """Small requests come and come; the large one waits for those before it, and for none that came after it."""
    first, large = engines(), engines()
    short, long = first.start([SAMPLES[1]])[0], large.start([LONG])[0]
    scheduler.kv_bytes = bytes_at_rest() + 2 * long.root.kv.row_bytes(20)[0] + 1000
    order = []

    def drawn(engine, state, name, tokens):
        engine.extend([ask(state, tokens=tokens)])
        order.append(name)

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(drawn, first, short, "first", 30)]
        wait_for(lambda: scheduler.load.rows == 1)
        calls.append(pool.submit(drawn, large, long, "large", 20))
        wait_for(lambda: scheduler.load.waiting == 1)
        calls += [pool.submit(drawn, engines(), short, "late", 30) for _ in range(4)]
        for call in calls:
            call.result(timeout=20)
    assert order[:2] == ["first", "large"]


def test_prompts_wait_while_memory_is_full(engines, scheduler, local, slow):
    """They are read when rows have left, and not before."""
    engine, other = engines(), engines()
    (state,) = engine.start([SAMPLES[0]])
    scheduler.kv_bytes = bytes_at_rest() + 1000
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(engine.extend, [ask(state, tokens=40)])
        wait_for(lambda: scheduler.load.rows == 1)
        waiting = pool.submit(other.start, [LONG])
        wait_for(lambda: scheduler.load.waiting == 1)
        time.sleep(0.05)
        assert not waiting.done() and not running.done()
        assert running.result(timeout=10) and waiting.result(timeout=10)


def test_memory_leaves_room_for_those_who_have_none(local):
    """A large search takes three quarters of the rows, and of the memory; one that has no row takes the rest."""
    from lora_cot.serving.calls import Extension
    from lora_cot.serving.tickets import Ticket
    from lora_cot.serving.turns import shares

    (state,) = local.start([SAMPLES[0]])

    def made(count):
        return Extension(Ticket(), local, [ask(state, "x" * count, 5)], None)

    text = state.root.kv.row_bytes(5)[0]
    large, small, other = made(50), made(1), made(50)
    assert shares([large], Room(2 * 16 * text), 64) == {large: 12}
    assert shares([large, small], Room(2 * 16 * text), 64) == {large: 11, small: 1}
    assert shares([large], Room(None), 16) == {large: 12}
    assert shares([large, other], Room(None), 16) == {large: 6, other: 6}
    assert shares([small], Room(None), 64) == {small: 1}


def test_a_batch_that_runs_out_of_memory_begins_again_smaller(engines, local, scheduler, failing, slow):
    """Its rows are drawn once more, half of them at a time; the answers are those of requests alone."""
    alone = [answer(local, sample, seeds="pq", temperature=1.0) for sample in SAMPLES]
    engine = engines()
    states = engine.start(SAMPLES)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.extend, [ask(state, "pq", temperature=1.0) for state in states])
        wait_for(lambda: scheduler.load.rows == 6)
        failing["step"].append(out_of_memory())
        found = running.result(timeout=10)
    assert [[candidate.text for candidate in mine] for mine in found] == alone
    assert scheduler.load.row_limit == 3 and scheduler.is_healthy
    begun = slow.index(0, 1)
    assert max(slow[begun:]) <= 3


def test_the_second_time_its_rows_fail(engines, local, scheduler, failing):
    """Half the rows were too many as well: who asks is told, and the engine goes on."""
    engine = engines()
    (state,) = engine.start([SAMPLES[0]])
    failing["step"] += [out_of_memory(), out_of_memory()]
    with pytest.raises(torch.OutOfMemoryError):
        engine.extend([ask(state)])
    assert engine.extend([ask(state)])[0][0].text == answer(local, SAMPLES[0])[0]


def test_a_text_that_is_begun_again_is_told_once(engines, local, scheduler, failing):
    """No token twice, whenever memory ran out."""
    alone = answer(local, SAMPLES[0], seeds="q", tokens=30, temperature=1.0)[0]
    pieces = []
    engine = engines(on_text=lambda cot_format, text: pieces.append(text))
    (state,) = engine.start([SAMPLES[0]])
    step, steps = Batch.step, []

    def once(self):
        steps.append(1)
        if len(steps) == 12:
            raise out_of_memory()
        step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "step", once)
        (found,) = engine.extend([ask(state, "q", 30, 1.0)])
    assert found[0].text == alone and len(steps) > 30
    assert alone.startswith("".join(pieces)) and len(pieces) > 10


@pytest.mark.parametrize("again", ["other", "short"])
def test_a_text_that_comes_out_otherwise_is_not_told_on(local, again):
    """Where batches of another size round differently, what was told would not be what was chosen."""
    from lora_cot.serving.calls import Extension
    from lora_cot.serving.tickets import Ticket

    told, (state,) = [], local.start([SAMPLES[0]])
    with local.running():
        batch = local.batch()
        extension = Extension(Ticket(), local, [ask(state, tokens=5)], told.append)
        extension.join(batch, 1)
        for _ in range(3):
            batch.step()
            extension.collect()
        lost = MemoryError()
        assert extension.begin_again(lost) and not extension.begin_again(lost)
        extension.join(batch, 1)
        (row,) = extension.jobs[0].rows
        row.ids[:] = [*told[-1][:2], told[-1][2] + 1] if again == "other" else told[-1][:2]
        if again == "short":
            extension.collect()
            extension.jobs[0].candidates[0] = None
        with pytest.raises(MemoryError):
            extension.collect()
    assert len(told[-1]) == 3


def test_what_had_ended_is_kept(local):
    """Of a batch that is lost, only candidates without an end are drawn again, each with its own seed."""
    from lora_cot.serving.calls import Extension
    from lora_cot.serving.tickets import Ticket

    (state,) = local.start([SAMPLES[0]])
    asks = [ask(state, "abcd", 6, 1.0), ask(state, "ef", 3, 1.0)]
    alone = [[c.text for c in mine] for mine in local.extend(asks)]
    extension = Extension(Ticket(), local, asks, None)
    with local.running():
        batch = local.batch()
        extension.join(batch, 6)
        while not extension.jobs[1].done:
            batch.step()
        job = extension.jobs[0]
        job.candidates[1] = local.extend([asks[0]])[0][1]
        assert extension.begin_again(MemoryError()) and extension.left == 3 and not extension.rows
        batch = local.batch()
        extension.join(batch, 2)
        extension.join(batch, 1)
        while not batch.is_empty:
            batch.step()
        extension.collect()
    assert [[c.text for c in mine] for mine in extension.future.result()] == alone


def test_the_batch_grows_back(monkeypatch):
    """Twofold after a while, to what it was; not before."""
    now = [1000.0]
    monkeypatch.setattr(rooms.time, "monotonic", lambda: now[0])
    limit = RowLimit(20)
    limit.shrink(18)
    assert limit.now == 9
    limit.shrink(50)
    assert limit.now == 4, "fewer than there may be were too many"
    now[0] += rooms.RECOVERY_SECONDS - 1
    limit.recover()
    assert limit.now == 4
    for expected in (8, 16, 20, 20):
        now[0] += rooms.RECOVERY_SECONDS
        limit.recover()
        limit.recover()
        assert limit.now == expected
    for _ in range(9):
        limit.shrink(1)
    assert limit.now == 1


def test_the_limit_recovers_while_it_serves(engines, scheduler, failing, monkeypatch):
    """A request after the while sees all rows again."""
    engine = engines()
    (state,) = engine.start([SAMPLES[0]])
    failing["step"].append(out_of_memory())
    engine.extend([ask(state)])
    assert scheduler.load.row_limit == 1
    monkeypatch.setattr(rooms, "RECOVERY_SECONDS", 0.0)
    engine.extend([ask(state, "abc", 20, 1.0)])
    assert scheduler.load.row_limit == 8


def test_one_prompt_that_does_not_fit_shrinks_nothing(engines, scheduler, failing):
    """It fails alone, however often; the batch stays as large, and the engine healthy."""
    failing["read"] += [out_of_memory() for _ in range(4)]
    for _ in range(4):
        with pytest.raises(torch.OutOfMemoryError):
            engines().start([SAMPLES[0]])
    assert scheduler.load.row_limit == 8 and scheduler.is_healthy
    assert engines().start([SAMPLES[0]])


def test_an_error_in_leaving_is_its_batch_alone(engines, scheduler, failing, slow):
    """Rows that leave may take memory: who decodes with them begins again, the engine goes on."""
    gone, kept = engines(), engines()
    states = [engine.start([SAMPLES[0]])[0] for engine in (gone, kept)]
    with ThreadPoolExecutor(2) as pool:
        leaving = pool.submit(gone.extend, [ask(states[0], "abc", 400, 1.0)])
        staying = pool.submit(kept.extend, [ask(states[1], tokens=30)])
        wait_for(lambda: scheduler.load.rows == 4)
        failing["drop"].append(out_of_memory())
        gone.ticket.cancel()
        scheduler.wake()
        assert staying.result(timeout=10)[0][0].tokens == 30
        with pytest.raises(Exception, match=""):
            leaving.result(timeout=5)
    assert scheduler.is_healthy and scheduler.load.row_limit == 1


def test_a_listener_that_fails_is_its_request_alone(engines, scheduler, slow):
    """A loop that is closed, a tokenizer that stumbles: others are answered."""

    def stumble(cot_format, text):
        raise RuntimeError("closed")

    told, other = engines(on_text=stumble), engines()
    states = [engine.start([SAMPLES[0]])[0] for engine in (told, other)]
    with ThreadPoolExecutor(2) as pool:
        staying = pool.submit(other.extend, [ask(states[1], tokens=20)])
        with pytest.raises(RuntimeError, match="closed"):
            told.extend([ask(states[0], "x", 300, 1.0)])
        assert staying.result(timeout=10)[0][0].tokens == 20
    wait_for(lambda: scheduler.load.rows == 0)
    assert scheduler.is_healthy


def test_a_lost_accelerator_is_told_at_once(engines, scheduler, failing):
    """Nothing will be computed any more: who waits is told, and `/health` says so, be it a reading or a step."""
    engine = engines()
    failing["read"].append(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(torch.AcceleratorError):
        engine.start([SAMPLES[0]])
    wait_for(lambda: not scheduler.is_healthy)
    with pytest.raises(RuntimeError):
        engine.start([SAMPLES[1]])


def test_so_is_one_that_is_lost_in_a_step(engines, scheduler, failing):
    """Its rows fail, and prompts that wait."""
    engine = engines()
    (state,) = engine.start([SAMPLES[0]])
    failing["step"].append(RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="assert"):
        engine.extend([ask(state)])
    wait_for(lambda: not scheduler.is_healthy)


def test_readings_that_fail_again_and_again_are_told(engines, scheduler, failing):
    """Also between good steps; a prompt that is wrong says nothing of the engine, and one that is read ends the count."""
    from lora_cot.errors import DataError

    engine = engines()
    (state,) = engine.start([SAMPLES[0]])

    def fail(error):
        failing["read"].append(error)
        with pytest.raises(type(error)):
            engine.start([SAMPLES[0]])
        engine.extend([ask(state, tokens=2)])

    for error in [RuntimeError("odd"), RuntimeError("odd"), *[DataError("wrong")] * 4]:
        fail(error)
    assert scheduler.is_healthy
    engine.start([SAMPLES[0]])
    for _ in range(3):
        assert scheduler.is_healthy
        fail(RuntimeError("odd"))
    assert not scheduler.is_healthy


def test_what_goes_well_in_one_adapter_says_nothing_of_another(local, scheduler):
    """Three failures of one, with the other's good steps between them, are three in a row."""
    from lora_cot.serving.faults import Faults

    faults = Faults()
    for _ in range(3):
        assert not faults.are_many
        faults.tell("one", "step", RuntimeError())
        faults.tell("other", "step", None)
    assert faults.are_many
    faults.tell("one", "step", None)
    assert not faults.are_many


def test_time_ends_what_waits_for_a_row(engines, scheduler, slow):
    """Candidates without a row end as they are at their deadline, those who decode as they always did."""
    first, late = engines(), engines()
    states = [engine.start([SAMPLES[0]])[0] for engine in (first, late)]
    scheduler.limit.shrink(1)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(first.extend, [ask(states[0], tokens=400)])
        wait_for(lambda: scheduler.load.rows == 1)
        begin = time.monotonic()
        (found,) = late.extend([ask(states[1], "ab", 400, 1.0, deadline=begin + 0.1)])
        assert 0.1 <= time.monotonic() - begin < 1.0 and not running.done()
        first.ticket.cancel()
    assert [(c.ended, c.tokens, c.text, c.state) for c in found] == [("deadline", 0, "", states[1])] * 2


def test_time_ends_what_waits_to_be_read(engines, scheduler, local, monkeypatch):
    """A prompt has no state then, and is continued by nothing; of options nothing is known."""
    gate = threading.Event()
    monkeypatch.setattr(local, "read", lambda parts: gate.wait(5) and type(local).read(local, parts))
    other, late, judge = engines(), engines(deadline=time.monotonic() + 0.05), engines(deadline=time.monotonic() + 0.05)
    with ThreadPoolExecutor(3) as pool:
        blocked = pool.submit(other.start, [SAMPLES[1]])
        time.sleep(0.02)
        calls = [pool.submit(late.start, [SAMPLES[0]] * 2), pool.submit(judge.plain().choose, [SAMPLES[0]], ("1", "2"))]
        time.sleep(0.1)
        gate.set()
        states, odds = (call.result(timeout=5) for call in calls)
        assert blocked.result(timeout=5)
    assert states == [None, None] and len(odds[0]) == 2 and all(value != value for value in odds[0])
    (found,) = late.extend([ask(None, "ab", deadline=time.monotonic())])
    assert [(c.ended, c.state) for c in found] == [("deadline", None)] * 2


@pytest.mark.parametrize("end", ["cancel", "fault", "memory"])
def test_what_rows_held_is_given_back_at_once(engines, scheduler, failing, slow, end):
    """However they go, and not when a collector finds them."""
    gc.collect()
    gc.disable()
    before = bytes_at_rest()
    try:
        engine = engines()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(lambda: engine.extend([ask(engine.start([SAMPLES[0]])[0], "ab", 400, 1.0)]))
            wait_for(lambda: scheduler.load.rows == 2)
            if end == "cancel":
                engine.ticket.cancel()
            else:
                failing["step"] += [RuntimeError("odd")] if end == "fault" else [out_of_memory(), out_of_memory()]
            assert running.exception(timeout=10) is not None
        del running
        wait_for(lambda: bytes_at_rest() <= before and not scheduler.load.row_bytes, 1.0)
    finally:
        gc.enable()


def test_an_answer_whose_time_is_over_ends_as_it_is(serve, scheduler, monkeypatch):
    """Though its prompt was never read: it is told why, and nothing fails. Time runs from its arrival."""
    end = scheduler._end_some
    monkeypatch.setattr(scheduler, "_end_some", lambda: (scheduler._readings and time.sleep(0.15), end()))
    for strategy in ("greedy", "stage_beam", "adaptive"):
        search = {"strategy": strategy, "deadline_s": 0.1}
        response = serve().post("/v1/chat/completions", json=chat(search=search))
        body = response.json()
        assert response.status_code == 200 and body["choices"][0]["finish_reason"] == "length"
        assert "out of time" in body["usage"]["search"]["stopped"] and body["usage"]["search"]["generated_tokens"] == 0


def test_the_memory_is_told(serve, engines, scheduler, slow):
    """Of rows while they decode, of what is at rest as long as it is held, and how many rows there may be."""
    client, engine = serve(), engines()

    def told(name):
        (line,) = (line for line in client.get("/metrics").text.splitlines() if line.startswith(f"lora_cot_{name}"))
        return float(line.split()[-1])

    (state,) = engine.start([SAMPLES[0]])
    assert told('kv_bytes{kind="rows"}') == 0 and told('kv_bytes{kind="rest"}') >= state.root.kv.bytes
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.extend, [ask(state, "ab", 100, 1.0)])
        wait_for(lambda: scheduler.load.row_bytes)
        assert told('kv_bytes{kind="rows"}') >= 2 * state.root.kv.bytes
        running.result(timeout=10)
    assert told("row_limit") == 8
