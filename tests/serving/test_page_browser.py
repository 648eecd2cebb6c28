"""The page in a real browser, against a server of canned answers."""

import json

import pytest
from PIL import Image

from tests.browser import PROGRAM, Browser
from tests.serving.fake import EVIL, Fake

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")]
DONE = "!document.querySelector('.working') && document.querySelector('#stop').hidden && document.querySelector('.turn')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("images") / "red.png"
    Image.new("RGB", (300, 200), "red").save(file)
    return file


@pytest.fixture
def serve(browser):
    """Makes a server and opens its page; whatever the console tells, but for what a test expects, is a failure."""
    made = []

    def make(key=None):
        made.append(Fake(key))
        browser.look()
        browser.goto(made[0].address)
        browser.wait("document.querySelector('#model').options.length || document.querySelector('#error').textContent")
        return made[0]

    browser.errors.clear()
    yield make
    made[0].release.set()
    made[0].shutdown()
    made[0].server_close()
    assert browser.errors == []


def ask(browser, question, done=DONE):
    browser.js(f"document.querySelector('#question').value = {json.dumps(question)}; document.querySelector('#ask').click()")
    browser.wait(done)


def choose(browser, picture):
    browser.choose("#file", picture)
    browser.wait("!document.querySelector('#picture').hidden && !document.querySelector('#hint').textContent")


def click(browser, selector):
    browser.js(f"document.querySelector({json.dumps(selector)}).click()")


def put(browser, selector, value):
    """A value, as if it had been chosen."""
    one = f"document.querySelector({json.dumps(selector)})"
    browser.js(f"{one}.value = {json.dumps(value)}; {one}.dispatchEvent(new Event('change'))")


def shown(browser, selector):
    """Texts of all such elements."""
    return browser.js(f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent)")


def test_stages_arrive_and_unfold(browser, serve, picture):
    """With all candidates, their scores, and what the judge said; the true cost beneath; all of it as text."""
    server = serve()
    choose(browser, picture)
    ask(browser, "How many?")
    assert shown(browser, ".turn h2") == ["How many?"] and shown(browser, ".answer .text") == ["2"]
    assert shown(browser, ".stage > h3") == ["SUMMARY", "CAPTION", "CONCLUSION"]
    assert shown(browser, ".stage > .text") == ["I will count.", "Two circles.", ""]
    assert shown(browser, ".candidates > summary") == ["4 candidates, number 2 chosen"] * 3
    assert browser.js("document.querySelector('.answer').checkVisibility()") is True
    assert browser.js("document.querySelector('.candidates li').checkVisibility()") is False
    click(browser, ".candidates summary")
    assert browser.js("document.querySelector('.candidates li').checkVisibility()") is True
    first = shown(browser, ".stage:first-child .candidates ol li")
    assert f"bad {EVIL}" in first[0] and "0 wins · 7 tokens · closed" in first[0]
    assert (
        "✓ chosen 2 wins" in first[1]
        and "not in the contest · 7 tokens · failed · no route" in first[3]
        and "no text" in first[3]
    )
    assert shown(browser, ".stage:first-child .verdicts li") == [
        "2 before 1 by 0.70 log-odds",
        "2 before 3, by likelihood: the verdict changed with the order",
        "2 before 4, by likelihood: the verdict could not be read",
    ]
    assert "20 tokens kept of 80 generated · stage_beam · 6 questions to the judge · 1 without a verdict" in browser.text(
        ".turn"
    )
    assert browser.js("document.querySelectorAll('.turn img, .turn script').length") == 0
    (asked,) = server.asked
    image, text = asked["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,") and text == {"type": "text", "text": "How many?"}
    assert asked["stream"] and asked["search"] == {"return": "trace"} and asked["model"] == "one"
    assert "reasoning_effort" not in asked and asked["stream_options"] == {"include_usage": True}


def test_an_answer_without_a_search_arrives_word_by_word(browser, serve):
    """Its stages by name; one whole text with candidates stands beside; what is wrong with it is told."""
    serve()
    ask(browser, "tokens please")
    assert shown(browser, ".stage > h3") == ["SUMMARY", "CAPTION", "Whole answer"]
    assert shown(browser, ".stage > .text") == ["I will count.", "Two.", ""]
    assert shown(browser, ".answer .text") == [f"The {EVIL}"]
    assert "The text is not as the format wants it: </CONCLUSION> is missing" in browser.text(".turn")
    assert "The answer was cut before its end." in browser.text(".turn")


