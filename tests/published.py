"""Files in the forms of published sets of questions, made up and tiny."""

import io
import json

from PIL import Image


def png(colour="red"):
    """Bytes of an image file."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def problem(**keys):
    """A record of ScienceQA."""
    plain = {"question": "Which is a plant?", "choices": ["fern", "granite", "newt"], "answer": 0, "hint": "", "image": None}
    more = {"grade": "grade4", "subject": "natural science", "lecture": "Plants grow.", "solution": "A fern grows."}
    return plain | more | {"split": "train", "task": "closed choice", "skill": "Plants"} | keys


def scienceqa(folder, problems, splits=None, images=True):
    """Its folder: `problems.json`, `pid_splits.json` if there are splits, and each record's image."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "problems.json").write_text(json.dumps(problems))
    if splits is not None:
        (folder / "pid_splits.json").write_text(json.dumps(splits))
    for number, record in problems.items():
        if images and isinstance(record, dict) and record.get("image"):
            place = folder / "images" / record["split"] / number
            place.mkdir(parents=True)
            (place / record["image"]).write_bytes(png())
    return folder


def aokvqa_record(number=0, **keys):
    """A record of A-OKVQA."""
    plain = {"question_id": f"q{number}", "image_id": 299207 + number, "question": "What is he waiting for?"}
    answers = ["cab"] * 4 + ["bus"] * 2 + ["taxi", "ride", "train", "his ride"]
    more = {"choices": ["skateboarder", "train", "delivery", "cab"], "correct_choice_idx": 3, "direct_answers": answers}
    return plain | more | {"difficult_direct_answer": False, "rationales": ["He has bags.", "He looks for one."]} | keys


def aokvqa(folder, records, split="val", images=True):
    """Its folder, COCO's images beside the file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"aokvqa_v1p0_{split}.json").write_text(json.dumps(records))
    for record in records:
        if images:
            (folder / f"{record['image_id']:012}.jpg").write_bytes(png())
    return folder


def mmmu_row(number=1, images=1, **keys):
    """A row of MMMU."""
    plain = {
        "id": f"validation_Art_{number}",
        "question": "What does <image 1> show?",
        "options": "['a fern', \"a newt's egg\"]",
    }
    cells = {f"image_{n}": {"bytes": png(), "path": None} if n <= images else None for n in range(1, 8)}
    return plain | {"answer": "B", "question_type": "multiple-choice", "topic_difficulty": "Easy"} | cells | keys


def parquet(path, rows, images=("image",)):
    """A table as the hub has it."""
    from datasets import Dataset
    from datasets import Image as ImageFeature

    table = Dataset.from_list(rows)
    for column in images:
        table = table.cast_column(column, ImageFeature(decode=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    return path
