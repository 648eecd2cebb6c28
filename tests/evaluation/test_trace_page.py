"""The page of a search: every candidate once, the chosen path marked, lines that join, nothing from outside."""

import functools
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image as PILImage

from lora_cot.checkpoints.opening import open_model
from lora_cot.data.shapes import make_sample
from lora_cot.engines.interleave import Patch, Shown
from lora_cot.evaluation.ask import ask
from lora_cot.evaluation.trace_page import WIDTH, rows, trace_page
from lora_cot.formats import FORMATS
from lora_cot.pages import image_uri
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.trace import Comparison, Completion, TracedCandidate, TracedStage
from tests.browser import PROGRAM, Browser
from tests.evaluation.searches import QUESTION, SEARCHES, search

VOID = {"meta", "img", "rect", "path", "br", "hr", "input", "link"}
each_strategy = pytest.mark.parametrize("strategy", SEARCHES)


class Page(HTMLParser):
    """Elements with a class, by it: their attributes and their text; all tags must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.found, self._open, self.tags, self.text = {}, [], [], ""
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.tags.append(element)
        for name in element.get("class", "").split():
            self.found.setdefault(name, []).append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        self.text += data
        for element in self._open:
            element["text"] += data


@functools.cache
def drawn(strategy):
    completion, config = search(strategy)
    return completion, trace_page(QUESTION, ["data:image/png;base64,AA"], completion, config)


def page_of(*steps, text="", **config):
    return trace_page(
        "?", [], Completion("q", text, FORMATS["four_stage"].parse(text), trace=list(steps)), SearchSection(**config)
    )


def candidate(number=0, **keys):
    given = {"text": f"text {number}", "tokens": 3, "score": -1.0, "mean_logprob": -1.0, "closed": True, "chosen": False}
    return TracedCandidate(**given | {"number": number} | keys)


@each_strategy
def test_every_candidate_is_there_once(strategy):
    """Its text, under its number, dimmed unless it is chosen or went on; the rest is told in words too."""
    completion, text = drawn(strategy)
    page = Page(text)
    nodes = {node["id"]: node for node in page.found["node"]}
    assert len(nodes) == len(page.found["node"]) == sum(len(step.candidates) for step in completion.trace)
    for step in completion.trace:
        for one in step.candidates:
            node = nodes[f"candidate-{one.number}"]
            assert node["tag"] == "details" and node["text"].split()[0] == f"#{one.number}"
            assert node["class"] == f"node {'chosen' if one.chosen else 'kept' if one.kept else 'lost'}"
            assert ("✓ chosen" in node["text"]) == one.chosen and f"{one.tokens} token" in node["text"]
            is_early = not one.closed and one.ended in ("stop", "sentence", "end")
            assert ("but not where it was meant to" in node["text"]) == is_early
            wanted = "from the question" if one.parent is None else f"goes on from #{one.parent}"
            assert wanted in node["text"]
    texts = sorted(element["text"] for element in page.found["text"])
    assert texts == sorted(one.text.strip() or "no text" for step in completion.trace for one in step.candidates)


@each_strategy
def test_every_candidate_hangs_on_what_it_goes_on_from(strategy):
    """One line into each; one that passes other steps runs along the margin."""
    completion, _ = search(strategy)
    found = rows(completion.trace)
    where = {
        card.candidate.number: (place, (k + 0.5) / len(row.cards) * WIDTH)
        for place, row in enumerate(found)
        for k, card in enumerate(row.cards)
    }
    passed = set()
    for place, row in enumerate(found):
        for card in row.cards:
            above, start = where.get(card.candidate.parent, (-1, WIDTH / 2))
            _, end = where[card.candidate.number]
            if above == place - 1:
                assert [line.rank for line in row.lines if (line.start, line.end) == (start, end)] == [card.rank]
            else:
                assert any((line.start, line.end, line.rank) == (None, end, card.rank) for line in row.lines)
                assert any((line.start, line.end, line.rank) == (start, None, card.rank) for line in found[above + 1].lines)
                passed.update(range(above + 1, place))
        assert sum(line.rank == "chosen" for line in row.lines if line.end is not None) == sum(
            card.rank == "chosen" for card in row.cards
        )
    assert [row.passing is not None for row in found] == [place in passed for place in range(len(found))]


@each_strategy
def test_what_it_cost_and_how_it_was_asked(strategy):
    """By step and in all."""
    completion, text = drawn(strategy)
    page = Page(text)
    cost, settings = page.found["facts"]
    assert f"{completion.generated_tokens} tokens generated, {completion.kept_tokens} kept" in cost["text"]
    assert f"{completion.judge_calls} judge prompt" in cost["text"] and f"strategy: {strategy}" in settings["text"]
    numbers = [int(element["text"]) for element in page.found["number"] if element["text"].isdigit()]
    tokens = [sum(c.tokens for c in step.candidates) for step in completion.trace]
    kept = [sum(c.tokens for c in step.candidates if c.chosen) for step in completion.trace]
    counts = [len(step.candidates) for step in completion.trace]
    prompts = [step.judge_prompts for step in completion.trace]
    assert numbers == [number for row in zip(counts, tokens, kept, prompts, strict=True) for number in row]
    assert f"Answer: {completion.parsed.answer}" in page.text


@each_strategy
def test_nothing_is_run_or_fetched(strategy):
    """What a model or a user wrote is text; images, styles and graphics are inside."""
    page = Page(drawn(strategy)[1])
    assert not {"script", "link", "iframe", "object", "base", "i", "blue"} & {element["tag"] for element in page.tags}
    assert QUESTION in page.text
    addresses = [element[key] for element in page.tags for key in ("src", "href", "xlink:href", "srcset") if key in element]
    assert addresses[0] == "data:image/png;base64,AA" and {one.removeprefix("#") for one in addresses[1:]} == {
        element["id"] for element in page.found.get("judge", [])
    }
    assert not re.search(r"https?:|@import|url\(", drawn(strategy)[1])
    assert not [key for element in page.tags for key in element if key.startswith("on")]


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", "</pre></details><img src=x onerror=alert(1)>", '"><b id="x">', "&lt;"]
)
def test_everything_that_others_wrote_is_escaped(evil):
    """Candidates, votes, what a judge said, why one failed, the question, settings and stages."""
    one = candidate(text=evil, answer=evil, problem=evil, ended="failed", closed=False)
    step = TracedStage(evil, (one, candidate(1)), (Comparison(0, 1, None, False, 0, said=evil),))
    completion = Completion("q", evil, FORMATS["four_stage"].parse(f"<CONCLUSION>{evil}</CONCLUSION>"), evil, [step])
    page = Page(trace_page(evil, [], completion, SearchSection(stages={evil: {"keep": 2}})))
    assert page.text.count(evil) == 13
    assert not [element for element in page.tags if element["tag"] in ("script", "img") or element.get("id") == "x"]


def test_votes_stand_together():
    """The winner's answer first, those without a vote last, each with its count."""
    completion, text = drawn("majority")
    (row,) = rows(completion.trace)
    assert [group.answer for group in row.groups] == ["2.0", "3.0", None] and row.is_vote
    groups = Page(text).found["vote"]
    votes = [element["text"] for element in groups]
    assert [element["class"] for element in groups] == ["vote chosen", "vote", "vote"]
    assert votes == ["2.0: 4 votes", "3.0: 1 vote", "no vote"]
    assert len(rows(search("best_of_n")[0].trace)[0].groups) == 1