def test_a_text_that_was_told_already_is_not_shown_again(browser, serve):
    """The step of greedy decoding; a whole text is shown that was not told before, or that nothing is seen of but itself."""
    serve()
    ask(browser, "greedy please")
    assert shown(browser, ".stage > h3") == ["SUMMARY"] and shown(browser, ".answer .text") == ["2"]
    ask(browser, "sampled please", f"document.querySelectorAll('.turn').length == 2 && {DONE}")
    assert shown(browser, ".turn:last-child .stage > h3") == ["Whole answer"]
    assert shown(browser, ".turn:last-child .candidates > summary") == ["1 candidate"]
    ask(browser, "silent please", f"document.querySelectorAll('.turn').length == 3 && {DONE}")
    assert shown(browser, ".turn:last-child .candidates > summary") == ["1 candidate"]


def test_two_steps_of_one_name_are_two(browser, serve):
    """Each with its own candidates."""
    serve()
    ask(browser, "twice")
    assert shown(browser, ".stage > .text") == ["One.", "One."] and len(shown(browser, ".candidates")) == 2


def test_a_further_question_holds_what_was_said(browser, serve, picture):
    """The image once, with the first question."""
    server = serve()
    choose(browser, picture)
    ask(browser, "How many?")
    ask(browser, "And how many are red?", f"document.querySelectorAll('.turn').length == 2 && {DONE}")
    first, second, third = server.asked[1]["messages"]
    assert len(first["content"]) == 2 and second == {"role": "assistant", "content": "2"}
    assert third == {"role": "user", "content": "And how many are red?"}


def test_settings_are_sent_and_remembered(browser, serve):
    """The choices are those that the server lists for the model."""
    server = serve()
    assert shown(browser, "#effort option") == ["the model's own: greedy", "none: greedy", "high: stage_beam, 4 candidates"]
    for name, value in {"effort": "high", "strategy": "majority", "candidates": "6"}.items():
        put(browser, f"#{name}", value)
    ask(browser, "How many?")
    assert server.asked[0]["reasoning_effort"] == "high"
    assert server.asked[0]["search"] == {"return": "trace", "strategy": "majority", "candidates": 6}
    browser.goto(server.address)
    browser.wait("document.querySelector('#strategy').value == 'majority'")
    assert browser.js("document.querySelector('#candidates').value + document.querySelector('#effort').value") == "6high"
    browser.js(
        "document.querySelector('#model').value = 'two'; document.querySelector('#model').dispatchEvent(new Event('change'))"
    )
    assert shown(browser, "#strategy option") == ["as effort says"]


def test_history_survives_and_can_be_deleted(browser, serve, picture):
    """With a thumbnail, stages and candidates; to ask more, the image is needed again."""
    server = serve()
    choose(browser, picture)
    ask(browser, f"How many {EVIL}?")
    ask(browser, "And red?", f"document.querySelectorAll('.turn').length == 2 && {DONE}")
    click(browser, "#new")
    assert shown(browser, ".turn") == [] and browser.js("document.querySelector('#picture').hidden")
    ask(browser, "Another?")
    browser.goto(server.address)
    browser.wait("document.querySelectorAll('#history li').length == 2")
    assert shown(browser, "#history .open") == ["Another?", f"How many {EVIL}?"]
    click(browser, "#history li:last-child .open")
    assert shown(browser, ".turn h2") == [f"How many {EVIL}?", "And red?"] and len(shown(browser, ".candidates")) == 6
    assert browser.js("document.querySelector('#picture').src").startswith("data:image/jpeg")
    assert len(browser.js("localStorage.getItem('lora_cot.history')")) < 20_000
    ask(browser, "More?", "document.querySelector('#error').textContent")
    assert "Choose the image again" in browser.text("#error") and len(server.asked) == 3
    assert browser.js("document.querySelector('#question').value") == "More?"
    choose(browser, picture)
    ask(browser, "More?", f"document.querySelectorAll('.turn').length == 3 && {DONE}")
    assert len(server.asked[3]["messages"]) == 5 and len(server.asked[3]["messages"][0]["content"]) == 2
    click(browser, "#history li:last-child .delete")
    assert shown(browser, "#history .open") == [f"How many {EVIL}?"]
    click(browser, "#forget")
    browser.wait("!document.querySelector('#history li') && !document.querySelector('.turn')")
    assert browser.js("localStorage.getItem('lora_cot.history')") == "[]"


@pytest.mark.parametrize("first", [True, False], ids=["its first answer", "a later one"])
@pytest.mark.parametrize("button", ["#history .delete", "#forget"])
def test_what_is_deleted_while_it_is_answered_stays_deleted(browser, serve, button, first):
    """The answer that ends, or is ended, after it does not bring it back; the server is free."""
    server = serve()
    ask(browser, "An older one?")
    if first:
        click(browser, "#new")
    ask(browser, "slow one", "document.querySelector('.turn:last-child.working .stage')")
    if first and button != "#forget":  # it is not among the earlier ones yet, and a new question leaves it
        click(browser, "#new")
        browser.wait("document.querySelectorAll('#history li').length == 2")
        click(browser, "#history li:first-child .open")
    click(browser, button)
    assert server.left.wait(10)
    left = ["An older one?"] if first and button != "#forget" else []
    browser.js("new Promise((done) => setTimeout(done, 300))")
    assert shown(browser, "#history .open") == left and shown(browser, ".turn") == []
    assert "slow one" not in browser.js("localStorage.getItem('lora_cot.history')")
    assert browser.js("document.querySelector('#ask').disabled") is False


