"""What a request may cost is known before it is let in, and nothing costs more."""

from functools import partial

import pytest

from lora_cot.engines.interleave import Interleave
from lora_cot.engines.local import LocalEngine
from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import SearchSection
from lora_cot.search import published
from lora_cot.search.cost import most_tokens
from lora_cot.search.drive import drive
from lora_cot.search.run import prepare, run
from lora_cot.search.selectors import at_random
from lora_cot.serving.engine import ScheduledEngine
from lora_cot.serving.local import served_local
from lora_cot.serving.tickets import Ticket
from lora_cot.types import Exchange, Sample
from tests.serving.test_pressure import SAMPLES

FOUR, TWO = FORMATS["four_stage"], FORMATS["two_stage"]
SHORT = {"stages": {stage.name: {"max_new_tokens": 9} for stage in (*FOUR.stages, *TWO.stages)}}
WIDE = {"max_new_tokens": 20, "candidates": 7}
RETRACING = {"strategy": "swires", "swires": {"cutoff": 1e9, "retraces": 2, "keep": 2}}
SEARCHES = {
    "greedy": {},
    "sample": {},
    "majority": {},
    "best_of_n": {},
    "adaptive": {},
    "stage_beam": {},
    "two beams": {"strategy": "stage_beam", "keep": 2},
    "a wide stage": {
        "strategy": "stage_beam",
        "stages": {**SHORT["stages"], "CAPTION": {"max_new_tokens": 30, "candidates": 7}},
    },
    "sentence_beam": {"max_search_tokens": 150},
    "two sentences": {"strategy": "sentence_beam", "keep": 2, "max_search_tokens": 150},
    "a small budget": {"strategy": "stage_beam", "max_search_tokens": 40},
    "swires": RETRACING,
    "released swires": {**RETRACING, "faithful": True},
}
JUDGES = {"likelihood": {}, "judge": {"scorer": "self_judge"}, "released": {"scorer": "self_judge", "faithful": True}}


AROUND = 1
"""Tokens of a mark beside the patches of a look, of LLaVA: there is none before them."""


class Meter:
    """Tokens that searches read and write, as the engine's thread sees them."""

    def __init__(self, scheduler, monkeypatch):
        self.read = self.drawn = self.shown = self.looks = 0
        whole = {name: getattr(scheduler, name) for name in ("read", "weigh", "extend")}

        def reading(name):
            def read(ticket, engine, prompts, *options):
                self.read += sum(prompts.lengths)
                return whole[name](ticket, engine, prompts, *options)

            return read

        def extend(*args):
            found = whole["extend"](*args)
            self.drawn += sum(candidate.tokens for mine in found for candidate in mine)
            looks = [look for mine in found for candidate in mine for look in candidate.looks]
            self.looks += len(looks)
            self.shown += sum(len(look.patches) + AROUND for look in looks)
            return found

        for name, meter in (("read", reading("read")), ("weigh", reading("weigh")), ("extend", extend)):
            monkeypatch.setattr(scheduler, name, meter)


def spend(local, scheduler, monkeypatch, cot_format, settings, sample):
    """A bound, what it was in truth, and the search's end."""
    engine = LocalEngine(local.backbone, cot_format)
    model = served_local("x", engine, cot_format, SearchSection(), scheduler, None)
    ticket, config = Ticket(), SearchSection.model_validate({**SHORT, "candidates": 4, "temperature": 1.0, **settings})
    asking: ScheduledEngine = model.engine(ticket).for_search()
    passes = prepare(asking, cot_format, config)
    monkeypatch.setattr(published, "MAX_NEW_TOKENS", 12)
    bound = most_tokens(passes, sample, config, model.count)
    ticket.most_judged = bound.judged
    meter = Meter(scheduler, monkeypatch)
    (found,) = drive([run(passes, cot_format, sample, config, lambda step: None)])
    meter.judged = ticket.spent.judge_prompt_tokens
    meter.prompts = meter.read - meter.judged
    assert meter.looks == ticket.spent.looks and meter.shown == ticket.spent.shown_tokens
    assert meter.drawn == ticket.spent.generated_tokens + ticket.spent.judge_tokens
    return bound, meter, found


UNJUDGED = ("greedy", "sample", "swires", "released swires")
CASES = [(name, judge) for name in SEARCHES for judge in JUDGES if judge == "likelihood" or name not in UNJUDGED]