@pytest.mark.parametrize(("chosen", "order"), [(3, ["c", "b", "a", None]), (None, ["b", "a", "c", None])])
def test_the_winner_of_a_vote_stands_first(chosen, order):
    """Even with fewer votes than another, if they weigh more; then as many votes as there are."""
    answers = [None, "a", "b", "c", "b"]
    step = TracedStage(None, tuple(candidate(n, answer=a, chosen=n == chosen) for n, a in enumerate(answers)))
    assert [group.answer for group in rows([step])[0].groups] == order


def test_rounds_are_told():
    """How often adaptive asked again."""
    step = TracedStage(None, (candidate(), candidate(1)), rounds=3)
    assert "2 candidates in 3 rounds" in page_of(step) and "rounds" not in page_of(replace(step, rounds=1))


@pytest.mark.parametrize(
    ("keys", "first", "table"),
    [
        ({"margin": 0.7}, "won against #7 by 0.70 log-odds", "the same in both orders"),
        ({"margin": 0.1, "flipped": True}, "the verdict changed with the order", "changed with the order"),
        ({"margin": None, "failed": True}, "the verdict could not be read", "not readable: the likelier text won"),
        ({"margin": None, "said": "Response 1"}, "won against #7", "asked once"),
    ],
)
def test_verdicts_stand_at_the_candidates_and_in_a_table(keys, first, table):
    """With margins, and why one decided nothing."""
    comparison = Comparison(0, 1, keys.pop("margin"), keys.pop("flipped", False), 0, **keys)
    step = TracedStage("SUMMARY", (candidate(3, chosen=True), candidate(7), candidate(8)), (comparison,), "wins", 2)
    page = Page(page_of(step))
    one, other, third = page.found["node"]
    assert not re.search(r"won against|lost to", third["text"])
    assert first in one["text"] and "lost to #3" in other["text"]
    judged = page.found["judge"][0]["text"]
    assert "SUMMARY" in judged and "#3 and #7" in judged and table in judged and keys.get("said", "") in judged
    assert ("+0.70" in judged) == (comparison.margin == 0.7)


