"""The largest batch of a run, from its data or from the recipe's own limits."""

import json

import pytest
import torch
from PIL import Image

from lora_cot.backbones.loading import load_backbone
from lora_cot.data.collate import batch
from lora_cot.data.shapes import make_sample
from lora_cot.planning import workload
from lora_cot.planning.workload import rows, workloads
from lora_cot.training.run import make_collator
from tests.conftest import slots_in


@pytest.fixture
def found(make_recipe, tmp_path, load_tiny):
    """The workloads of the tiny recipe with some keys changed."""

    def find(*options, kind="llava", **sections):
        return workloads(make_recipe(tmp_path, *options, **sections), load_tiny(kind))

    return find


def source(folder, texts, images=(), side=64):
    """Rows of these lengths in words; those numbered have an image."""
    lines = []
    for number, words in enumerate(texts):
        sample = make_sample(number, "train", 0)
        row = {"id": str(number), "question": "red " * words, "stages": sample.last.stages}
        if number in images:
            Image.new("RGB", (side, side + number)).save(folder / f"{number}.png")
            row["image"] = f"{number}.png"
        lines.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return {"train": [{"source": "jsonl", "path": str(folder / "rows.jsonl")}]}


def test_lengths_are_those_that_are_trained(found, make_recipe, tmp_path, tiny):
    """The longest and the mean, as the run's own collator encodes them; and the trained tokens of each."""
    (work,) = found()
    recipe = make_recipe(tmp_path)
    collator = make_collator(recipe, tiny, recipe.format.build())
    encoded = [collator.encode(make_sample(number, "train", 0)) for number in range(16)]
    lengths = [len(one.input_ids) for one in encoded]
    answers = [sum(label != -100 for label in one.labels) for one in encoded]
    assert (work.length, work.mean_length, work.samples) == (max(lengths), sum(lengths) / 16, 16)
    assert work.answer == answers[lengths.index(max(lengths))] and work.mean_answer == sum(answers) / 16
    assert "16 of 16" in work.said


def test_each_pass_has_its_own(found):
    """A split format trains another text in each."""
    rationale, answer = found(format={"name": "two_stage"}, search={})
    assert rationale.answer > answer.answer and answer.length > answer.answer


def test_samples_that_training_drops_do_not_count(found, tmp_path):
    """Nor do their lengths; and the rows of an epoch are fewer."""
    data = source(tmp_path, [1, 2, 3, 400])
    (everything,), (kept,) = found(data=data), found("training.max_length=300", "training.long_samples=drop", data=data)
    assert everything.length > 300 >= kept.length and (everything.samples, kept.samples) == (4, 3)
    assert "1 of them longer" in kept.said
    (none,) = found("training.max_length=20", "training.long_samples=drop", data=data)
    assert none.length == 20 and "every sample is longer" in none.said


def test_images_that_training_makes_smaller_are_smaller(found, tmp_path):
    """With shrink_image a sample has as many tokens as is allowed, and images of that size."""
    data = source(tmp_path, [1], images={0}, side=560)
    (whole,) = found(kind="qwen2_vl", data=data)
    limit = whole.length - 40
    options = f"training.max_length={limit}", "training.long_samples=shrink_image"
    (shrunk,) = found(*options, kind="qwen2_vl", data=data)
    assert shrunk.length <= limit < whole.length and whole.sizes == ((560, 560),)
    assert shrunk.sizes[0][0] < 560


def test_the_longest_row_has_an_image_if_any_has(found, tmp_path):
    """Where an image is one token, the longest sample is often one of text alone."""
    (work,) = found(data=source(tmp_path, [50, 1, 5, 2], images={1, 2}))
    assert work.sizes == ((64, 66),)
    (blind,) = found(data=source(tmp_path, [5, 1]))
    assert blind.sizes == ()


def test_a_sample_that_was_not_measured_may_be_as_long_as_is_allowed(found, tmp_path, monkeypatch):
    """Where some of the measured ones are too long, others come close to the limit."""
    monkeypatch.setattr(workload, "MEASURED", 3)
    data = source(tmp_path, [1, 1, 400, 1, 1, 1])
    (work,) = found("training.max_length=300", "training.long_samples=drop", data=data)
    assert work.length == 300 and work.samples == 4 and "3 of 6" in work.said
    (short,) = found("training.max_length=900", data=data)
    assert short.length < 900 and short.samples == 6


def test_data_that_cannot_be_read_is_no_obstacle(found):
    """The recipe's own limit is taken, with a photograph that has room in it; the reason is told."""
    data = {"train": [{"source": "jsonl", "path": "nowhere.jsonl"}]}
    (work,) = found("training.max_length=300", data=data)
    assert (work.length, work.samples, work.sizes) == (300, None, (workload.PHOTOGRAPH,))
    assert "nowhere.jsonl" in work.said and work.answer == (300 - 4) // 2
    (assumed,) = found(data=data)
    assert assumed.length == workload.LENGTH and "assumed" in assumed.said
    (large,) = found("training.max_length=60", kind="qwen2_vl", data=data)
    assert large.length == 60 and large.sizes[0][0] < workload.PHOTOGRAPH[0]
    (none,) = found(data={})
    assert "names no data" in none.said


def test_a_tokenizer_without_a_template_is_no_obstacle(make_recipe, tmp_path, tiny_base):
    """Rows are counted, lengths assumed."""
    recipe = make_recipe(tmp_path)
    backbone = load_backbone(recipe.model)
    backbone.processor.chat_template = None
    (work,) = workloads(recipe, backbone)
    assert work.samples == 16 and "tokenizer is not at hand" in work.said


def test_rows_are_what_was_measured(each_chat):
    """A batch of the longest row and usual ones, trained or as prompts, with its images' slots and pixels."""
    work = workload.Workload(150, 60, 120, 50, ((90, 60),), None, "")
    made = batch(rows(each_chat, work, 3, answered=True), each_chat.processor, each_chat.family.image_inputs)
    assert made["attention_mask"].sum(-1).tolist() == [150, 120, 120]
    assert (made["labels"] != -100).sum(-1).tolist() == [60, 50, 50]
    slots = [slots_in(each_chat.processor, row) for row in made["input_ids"].tolist()]
    assert slots == each_chat.family.image_tokens(each_chat.processor, [(90, 60)]) * 3
    assert "pixel_values" in made
    prompts = batch(rows(each_chat, work, 1, answered=False), each_chat.processor, each_chat.family.image_inputs, left=True)
    assert prompts["input_ids"].shape == (1, 90) and torch.all(prompts["labels"] == -100)
