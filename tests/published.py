"""Files in the forms of published sets of questions, made up and tiny."""

import gzip
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


def m3cot_record(number=0, **keys):
    """A record of M3CoT."""
    plain = {"id": f"physics-{number}", "category": "physics", "image_id": f"i{number}", "question": "Which is a plant?"}
    more = {"choices": ["fern", "granite", "newt"], "context": "", "answer": "A", "rationale": "A fern grows."}
    kinds = {"domain": "science", "topic": "natural-science", "split": "test"}
    return plain | more | {"image": f"data/images/physics-{number}.png"} | kinds | keys


def json_lines(path, rows):
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def m3cot(folder, records, split="test", images=True):
    """Its folder, the pictures in `images/`."""
    json_lines(folder / f"{split}.jsonl", records)
    (folder / "images").mkdir(exist_ok=True)
    for record in records:
        if images:
            (folder / "images" / f"{record['id']}.png").write_bytes(png())
    return folder


def llava_wild(folder, count=3, images=True):
    """LLaVA-Bench's folder: so many questions about two pictures, with their reference answers."""
    kinds = ("conv", "detail", "complex")
    of = [{"question_id": n, "image": f"00{1 + n % 2}.png", "category": kinds[n % 3]} for n in range(count)]
    json_lines(folder / "questions.jsonl", [{**row, "text": f"What is that {row['question_id']}?"} for row in of])
    answers = [{"question_id": n, "prompt": "?", "text": f"The big red fern grows {n} leaves."} for n in range(count)]
    json_lines(folder / "answers_gpt4.jsonl", answers)
    for name in ("001.png", "002.png"):
        if images:
            (folder / "images").mkdir(exist_ok=True)
            (folder / "images" / name).write_bytes(png())
    return folder


MULTI30K = {
    "en": ["A dog runs.", "Two men talk.", "A red bus."],
    "de": ["Ein Hund läuft.", "Zwei Männer reden.", "Ein roter Bus."],
    "fr": ["Un chien court.", "Deux hommes parlent.", "Un bus rouge."],
}