@pytest.mark.parametrize("count", [0, 2])
def test_a_step_tells_what_its_judge_could_not(count):
    """Verdicts that changed with the order, judgements that failed or were spared; nothing of none; in all too."""
    comparisons = (Comparison(0, 1, 0.1, bool(count), 0),) * 2
    step = TracedStage("A", (candidate(), candidate(1)), comparisons, "wins", 4, skipped=count, failures=count)
    page = Page(page_of(step))
    label, cost = page.found["label"][0]["text"], page.found["facts"][0]["text"]
    for words in ("2 changed with the order", "2 judgements spared", "2 judgements failed: likelihood decided"):
        assert (words in label) == bool(count)
    assert ("2 verdicts changed with the order" in cost) == ("2 judgements failed" in cost) == bool(count)


def test_a_margin_is_told_as_a_distance():
    """Whichever of the two it is for."""
    step = TracedStage("A", (candidate(3), candidate(7, chosen=True)), (Comparison(0, 1, -0.7, False, 1),), "wins", 2)
    one, other = Page(page_of(step)).found["node"]
    assert "lost to #7 by 0.70 log-odds" in one["text"] and "won against #3 by 0.70 log-odds" in other["text"]


@pytest.mark.parametrize(
    ("unit", "score", "shown"),
    [
        ("wins", 1.0, "1 win"),
        ("wins", 2.0, "2 wins"),
        ("logprob", -0.2544, "-0.254 nats"),
        ("logprob", -0.00063, "-0.00063 nats"),
        ("logprob", math.nan, "likelihood unknown"),
        ("reward", 0.12345, "0.123 reward"),
        ("reward", None, "not in the contest"),
    ],
)
def test_a_score_has_its_unit(unit, score, shown):
    ((card,),) = [row.cards for row in rows([TracedStage("A", (candidate(score=score),), scored_by=unit)])]
    assert card.score == shown


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ({"score": None}, "not in the contest"),
        ({"score": math.nan, "mean_logprob": math.nan}, "its likelihood is unknown"),
        ({"ended": "length", "closed": False}, "cut at its tokens"),
        ({"ended": "deadline", "closed": False}, "cut by the deadline"),
        ({"ended": "failed", "closed": False, "problem": "no route"}, "failed: no route"),
        ({"ended": "end", "closed": False}, "ended, but not where it was meant to"),
        ({"text": " \n"}, "no text"),
    ],
)
def test_a_candidate_that_came_to_nothing_says_why(keys, shown):
    assert shown in Page(page_of(TracedStage("CAPTION", (candidate(**keys),)))).found["node"][0]["text"]


