"""Files without a recipe: what kind they are, and how many texts of predictions are in a format."""

import json

import pytest

from lora_cot.errors import DataError
from lora_cot.formats import FORMATS
from lora_cot.validation.files import LOOKED_AT, count_outcomes, source_of


@pytest.mark.parametrize(
    ("row", "source"),
    [
        ({"question": "?", "stages": {}}, "jsonl"),
        ({"question": "?", "answer": "B"}, "jsonl"),
        ({"conversations": []}, "llava_cot_100k"),
        ({"messages": [], "question": "?", "answer": "B"}, "messages"),
        ({"question": "?", "answer": "B", "prediction": "A"}, None),
        ({"question": "?", "text": "A"}, None),
        ({}, None),
    ],
)
def test_the_first_row_tells_the_kind(tmp_path, row, source):
    """By its keys; lines before it that are no rows tell nothing; what has predictions is a file of predictions."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(["{", "[]", json.dumps(row), json.dumps({"messages": []})]))
    assert source_of(path) == source
    path.write_text("\n".join(["{"] * LOOKED_AT + [json.dumps(row)]))
    assert source_of(path) is None


def test_other_files(tmp_path):
    """A list in a JSON file, a table of the hub, and no file at all."""
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": []}]))
    assert source_of(tmp_path / "rows.json") == source_of(tmp_path / "rows.parquet") == "messages"
    with pytest.raises(DataError, match=r"none\.jsonl · no such data file"):
        source_of(tmp_path / "none.jsonl")


def test_the_outputs_of_the_published_model(shared_data):
    """471 of 500 outputs of LLaVA-CoT have all four stages, the rest have none."""
    path = shared_data("llavacot_outputs_500.jsonl")
    assert source_of(path) is None
    counts = count_outcomes(path, FORMATS["four_stage"], "prediction")
    assert (counts["complete"], counts["partial"], counts["none"]) == (471, 0, 29)
