"""The page in a real browser, against the real server with the tiny model; only the tokens that it draws are given."""

import socket
import threading
from types import SimpleNamespace

import pytest
import uvicorn

from lora_cot.engines import batch
from lora_cot.engines.batch import Batch
from lora_cot.engines.local import LocalEngine
from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import SearchSection
from lora_cot.serving.app import make_app
from lora_cot.serving.limits import Limits
from lora_cot.serving.local import served_local
from lora_cot.serving.scheduler import Scheduler
from lora_cot.serving.service import Service
from tests.browser import PROGRAM
from tests.serving.test_page_browser import DONE, ask, browser, choose, click, picture, put, shown  # noqa: F401  (fixtures)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")]
FOUR = FORMATS["four_stage"]
NAMES = [stage.name for stage in FOUR.stages]


@pytest.fixture
def page(local, monkeypatch):
    """The server's address; candidate number N of a stage reads "red N"."""
    scripts, add = {}, Batch.add

    def scripted(self, asked):
        job = add(self, asked)
        (name,) = [name for name in NAMES if f"</{name}>" in asked.stop]
        for row in job.rows:
            text = f"<{name}> red {row.number} </{name}>"
            scripts[row.draws] = iter(local.texts.tokenizer(text, add_special_tokens=False)["input_ids"])
        return job

    monkeypatch.setattr(Batch, "add", scripted)
    monkeypatch.setattr(batch, "draw", lambda _, __, rows: ([next(scripts[row]) for row in rows], [-0.1] * len(rows)))
    scheduler, limits = Scheduler(8), Limits()
    model = served_local("tiny", LocalEngine(local.backbone, FOUR), FOUR, SearchSection(), scheduler, 2048)
    service = Service([model], limits, scheduler)
    listening = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(make_app(service), log_config=None, access_log=False))
    thread = threading.Thread(target=lambda: running.run([listening]))
    thread.start()
    yield SimpleNamespace(address=f"http://127.0.0.1:{listening.getsockname()[1]}/")
    running.should_exit = True
    thread.join(10)
    service.close()


def test_the_real_server_answers_the_page(browser, page, picture):  # noqa: F811
    """An image, four stages as they are decided, their candidates and the judge's choices; then a second question."""
    browser.errors.clear()
    browser.goto(page.address)
    browser.wait("document.querySelector('#model').options.length")
    browser.js("localStorage.clear()")
    put(browser, "#strategy", "stage_beam")
    put(browser, "#candidates", "3")
    choose(browser, picture)
    browser.js(
        """(() => { globalThis.arrived = [];
          new MutationObserver(() => arrived.push(document.querySelectorAll(".stage").length))
            .observe(document.querySelector("#turns"), { childList: true, subtree: true }); })()"""
    )
    ask(browser, "How many?")
    assert shown(browser, ".stage > h3") == NAMES
    assert {1, 2, 3, 4} <= set(browser.js("arrived")), "one after the other"
    assert shown(browser, ".candidates > summary")[0].startswith("3 candidates, number ")
    assert browser.js("document.querySelector('.candidates li').checkVisibility()") is False
    click(browser, ".candidates summary")
    assert browser.js("document.querySelector('.candidates li').checkVisibility()") is True
    texts = shown(browser, ".stage:first-child .candidates ol li .text")
    assert [text.replace("<SUMMARY>", "").replace("</SUMMARY>", "").strip() for text in texts] == ["red 0", "red 1", "red 2"]
    last = "[...document.querySelectorAll('.stage:last-child .candidates ol li')]"
    chosen = browser.js(f"{last}.map((li) => li.className == 'chosen')")
    assert shown(browser, ".answer .text") == [f"red {chosen.index(True)}"] and chosen.count(True) == 1
    assert "kept of" in browser.text(".turn") and browser.text("#error") == ""
    ask(browser, "And now?", f"document.querySelectorAll('.turn').length == 2 && {DONE}")
    assert len(shown(browser, ".answer .text")) == 2 and browser.errors == []