@pytest.mark.parametrize(
    ("unit", "scores", "bars"),
    [
        ("logprob", [0.0, -math.log(2), None, math.nan], [100, 50, None, None]),
        ("wins", [2.0, 1.0, 0.0], [100, 50, 0]),
        ("reward", [3.0, -1.0, 1.0], [100, 0, 50]),
        ("wins", [0.0, 0.0], [None, None]),
    ],
)
def test_scores_are_lengths(unit, scores, bars):
    """A token's mean probability as it is; others between the least, or zero, and the best, if they differ."""
    (row,) = rows([TracedStage("A", tuple(candidate(n, score=score) for n, score in enumerate(scores)), scored_by=unit)])
    assert [card.bar and round(card.bar, 6) for card in row.cards] == bars


def test_how_it_ended_is_told():
    """Early, with a text that is not as the format wants it, or before anything was drawn."""
    page = page_of(text="<SUMMARY> s")
    assert "Nothing was drawn." in page and "&lt;/SUMMARY&gt; is missing" in page and "Stopped early" not in page
    completion = Completion("q", "", FORMATS["four_stage"].parse(""), "out of time", [])
    assert "Stopped early: out of time" in trace_page("?", [], completion, SearchSection())


def test_only_settings_that_matter_are_listed():
    """Greedy decoding draws nothing at random; what was changed is always there."""
    assert not re.search("temperature:|candidates:|scorer:", page_of(strategy="greedy"))
    assert "temperature: 0.6" in page_of(strategy="sample") and "candidates:" not in page_of(strategy="sample")
    page = page_of(strategy="stage_beam", stages={"CAPTION": {"keep": 2}}, max_search_tokens=9)
    assert (
        page.count("strategy: ") == 1
        and "candidates: 4" in page
        and "stages.CAPTION.keep: 2" in page
        and "max_search_tokens: 9" in page
    )


def shown(place, *cells, weights=None, image=0, grid=(2, 4)):
    return Shown(place, tuple(Patch(image, *cell) for cell in cells), weights, (grid,) * (image + 1))


LOOKED = (
    candidate(text="First line.\nSecond", looks=(shown(12, (0, 0), (1, 3), weights=(0.25, 0.012)),), chosen=True),
    candidate(1, text="lost", looks=(shown(0, (0, 1)),)),
)
MORE = (candidate(2, parent=0, text=" goes on.\nEnd", looks=(shown(0, (1, 1)), shown(10, (0, 3), image=1)), chosen=True),)


def looked(**keys):
    steps = [TracedStage("A", LOOKED), TracedStage("B", MORE)]
    completion = Completion("q", "", FORMATS["four_stage"].parse(""), trace=steps)
    return trace_page("?", ["data:one", "data:two"], completion, SearchSection(interleave={"n": 2}), **keys)


def test_what_was_shown_again_stands_after_its_line():
    """Of the returned text alone: each stretch with the patches on their image, in words and as a drawing."""
    page = Page(looked())
    (told,) = page.found["looks"]
    lines = [line.strip() for line in told["text"].splitlines() if line.strip() and not line.startswith("row")]
    assert lines == ["First line.", "Second", "goes on.", "End"]
    images = [element for element in page.tags if element["tag"] == "img"][2:]
    assert [element["alt"].removeprefix("Image ").replace(" of the attention", "") for element in images] == [
        "1, lit of its 2 rows and 4 columns: row 1, column 1 (25.0%); row 2, column 4 (1.2%)",
        "1, lit of its 2 rows and 4 columns: row 2, column 2",
        "2, lit of its 2 rows and 4 columns: row 1, column 4",
    ]
    assert [element["src"] for element in images] == ["data:one", "data:one", "data:two"]
    assert "M0.0000 0.0000h0.2500v0.5000h-0.2500ZM0.7500 0.5000h0.2500" in looked()
    assert "interleave: attention" in page.text and "interleave.n: 2" in page.text
    assert "looks" not in Page(page_of(TracedStage("A", (candidate(chosen=True),)))).found