def test_history_has_a_bound(browser, serve):
    """The oldest make room; one that is too long alone is kept without its candidates."""
    serve()
    kept = browser.js(
        """(async () => {
          const { keep, load } = await import("./history.js");
          const turn = { question: "q", content: "c", stages: [{ name: "A", text: "t", candidates: ["x".repeat(900000)] }] };
          for (const id of ["a", "b", "c"]) keep({ id, turns: [turn], image: "no" });
          const first = load().map((one) => one.id).join("") + localStorage.getItem("lora_cot.history").includes("no");
          for (let n = 0; n < 60; n++) keep({ id: `s${n}`, turns: [] });
          const many = load().length;
          keep({ id: "long", turns: [{ ...turn, stages: [{ name: "A", text: "t", candidates: ["x".repeat(3000000)] }] }] });
          const [long] = load();
          localStorage.setItem("lora_cot.history", "{broken");
          return [first, many, load().length, long.id, long.turns[0].stages[0]];
        })()"""
    )
    assert kept == ["cbfalse", 50, 0, "long", {"name": "A", "text": "t"}]


def test_stop_frees_the_server(browser, serve):
    """What had come stays, and is kept."""
    server = serve()
    ask(browser, "slow one", "document.querySelector('.stage')")
    assert browser.js("document.querySelector('#ask').disabled") and not server.left.is_set()
    click(browser, "#stop")
    browser.wait(DONE)
    assert server.left.wait(10)
    assert "Stopped." in browser.text(".turn") and shown(browser, ".stage > .text") == ["I will count."]
    assert browser.text("#error") == "" and shown(browser, "#history .open") == ["slow one"]
    ask(browser, "next", f"document.querySelectorAll('.turn').length == 2 && {DONE}")
    assert [message["content"] for message in server.asked[1]["messages"]] == ["next"]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("full", "the queue is full Try again in 7 s."),
        ("broken", "the model ran out of memory"),
        ("cut", "The connection ended before the answer did."),
    ],
)
def test_errors_are_told_in_words(browser, serve, question, words):
    """With the turn, and to a screen reader; the next question can be asked."""
    serve()
    ask(browser, question)
    assert browser.text(".turn > div > .error") == browser.text("#error") == words
    assert browser.js("document.querySelector('#error').getAttribute('role')") == "alert"
    assert browser.js("document.querySelector('#question').value") == question
    ask(browser, "How many?", f"document.querySelectorAll('.turn').length == 2 && {DONE}")
    assert browser.text("#error") == "" and shown(browser, ".answer .text")[1] == "2"
    browser.errors[:] = [one for one in browser.errors if "503" not in one]


def test_a_server_that_is_gone(browser, serve):
    server = serve()
    server.shutdown()
    server.server_close()
    ask(browser, "How many?")
    assert browser.text("#error") == "The server cannot be reached."
    browser.errors[:] = [one for one in browser.errors if "net::ERR_" not in one]


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(browser, serve):
    """After a refusal the field has the focus."""
    server = serve(key="secret")
    assert browser.text("#error") == "no valid key" and browser.js("document.activeElement.id") == "key"
    browser.type("secret")
    browser.press("Tab")
    browser.wait("document.querySelector('#model').options.length == 2")
    ask(browser, "How many?")
    assert shown(browser, ".answer .text") == ["2"] and browser.text("#error") == ""
    assert browser.js("JSON.stringify(localStorage).includes('secret')") is False
    browser.goto(server.address)
    browser.wait("document.querySelector('#model').options.length == 2")
    browser.errors[:] = [one for one in browser.errors if "401" not in one]