def multi30k(folder, split="test_2016_flickr", packed=True, images=True, **sentences):
    """Its folder `task1` with three captions, the last two of one photograph, as MSCOCO's are named."""
    names = ["1.jpg", "COCO_val2014_2.jpg#33", "COCO_val2014_2.jpg#44"]
    for language, lines in (MULTI30K | sentences).items():
        data = "".join(f"{line}\n" for line in lines).encode()
        path = folder / "raw" / (f"{split}.{language}.gz" if packed else f"{split}.{language}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data) if packed else data)
    (folder / "image_splits").mkdir(exist_ok=True)
    (folder / "image_splits" / f"{split}.txt").write_text("\n".join(names) + "\n")
    for name in ("1.jpg", "COCO_val2014_2.jpg"):
        if images:
            (folder / "images").mkdir(exist_ok=True)
            (folder / "images" / name).write_bytes(png())
    return folder


def cell(colour="red"):
    """An image in a table."""
    return {"bytes": png(colour), "path": None}


def mmstar_row(number=0, **keys):
    """A row of MMStar, its options in the question."""
    question = "Which is a plant?\nOptions: A: a fern, green, B: granite, C: a newt, D: none"
    kinds = {"category": "coarse perception", "l2_category": "image emotion", "meta_info": {"source": "x"}}
    return {"index": number, "question": question, "image": cell(), "answer": "A"} | kinds | keys


def mmbench_row(number=0, **keys):
    """A row of MMBench as the hub has it."""
    options = {"A": "fern", "B": "granite", "C": "newt", "D": "nan"}
    kinds = {"category": "attribute_recognition", "L2-category": "finegrained_perception", "hint": "nan"}
    return {"index": number, "question": "Which is a plant?", **options, "answer": "A"} | kinds | {"image": cell()} | keys


def ai2d_row(_number=0, **keys):
    """A row of AI2D."""
    return {"question": "Which is a plant?", "options": ["fern", "newt", "rock", "a"], "answer": "0", "image": cell()} | keys


def mathvista_row(number=0, **keys):
    """A row of MathVista with options."""
    about = {"task": "textbook question answering", "grade": "high school", "skills": ["arithmetic reasoning"], "context": "x"}
    kinds = {"question_type": "multi_choice", "answer_type": "text", "precision": None, "unit": None}
    asked = {"query": "Hint: say the letter.\nQuestion: How long?\nChoices:\n(A) 97\n(B) 102", "choices": ["97", "102"]}
    cells = {"image": "images/1.jpg", "decoded_image": cell(), "question": "How long?"}
    return {"pid": str(number), "answer": "102", "metadata": about} | kinds | asked | cells | keys


def mmvet_row(number=0, **keys):
    """A row of MM-Vet as the hub has it."""
    plain = {"question_id": f"v1_{number}", "question": "What is x?", "answer": "-1<AND>-5<OR>both"}
    return plain | {"image": cell(), "image_source": "x", "capability": "ocr,math"} | keys


def hallusionbench_row(number=0, **keys):
    """A row of HallusionBench: two questions of each figure."""
    place = {"set_id": "0", "figure_id": str(number // 2), "question_id": str(number % 2)}
    kinds = {"category": "VD", "subcategory": "chart", "visual_input": "1"}
    return kinds | place | {"question": "Is A taller?", "gt_answer": "1", "image": cell()} | keys


def hallusionbench_blind_row(number=0, **keys):
    """A row of HallusionBench without a figure, as the hub has it."""
    return hallusionbench_row(number % 2, category="VS", set_id=str(number // 2), visual_input="0", image=None) | keys


def hallusionbench_file(folder):
    """HallusionBench.json as it is published, with its figures: a set of each category, that of VS also without a figure."""
    keys = ("category", "subcategory", "visual_input", "set_id", "figure_id", "sample_note", "question_id", "question")
    keys += ("gt_answer_details", "gt_answer", "filename")
    rows = [
        ("VD", "chart", "1", "0", "0", "a", "0", "Is A taller?", "A is taller.", "1", "./hallusion_bench/VD/chart/0_0.png"),
        ("VD", "chart", "1", "0", "1", "a", "0", "Is A taller?", "B is taller.", "0", "./VD/chart/0_1.png"),
        ("VS", "map", "0", "1", "0", "b", "0", "Is C larger than D?", "Yes.", "1", None),
        ("VS", "map", "0", "1", "0", "b", "1", "Is D larger than C?", "No.", "0", None),
        ("VS", "map", "2", "1", "1", "b", "0", "According to the image, is C larger?", "No.", "0", "./VS/map/1_1.png"),
        ("VS", "map", "2", "1", "1", "b", "1", "According to the image, is D larger?", "Yes.", "1", "./VS/map/1_1.png"),
    ]
    for place in ("VD/chart/0_0.png", "VD/chart/0_1.png", "VS/map/1_1.png"):
        (folder / "hallusion_bench" / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / "hallusion_bench" / place).write_bytes(png())
    file = folder / "HallusionBench.json"
    file.write_text(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]))
    return file


def table_of(name, folder, split, rows=None):
    """The file of a benchmark in the hub's form; three made-up rows if none are given."""
    if split == "all":
        return [table_of(name, folder, one) for one in ("image", "non_image")]
    kind = "_blind_row" if split == "non_image" else "_row"
    rows = [globals()[f"{name}{kind}"](number) for number in range(3)] if rows is None else rows
    images = [f"image_{n}" for n in range(1, 8)] if name == "mmmu" else ["decoded_image" if name == "mathvista" else "image"]
    if name == "mmbench":
        split, _, config = split.partition("_")
        folder = folder / config
    return parquet(folder / f"{split}-00000-of-00001.parquet", rows, images)
