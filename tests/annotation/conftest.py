"""Data without reasoning, and a teacher that knows the answers."""

import json

import pytest

from lora_cot.annotation.rows import Selection
from lora_cot.annotation.run import annotate
from lora_cot.engines.chat import Patience
from lora_cot.engines.teacher import Teacher
from tests.published import png
from tests.scripted_server import KEY, four_stages, text_of, two_stages

QUICK = Patience(timeout_seconds=1, tries=2, first_wait_seconds=0.01, longest_wait_seconds=1)
STAGES = {"SUMMARY": "a plan", "CAPTION": "a cat", "REASONING": "hence", "CONCLUSION": "7"}


def number_of(body):
    """Which row a request is about: questions are `What is N?`."""
    return int(text_of(body).split("What is ")[1].split("?")[0])


def right(write):
    """A teacher that always answers with the row's number."""
    return lambda body, _: write(str(number_of(body)), f"since {number_of(body)}")


def four(answer, why="hence"):
    return four_stages(answer, REASONING=why)


@pytest.fixture
def teach():
    """`annotate` with a running server as the teacher."""

    def run(what, server, output, format_name=None, key=KEY, model="teacher", **keys):
        chosen = Selection(**{name: keys.pop(name) for name in list(keys) if hasattr(Selection, name)})
        return annotate(what, Teacher(server.url, model, key, patience=QUICK), output, format_name, chosen, **keys)

    return run


@pytest.fixture
def data(tmp_path):
    """A file of rows `What is N?` with the answer N, and a picture each; other keys of a row by its number."""

    def make(count, more=None, name="rows.jsonl"):
        folder = tmp_path / "data"
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        rows = []
        for number in range(count):
            (folder / "pictures" / f"{number}.png").write_bytes(png())
            row = {
                "id": f"q{number}",
                "image": f"pictures/{number}.png",
                "question": f"What is {number}?",
                "answer": str(number),
            }
            rows.append(row | (more or {}).get(number, {}))
        (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return folder / name

    return make


def lines(path):
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def ids(path):
    return [row["id"] for row in lines(path)]


WRITE = {"two_stage": two_stages, "four_stage": four}
