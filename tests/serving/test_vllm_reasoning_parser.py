"""vLLM's plugin: it reads stages as the format does, in a stream as in a whole, with nothing of ours installed."""

import importlib.util
import itertools
import sys
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lora_cot.serving
from lora_cot.formats import FORMATS

FOUR_STAGE = FORMATS["four_stage"]
NAMES = [stage.name for stage in FOUR_STAGE.stages]
TAGS = [tag for stage in FOUR_STAGE.stages for tag in (FOUR_STAGE.opening(stage), FOUR_STAGE.closing(stage))]
WHOLE = "".join(piece for _, piece in FOUR_STAGE.write({name: f"the {name.lower()}" for name in NAMES}))
PIECES = st.sampled_from(TAGS) | st.sampled_from(TAGS).flatmap(lambda t: st.integers(0, len(t)).map(lambda n: t[:n]))
TEXTS = st.lists(PIECES | st.text(max_size=4) | st.sampled_from([" ", "\n\n", "<", "x"]), max_size=14).map("".join)


class FakeParser:
    """vLLM's base class as far as a plugin sees it."""

    def __init__(self, tokenizer, *args, **kwargs):
        self.model_tokenizer = tokenizer


class FakeManager:
    registered: dict = {}  # noqa: RUF012

    @classmethod
    def register_module(cls, name):
        return lambda made: cls.registered.setdefault(name, made)


class Letters:
    """A tokenizer whose tokens are characters."""

    def decode(self, ids):
        return "".join(map(chr, ids))


@pytest.fixture(scope="module")
def parser():
    """Makes a fresh parser of the plugin, loaded from its file by name and with vLLM's modules in place of the real ones."""
    base, basic = ModuleType("vllm.reasoning"), ModuleType("vllm.reasoning.basic_parsers")
    base.ReasoningParser, base.ReasoningParserManager, basic.DeltaMessage = FakeParser, FakeManager, SimpleNamespace
    fakes = {"vllm": ModuleType("vllm"), "vllm.reasoning": base, "vllm.reasoning.basic_parsers": basic}
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "lora_cot"}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {**fakes, **dict.fromkeys(ours)}.items():  # None: it cannot be imported
            patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location("plugin", f"{lora_cot.serving.__path__[0]}/vllm_reasoning_parser.py")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return lambda: FakeManager.registered["lora_cot"](Letters(), model_config=None)


def wanted(text):
    """What the format says: the stages before the answer, and the answer or what comes after the last closed stage."""
    parsed, reader = FOUR_STAGE.parse(text), FOUR_STAGE.parser()
    reasoning = "\n\n".join(stage.text for stage in parsed.stages if stage.name != "CONCLUSION" and stage.text)
    loose, events = "", reader.feed(text)
    for event in events:
        loose = "" if event.kind == "end" else loose + event.text
    loose += text[len(text) - reader._held() :] if reader._held() else ""
    return reasoning or None, parsed.answer or loose.strip() or None


def streamed(parser, text, cuts):
    """The same from pieces."""
    found, places = {"reasoning": "", "content": ""}, [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    deltas = [parser.extract_reasoning_streaming("", "", text[a:b], [], [], []) for a, b in itertools.pairwise(places)]
    for delta in [*deltas, parser.finish_streaming()]:
        for kind, piece in vars(delta).items() if delta else ():
            assert piece
            found[kind] += piece
    return found["reasoning"] or None, found["content"] or None


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        (WHOLE, "the summary\n\nthe caption\n\nthe reasoning", "the conclusion"),
        ("", None, None),
        ("The answer is 3. ", None, "The answer is 3."),
        ("<CONCLUSION> 3", None, "3"),
        ("<SUMMARY> s </SUMMARY> so: 3", "s", "so: 3"),
        ("<SUMMARY> s </SUMMARY> <CAPTION> a cat, <CONC", "s\n\na cat, <CONC", "a cat, <CONC"),
        ("<CAPTION> c </CAPTION> <SUMMARY> s </SUMMARY>", "c", "<SUMMARY> s </SUMMARY>"),
        ("<SUMMARY></SUMMARY><CAPTION> of <CONCLUSION> 3 </CONCLUSION> </CAPTION>", "of <CONCLUSION> 3 </CONCLUSION>", None),
        ("<CONCLUSION> 3 </CONCLUSION> and more", None, "3"),
        ("<CONCLUSION> </CONCLUSION> 4", None, "4"),
    ],
)
def test_what_is_reasoning_and_what_is_content(parser, text, reasoning, content):
    """Of whole, unfinished, misplaced and missing stages."""
    assert parser().extract_reasoning(text, None) == (reasoning, content) == wanted(text)


@given(TEXTS, st.lists(st.integers(0, 10_000), max_size=8))
def test_it_reads_as_the_format_does(parser, text, cuts):
    """Any text, however it is cut."""
    assert parser().extract_reasoning(text, None) == wanted(text) == streamed(parser(), text, cuts)


def test_a_stage_is_told_while_it_is_written(parser):
    """Nothing but white space and what may be a tag is held back."""
    one = parser()
    pieces = ["<SUM", "MARY> pl", "an ", "b <", "i> </SUMMARY><CONCLUSION>", " 3"]
    told = [one.extract_reasoning_streaming("", "", piece, [], [], []) for piece in pieces]
    assert [vars(delta) if delta else None for delta in told] == [
        None,
        {"reasoning": "pl"},
        {"reasoning": "an"},
        {"reasoning": " b"},
        {"reasoning": " <i>"},
        {"content": "3"},
    ]


@pytest.mark.parametrize("text", [WHOLE, "", "no tags", "<SUMMARY> s </SUMMARY> <CAPTION> c", "<CONCLUSION> 3 </CONCLUSION>"])
def test_reasoning_tokens_are_those_before_the_answer(parser, text):
    """Up to and with the tag that opens it."""
    found = parser().count_reasoning_tokens([ord(letter) for letter in text])
    assert found == (text.index("<CONCLUSION>") + len("<CONCLUSION>") if "<CONCLUSION>" in text else len(text))


@pytest.mark.parametrize(
    "keys", [{"structured_outputs": {"json": {}}}, {"response_format": SimpleNamespace(type="json_object")}]
)
def test_structured_outputs_are_refused(parser, keys):
    """They would not be enforced."""
    with pytest.raises(ValueError, match="structured outputs do not go with the reasoning parser lora_cot"):
        parser().adjust_request(SimpleNamespace(**keys))


@pytest.mark.parametrize("keys", [{}, {"structured_outputs": None, "response_format": SimpleNamespace(type="text")}])
def test_other_requests_go_on(parser, keys):
    request = SimpleNamespace(**keys)
    assert parser().adjust_request(request) is request


def test_the_engine_never_takes_over(parser):
    """What comes after the conclusion is read by the parser too."""
    one = parser()
    assert one.engine_based_streaming and not one.has_engine_confirmed_reasoning_end()
    assert not one.is_reasoning_end([1]) and not one.is_reasoning_end_streaming([1], [1])