@pytest.mark.parametrize(("name", "judge"), CASES)
def test_no_search_spends_more_than_its_bound(local, scheduler, monkeypatch, name, judge):
    """Prompts, candidates and judges, each for itself; all comparisons are judged."""
    settings = {"strategy": name, **SEARCHES[name], **JUDGES[judge]}
    bound, meter, found = spend(local, scheduler, monkeypatch, FOUR, settings, SAMPLES[0])
    assert 0 < meter.prompts <= bound.prompts and 0 < meter.drawn <= bound.drawn and meter.judged <= bound.judged
    assert bound.tokens == bound.prompts + bound.drawn + bound.judged
    if settings["strategy"] in ("greedy", "sample"):
        assert meter.prompts == bound.prompts and bound.judged == 0 and bound.drawn == 4 * 9
    if judge == "judge" and settings["strategy"] == "best_of_n":
        assert meter.judged > meter.prompts and found.judge_failures == 0


@pytest.mark.parametrize(
    "how",
    [
        {"n": 2, "cap": None},
        *(pytest.param(how, marks=pytest.mark.slow) for how in ({"n": 1}, {"n": 3, "cap": 1, "every": 2})),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", SEARCHES)
def test_what_is_shown_again_is_counted(local, scheduler, monkeypatch, name, how):
    """Patches and their marks, as often as texts may look; without an image, or a look, nothing."""
    search = {"strategy": name, **SEARCHES[name], "interleave": {"signal": "a", "selector": "random", **how}}
    bound, meter, _ = spend(local, scheduler, monkeypatch, FOUR, search, SAMPLES[0])
    assert bound.tokens == bound.prompts + bound.drawn + bound.judged + bound.shown
    assert meter.shown <= bound.shown and bound.shown > 0
    if name in ("greedy", "sample"):  # four patches, and letters of the prompt which are taken for some
        assert bound.shown == {1: 3 * (1 + AROUND), 2: meter.prompts * (1 + AROUND), 3: 3 + AROUND}[how["n"]]
    blind = spend(local, scheduler, monkeypatch, FOUR, search, SAMPLES[1])[0]
    assert blind.shown == 0


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("name", ["two_pass", "best_of_n"])
def test_so_does_none_of_a_split_format(local, scheduler, monkeypatch, name, judge):
    """The second prompt has the first pass's text in it."""
    backbone, sample = local.backbone, SAMPLES[0]
    monkeypatch.setattr(type(backbone), "for_pass", lambda self, name: self)
    bound, meter, _ = spend(local, scheduler, monkeypatch, TWO, {"strategy": name, **JUDGES[judge]}, sample)
    assert 0 < meter.prompts <= bound.prompts and 0 < meter.drawn <= bound.drawn and meter.judged <= bound.judged


def test_a_judge_reads_no_more_than_its_allowance(local, scheduler, engines):
    """What is beyond it has no verdict, by odds or in words; likelihood decides."""
    engine = engines(most_judged=100).plain()
    prompt = engine.count([SAMPLES[0]])[0]
    fits = 100 // prompt
    assert fits
    rows = [engine.choose([SAMPLES[0]], ("1", "2"))[0][0] for _ in range(fits + 1)]
    assert [row == row for row in rows] == [True] * fits + [False]
    assert engine.ticket.spent.judge_prompt_tokens == fits * prompt and engine.ticket.spent.judge_calls == fits
    assert engine.start([SAMPLES[0]]) == [None] and engines().plain().start([SAMPLES[0]])[0] is not None
    settings = {"strategy": "best_of_n", "candidates": 3, "scorer": "self_judge"}
    for faithful in (False, True):
        asking, config = engines(most_judged=0), SearchSection.model_validate({**SHORT, **settings, "faithful": faithful})
        passes = prepare(asking, FOUR, config)
        (found,) = drive([run(passes, FOUR, SAMPLES[0], config, lambda step: None)])
        assert found.judge_failures == 2 and found.text and asking.ticket.spent.judge_prompt_tokens == 0


def test_the_server_takes_as_much(serve, monkeypatch):
    """`n` times the bound, judges included, and no request spends more."""
    client, taken = serve(), []
    take = client.service.admission.take
    monkeypatch.setattr(client.service.admission, "take", lambda tokens: (taken.append(tokens), take(tokens)))
    from tests.serving.conftest import chat

    for n in (1, 3):
        for search in ({"strategy": "greedy"}, {"strategy": "stage_beam", "candidates": 3, "scorer": "pairwise"}):
            usage = client.post("/v1/chat/completions", json=chat(n=n, search=search)).json()["usage"]
            spent = usage["search"]
            truth = (
                n * usage["prompt_tokens"] + spent["generated_tokens"] + spent["judge_tokens"] + spent["judge_prompt_tokens"]
            )
            assert truth <= taken[-1]
    assert taken[2] == 3 * taken[0] and taken[3] == 3 * taken[1] and taken[1] > 4 * taken[0]


def test_a_sentence_beam_has_a_budget_of_its_own(local, scheduler):
    """Nothing else bounds candidates that are drawn and not chosen; what was asked for is kept."""
    from lora_cot.serving.settings import within

    model = served_local("x", local, FOUR, SearchSection(), scheduler, None)
    config = SearchSection.model_validate({**SHORT, "strategy": "sentence_beam", "candidates": 3})
    assert within(model, config, 10, None).max_search_tokens == 4 * 3 * 36
    assert within(model, config, 10, 20).max_search_tokens == 4 * 3 * 20
    asked = config.model_copy(update={"max_search_tokens": 7})
    assert within(model, asked, 10, None).max_search_tokens == 7
    assert within(model, config.model_copy(update={"strategy": "stage_beam"}), 10, None).max_search_tokens is None


def test_an_answer_leaves_room_for_what_it_is_shown(local, scheduler):
    """As long as fits with its looks, to the token; what does not even so is refused."""
    from lora_cot.serving.errors import ApiError
    from lora_cot.serving.settings import within

    look = Interleave("x", at_random, n=2, cap=3, around=1)
    config = SearchSection.model_validate(SHORT)
    shown = partial(look.most_shown, 10)
    assert [shown(drawn) for drawn in (0, 1, 2, 99)] == [0, 3, 6, 9]
    assert look.most_shown(3, 9) == 3 + 3 and look.most_shown(3, 2) == 3 + 2
    for context, allowed in ((100 + 36 + 9, 36), (100 + 36 + 8, 35), (100 + 5 + 9, 5), (100 + 4 + 9, 4)):
        model = served_local("x", local, FOUR, SearchSection(), scheduler, context)
        found = within(model, config, 100, None, shown)
        assert sum(found.stages[stage.name].max_new_tokens for stage in FOUR.stages) == allowed
    model = served_local("x", local, FOUR, SearchSection(), scheduler, 100 + 1 + 3)
    assert within(model, config, 100, 1, shown).max_search_tokens == 1
    for most in (2, 1):
        model = served_local("x", local, FOUR, SearchSection(), scheduler, 100 + most + shown(most) - 1)
        with pytest.raises(ApiError, match=f"shown again in {shown(most)}, and {most} more"):
            within(model, config, 100, most, shown)


def test_a_request_whose_looks_do_not_fit_is_refused(serve, local):
    """The prompt alone would."""
    from tests.serving.conftest import chat, data_uri

    body = chat(image=data_uri(), search={"strategy": "greedy"}, max_completion_tokens=4)
    prompt = serve().post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
    for how, status in ((None, 200), ({"n": 1, "signal": "a", "cap": 3}, 400)):
        response = serve(search={"interleave": how}, context=prompt + 4).post("/v1/chat/completions", json=body)
        assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == "context_length_exceeded"
    done = serve(search={"interleave": {"n": 1, "selector": "random"}}).post("/v1/chat/completions", json=body)
    assert {"looks", "shown_tokens"} <= {*done.json()["usage"]["search"]}
    assert serve(search={"interleave": how}, context=prompt + 4 + 6).post("/v1/chat/completions", json=body).status_code == 200


def test_a_prompt_for_another_server_counts_as_its_bytes():
    """Images too: its tokenizer is not here."""
    from types import SimpleNamespace

    from lora_cot.serving.remote import IMAGE_TOKENS, TURN_TOKENS, _most

    engine = SimpleNamespace(remote=SimpleNamespace(cot_format=FOUR))
    one = Sample("a", (Exchange("ä" * 50),), (b"x", b"y"), ("red", "blue"))
    more = Sample("a", (Exchange("b" * 30, answer="c" * 20), *one.exchanges))
    assert _most(engine, one) >= 100 + len("redblue") + 2 * IMAGE_TOKENS + TURN_TOKENS
    assert _most(engine, more) == 50 + 100 + 2 * TURN_TOKENS