def test_patches_lie_where_the_model_cut_the_image():
    """The middle of a wide one; many are counted, not told."""
    assert "M0.2500 0.0000h0.1250v0.5000" in looked(areas=[(0.25, 0.0, 0.75, 1.0)] * 2)
    many = candidate(text="a\n", looks=(shown(2, *[(row, column) for row in range(5) for column in range(4)], grid=(5, 4)),))
    step = TracedStage("A", (replace(many, chosen=True),))
    found = trace_page("?", ["data:x"], Completion("q", "", FORMATS["direct"].parse(""), trace=[step]), SearchSection())
    assert "row 4, column 4; and 4 more" in found


def test_a_question_is_asked_with_looks(tiny_base, tmp_path):
    """The released choices look at the prompt's end already; the page shows it."""
    (image := tmp_path / "image.png").write_bytes(make_sample(0, "test", 0).images[0])
    search = {"interleave": {"faithful": True}, "stages": {}}
    opened = open_model(str(tiny_base))
    search |= {f"stages.{stage.name}.max_new_tokens": 2 for stage in opened.recipe.format.build().stages}
    found = ask(opened, image, "What is it?", search, trace=tmp_path / "trace.html")
    (look,) = found.trace[0].candidates[0].looks
    assert (
        look.place == 0 and len(look.patches) == 4 and "before it wrote anything more" in (tmp_path / "trace.html").read_text()
    )
    ask(opened, image, "What is it?", search, trace=tmp_path / "trace.json")
    told = json.loads((tmp_path / "trace.json").read_text())["steps"][0]["candidates"][0]["looks"][0]
    assert (
        told["patches"][3] == {"image": 0, "row": 1, "column": 1} and len(told["weights"]) == 4 and told["grids"] == [[2, 2]]
    )


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")
def test_a_browser_draws_looks(tmp_path):
    """The drawing lies on its image, in a narrow window too; nothing is told on the console."""
    browser = Browser(tmp_path / "profile")
    try:
        for width, dark in ((360, True), (1200, False)):
            uri = image_uri(PILImage.new("RGB", (64, 48), "green"))
            file = tmp_path / "looks.html"
            file.write_text(looked().replace("data:one", uri).replace("data:two", uri))
            browser.look(width, 800, dark)
            browser.goto(file.as_uri())
            assert browser.js("document.documentElement.scrollWidth") <= width
            assert browser.js(APART) == [] and browser.js("document.querySelectorAll('.seen').length") == 3
        assert browser.errors == []
    finally:
        browser.close()


APART = """[...document.querySelectorAll(".seen")].filter((one) => {
  const [a, b] = [...one.children].map((child) => child.getBoundingClientRect());
  return Math.abs(a.left - b.left) + Math.abs(a.top - b.top) + Math.abs(a.width - b.width) + Math.abs(a.height - b.height) > 4;
}).map((one) => one.innerHTML)"""
"""Drawings that lie beside their images."""


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")
def test_a_browser_draws_it(tmp_path):
    """Its console is silent; lines end at their cards; a card unfolds by keyboard; only the tree scrolls sideways."""
    browser = Browser(tmp_path / "profile")
    try:
        for strategy in SEARCHES:
            file = tmp_path / f"{strategy}.html"
            file.write_text(drawn(strategy)[1])
            for width, dark in ((360, True), (1200, False)):
                browser.look(width, 800, dark)
                browser.goto(file.as_uri())
                assert browser.js("document.documentElement.scrollWidth") <= width
                assert browser.js(ENDS_APART) == []
            browser.js("document.querySelector('.node summary').focus()")
            browser.press("Enter")
            assert browser.js("document.querySelector('.node .more').checkVisibility()")
        assert browser.errors == []
    finally:
        browser.close()


ENDS_APART = """[...document.querySelectorAll(".step")].flatMap((step) => {
  const ends = [...step.querySelectorAll(".lines path")].map((path) => {
    const box = path.ownerSVGElement.getBoundingClientRect(), end = path.getPointAtLength(path.getTotalLength());
    return box.left + (end.x / 1000) * box.width;
  });
  return [...step.querySelectorAll(".cards > li:not(.vote)")].map((card) => card.getBoundingClientRect())
    .filter((box) => !ends.some((end) => Math.abs(end - (box.left + box.right) / 2) < 2)).map((box) => [box.left, ends]);
})"""
"""Cards that no line ends at."""
