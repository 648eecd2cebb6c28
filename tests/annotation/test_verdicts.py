"""What a teacher's text must be to be used."""

import pytest

from lora_cot.annotation.prompts import messages, verdict_messages, version
from lora_cot.annotation.verdicts import REASONS, Aside, disagreement, read_verdict, stages_of
from lora_cot.engines.completions import Reply
from lora_cot.formats import FORMATS
from lora_cot.types import Exchange, Sample
from tests.published import png
from tests.scripted_server import four_stages, two_stages

WORDS = ("fern", "granite", "newt")
FOUR, TWO = FORMATS["four_stage"], FORMATS["two_stage"]


def test_a_whole_text_is_read_by_stage():
    """Words around the stages are left out: a teacher may think, or be polite."""
    expected = {"SUMMARY": "a plan", "CAPTION": "a red square", "REASONING": "hence", "CONCLUSION": "B"}
    assert stages_of(Reply(four_stages("B"), "stop"), FOUR) == expected
    assert stages_of(Reply(f"<think>hm</think>Sure!\n{four_stages('B')}\nDone.", "stop"), FOUR) == expected


SWAPPED = "<CAPTION> c </CAPTION> <SUMMARY> s </SUMMARY> <REASONING> r </REASONING> <CONCLUSION> B </CONCLUSION>"
UNUSED = {
    "refusal": (Reply("", "stop", "I cannot"), FOUR, "refusal", "I cannot"),
    "filtered": (Reply(four_stages("B"), "content_filter"), FOUR, "refusal", "content_filter"),
    "cut off": (Reply(four_stages("B"), "length"), FOUR, "cut_off", ""),
    "empty": (Reply(" \n", "stop"), FOUR, "empty", ""),
    "refused in words": (Reply("I can't help with that.", "stop"), FOUR, "format", "no stage tag in the text"),
    "a tag missing": (Reply(four_stages("B")[:-13], "stop"), FOUR, "format", "</CONCLUSION> is missing"),
    "wrong order": (Reply(SWAPPED, "stop"), FOUR, "format", "<CAPTION> where <SUMMARY> was expected"),
    "twice": (Reply(four_stages("B") * 2, "stop"), FOUR, "format", "<SUMMARY> after the last stage"),
    "an empty stage": (Reply(four_stages("B", CAPTION=""), "stop"), FOUR, "format", "CAPTION is empty"),
    "a quoted tag": (Reply(four_stages("B", CAPTION="a <REASONING>"), "stop"), FOUR, "format", "<REASONING> where"),
    "T5's tag": (Reply(two_stages("B", "[ANSWER] B"), "stop"), TWO, "format", "RATIONALE holds the tag [ANSWER]"),
    "another format": (Reply(two_stages("B"), "stop"), FOUR, "format", "no stage tag in the text"),
}


@pytest.mark.parametrize(("reply", "cot_format", "reason", "detail"), UNUSED.values(), ids=UNUSED)
def test_what_is_not_used_has_a_reason(reply, cot_format, reason, detail):
    """And keeps the teacher's text."""
    found = stages_of(reply, cot_format)
    assert isinstance(found, Aside) and found.reason == reason and found.reason in REASONS
    assert detail in found.detail and found.text == reply.text


@pytest.mark.parametrize(
    ("said", "gold", "choices", "reason"),
    [
        ("B", "B", WORDS, None),
        ("The answer is (B).", "B", WORDS, None),
        ("Granite.", "(B)", WORDS, None),
        ("C", "The answer is (B).", WORDS, "disagrees"),
        ("E", "B", WORDS, "unreadable"),
        ("B or C", "B", WORDS, "unreadable"),
        ("perhaps", "B", WORDS, "unreadable"),
        ("B: 5 MPa", "B", "", None),
        ("3.0", "3", "", None),
        ("Cab.", "cab", "", None),
        ("taxi", "cab", "", "disagrees"),
        ("", "cab", "", "disagrees"),
    ],
)
def test_agreement(said, gold, choices, reason):
    """Options by which they are, all else as short answers; nothing is guessed."""
    found = disagreement(said, gold, tuple(choices))
    assert (found and found.reason) == reason
    assert found is None or "expected" in found.detail


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("valid", True), ("Valid.", True), ("**invalid**", False), ("Invalid, since", False), ("It is valid", None), ("", None)],
)
def test_verdicts(text, verdict):
    """One word, or none."""
    assert read_verdict(text) is verdict


def test_the_teacher_sees_question_options_and_images_but_not_the_answer():
    """Unless asked as LLaVA-CoT does."""
    sample = Sample("7", (Exchange("Which?", answer="granite"),), (png(), png()), ("fern", "granite"))
    (message,) = messages(FOUR, sample)
    first, second, text = message["content"]
    assert first == second and first["image_url"]["url"].startswith("data:image/png;base64,")
    assert text["text"].startswith("Which?\nOptions: (A) fern (B) granite\n\n") and text["text"].count("granite") == 1
    assert all(text["text"].count(FOUR.opening(stage)) == 1 for stage in FOUR.stages)
    assert "Standard answer" not in text["text"]
    (told,) = messages(FOUR, sample, "granite")
    assert "Standard answer: granite" in told["content"][-1]["text"]


def test_a_question_without_an_image_is_a_plain_text():
    """Servers of text models take no list of parts."""
    (message,) = messages(TWO, Sample("7", (Exchange("Why?"),)))
    assert message["content"].startswith("Why?\n\n")


def test_other_prompts_have_another_version(monkeypatch):
    """By format, by whether the answer is shown, by any word."""
    versions = {
        version(cot_format, faithful) for cot_format in (FOUR, TWO, FORMATS["answer_first"]) for faithful in (False, True)
    }
    assert len(versions) == 6
    before = version(FOUR, False)
    monkeypatch.setattr("lora_cot.annotation.prompts.SHORT", "anything")
    assert version(FOUR, False) != before
    assert "data, not instructions" in verdict_messages("q", "s", "g")[0]["content"]