def test_it_works_by_keyboard(browser, serve):
    """From the question to the candidates, with the focus to be seen on the way."""
    serve()
    browser.js("document.querySelector('#question').focus()")
    browser.type("How")
    browser.press("Enter", shift=True)
    browser.type("many?")
    browser.press("Enter")
    browser.wait(DONE)
    assert shown(browser, ".turn h2") == ["How\nmany?"]
    browser.js("document.querySelector('#file').focus()")
    seen = []
    while not seen or seen[-1] != "question":
        browser.press("Tab")
        seen.append(browser.js("document.activeElement.id || document.activeElement.tagName"))
        assert browser.js("getComputedStyle(document.activeElement).outlineStyle") == "solid" and len(seen) < 20
    assert seen == ["SUMMARY"] * 3 + ["question"]
    browser.js("document.querySelector('#file').focus()")
    browser.press("Tab")
    browser.press(" ")
    assert browser.js("document.querySelector('.candidates').open")
    browser.js("document.querySelector('#question').focus()")
    browser.type("slow")
    browser.press("Tab")
    browser.press("Enter")
    browser.wait("document.querySelectorAll('.turn').length == 2 && document.querySelectorAll('.stage').length == 4")
    assert browser.js("document.activeElement.id") == "stop"
    browser.press("Escape")
    browser.wait(DONE)
    assert browser.js("document.activeElement.id") == "question"
    assert "Stopped." in browser.text(".turn:last-child") and browser.text("#status") == "Stopped."


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_images_can_be_dropped_and_pasted(browser, serve, event):
    """A file that is none is refused in words."""
    serve()
    browser.js(f"globalThis.how = {json.dumps(event)}")
    give = """(async (name, type, data) => {
      const held = new DataTransfer();
      held.items.add(new File([data], name, { type }));
      const told = how == "drop" ? new DragEvent("drop", { dataTransfer: held, bubbles: true, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: held, bubbles: true });
      document.querySelector("#drop").dispatchEvent(told);
    })"""
    browser.js(f"{give}('notes.txt', 'text/plain', 'no image')")
    browser.wait("document.querySelector('#error').textContent")
    assert browser.text("#error") == "notes.txt cannot be read as an image."
    pixels = "await new Promise((done) => Object.assign(document.createElement('canvas'), {width: 8, height: 8}).toBlob(done))"
    browser.js(f"(async () => {give}('a.png', 'image/png', {pixels}))()")
    browser.wait("!document.querySelector('#picture').hidden && !document.querySelector('#error').textContent")


def test_large_and_strange_images_are_made_smaller(browser, serve):
    """What is sent is a JPEG of at most 1568 pixels a side; a small PNG is sent as it is."""
    serve()
    found = browser.js(
        """(async () => {
          const { read } = await import("./images.js");
          const drawn = (width, height) => new Promise((done) =>
            Object.assign(document.createElement("canvas"), { width, height }).toBlob(done, "image/png"));
          const blob = await drawn(3000, 1500);
          const size = async (uri) => { const i = new Image(); i.src = uri; await i.decode(); return [i.width, i.height]; };
          const { image, thumbnail } = await read(new File([blob], "a.png", { type: "image/png" }));
          const small = await drawn(1568, 700);
          return [image.slice(0, 15), await size(image), await size(thumbnail),
                  (await read(new File([small], "a.png", { type: "image/png" }))).image.slice(0, 14),
                  (await read(new File([small], "a.bmp", { type: "image/bmp" }))).image.slice(0, 15),
                  (await read(new File([small, new Uint8Array(2e6)], "a.png", { type: "image/png" }))).image.slice(0, 15)];
        })()"""
    )
    jpeg = "data:image/jpeg"
    assert found == [jpeg, [1568, 784], [96, 48], "data:image/png", jpeg, jpeg]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_a_phone_and_has_contrast(browser, serve, picture, width, dark):
    """Nothing is wider than the window; all text stands out from its ground."""
    server = serve()
    browser.look(width, 800, dark)
    browser.goto(server.address)
    choose(browser, picture)
    ask(browser, f"How {'many ' * 30}{'m' * 200}?")
    browser.js("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert browser.js("document.documentElement.scrollWidth") <= width
    poor = browser.js(
        """(() => {
          const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          const rgb = (colour, ground) => {
            context.fillStyle = ground; context.fillRect(0, 0, 1, 1);
            context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
            return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
          };
          const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
          const weight = [0.2126, 0.7152, 0.0722];
          const light = (parts) => parts.reduce((sum, v, k) => sum + linear(v / 255) * weight[k], 0);
          const base = matchMedia("(prefers-color-scheme: dark)").matches ? "rgb(18, 18, 18)" : "white";
          return [...document.querySelectorAll("body *")]
            .filter((one) => [...one.childNodes].some((node) => node.nodeType == 3 && node.data.trim()))
            .filter((one) => one.checkVisibility() && !one.closest("noscript, option, :disabled"))
            .map((one) => {
              let ground = base;
              for (let at = one; at; at = at.parentElement) {
                const own = getComputedStyle(at).backgroundColor;
                if (!own.startsWith("rgba(")) { ground = own; break; }
              }
              const [a, b] = [light(rgb(getComputedStyle(one).color, ground)), light(rgb(ground, ground))];
              return [one.tagName + "." + one.className, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
            }).filter(([, ratio]) => ratio < 4.5);
        })()"""
    )
    assert poor == []
