"""Searches of every strategy by the scripted engine, as examples for pages."""

from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.run import answer
from lora_cot.types import Exchange, Sample
from tests.search.scripted import ScriptedEngine, by_stage, responses

FOUR_STAGE, TWO_STAGE = FORMATS["four_stage"], FORMATS["two_stage"]
QUESTION = "How many circles are left of the <blue> square?"
STAGES = {
    "SUMMARY": [
        ("I will count the circles that lie left of the blue square.", -0.21),
        ("I look for circles & squares.", -0.48),
        ("Count what is there.", -0.9),
        ("I will describe the picture and then count the circles that are red.", -0.55),
    ],
    "CAPTION": [
        ("A red circle at the top left, a green circle below it, and a blue square at the right.", -0.3),
        ("Three circles <b>around</b> a square.", -0.35),
        ("A red circle, a green circle, a blue square and then it goes on and on …", -0.2),
        ("", -0.1),
    ],
    "REASONING": [
        ("The square is at the right. Both circles have smaller x, so both are left of it.", -0.4),
        ("There are three circles, one of which is right of the square.", -0.37),
        ("Two.", -1.5),
        ("The connection was lost", -1.0, "the server closed the connection"),
    ],
    "CONCLUSION": [("2", -0.01), ("3", -0.5), ("two", -0.2), ("2", -0.04)],
}
ANSWERS = ["2", "two", "3", "2", "<i>many</i>", "2"]


def four(conclusion, is_closed=True):
    """A whole four-stage text."""
    texts = {name: found[0][0] for name, found in STAGES.items()} | {"CONCLUSION": conclusion}
    text = "".join(piece for _, piece in FOUR_STAGE.write(texts))
    return text if is_closed else text[: text.index("</REASONING>")]


def whole(_state, seed):
    number = int(seed.split("/")[-1])
    return four(ANSWERS[number % len(ANSWERS)], number != 4), -0.2 - 0.1 * number


def sentences(state, seed):
    """Twelve sentences, then the answer."""
    number, place = int(seed.split("/")[-1]), state[1].count(".")
    if place >= 12:
        ends = " <CONCLUSION> 12 </CONCLUSION>" if "</REASONING>" in state[1] else " </REASONING>"
        return ends, -0.1 * number
    begin = "<REASONING> " if not state[1] else " "
    return f"{begin}Sentence {place + 1} of candidate {number} says a little more about the picture.", -0.3 - 0.1 * number


def rounds(_state, seed):
    step, number = seed.split("/")[-2:]
    stage = step.split(".")[0]
    return f"<{stage}> What {step} of number {number} says. </{stage}>", -0.2 - 0.1 * int(number)


def undecided(prompt):
    """A judge that likes longer texts, but cannot decide between those of nearly the same length."""
    first, second = map(len, responses(prompt))
    return [-1.0, -1.2] if abs(first - second) < 12 else [-0.2, -1.7] if first > second else [-1.7, -0.2]


def retraced(contests):
    """Scores of texts that are good only from the second round on."""
    return [[-0.5 + 0.3 * (".1" in text) + 0.1 * ("number 2" in text) for text in one.texts] for one in contests]


def passes(rationale, final):
    return {"rationale": lambda _state, seed: rationale[int(seed[-1])], "answer": lambda _state, seed: final[int(seed[-1])]}


SEARCHES = {
    "greedy": (ScriptedEngine(whole), {}),
    "sample": (ScriptedEngine(whole), {}),
    "majority": (ScriptedEngine(whole), {"candidates": 6}),
    "adaptive": (ScriptedEngine(whole), {"candidates": 6}),
    "best_of_n": (ScriptedEngine(whole, undecided), {"scorer": "self_judge"}),
    "sentence_beam": (ScriptedEngine(sentences), {"keep": 2}),
    "stage_beam": (
        ScriptedEngine(by_stage(STAGES), undecided),
        {"keep": 2, "scorer": "self_judge", "stages": {"CAPTION": {"max_new_tokens": 20}}},
    ),
    "swires": (ScriptedEngine(rounds), {"swires": {"cutoff": -0.15}}),
    "two_pass": (ScriptedEngine(passes([("Two and two are four.", -0.3)], [("The answer is (B).", -0.1)])), {}),
}


def search(strategy):
    """The completion of a strategy's example, and its settings."""
    engine, keys = SEARCHES[strategy]
    config = SearchSection(strategy=strategy, **keys)
    cot_format = TWO_STAGE if strategy == "two_pass" else FOUR_STAGE
    scorer = retraced if strategy == "swires" else None
    (found,) = answer(engine, cot_format, [Sample("q", (Exchange(QUESTION),), (b"an image",))], config, scorer=scorer)
    return found, config
