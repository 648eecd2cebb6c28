"""A run: it learns, it tells of it, and it takes nothing away from anybody."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_cot.checkpoints import folders, opening
from lora_cot.checkpoints.opening import find_adapter, open_model, saved_recipe
from lora_cot.data.collate import batch, encode
from lora_cot.data.images import open_image
from lora_cot.data.lengths import Kept
from lora_cot.data.shapes import make_sample
from lora_cot.engines.local import LocalEngine
from lora_cot.errors import AdapterError, DataError, RecipeError, RunError
from lora_cot.evaluation.ask import ask
from lora_cot.formats import FORMATS
from lora_cot.merging.merge import merge
from lora_cot.search.run import answer
from lora_cot.training.console import sample_counts
from lora_cot.training.losses import stage_loss, stage_sums
from lora_cot.training.run import train
from lora_cot.validation.show import mark_trained, spans
from tests.conftest import TRAINED, TRAINED_CHAT


def losses(folder, key="loss"):
    """The values of a key over a run's log."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def test_a_run_leaves_everything_one_needs(make_recipe, tmp_path, capsys):
    """Recipe with versions, adapter with recipe and processor, log, report; the adapter alone can be opened."""
    folder = train(make_recipe(tmp_path, "training.eval_strategy=steps", "training.eval_steps=2"), tmp_path)
    assert "<|assistant|>⟦<SUMMARY>" in capsys.readouterr().err, "the preview of a sample"
    assert "transformers" in saved_recipe(folder / "adapter").versions
    report = json.loads((folder / "report.json").read_text())
    (only,) = report["passes"]
    assert only["name"] == report["format"] == "four_stage" and only["steps"] == 4 and len(only["evaluations"]) == 2
    assert {"eval_loss", "eval_loss/CAPTION", "eval_accuracy", "eval_format_validity"} <= only["evaluations"][0].keys()
    assert {"loss/SUMMARY", "token_accuracy/CONCLUSION", "tokens_per_second", "peak_memory_gb"} <= only["last"].keys()
    page = (folder / "report.html").read_text()
    assert "Training loss by stage" in page and "Before" in page and "http://" not in page.split("<svg")[0]
    assert not (folder / ".owner").exists()
    opened = open_model(str(folder / "adapter"))
    assert "quantised (nf4)" in opened.said
    assert "quantised" not in open_model(str(folder), "none").said


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in ("llava", "t5_vision"))) for kind in TRAINED],
)
def test_twenty_steps_lower_the_loss_of_every_stage(make_recipe, make_base, tmp_path, kind):
    """QLoRA on a tiny random base of each kind learns; slow are those of a family that another stands for."""
    options = ("training.max_steps=20", "data.eval=[]")
    folder = train(make_recipe(tmp_path, f"model.base={make_base(kind)}", *options), tmp_path)
    for key in ("loss", "loss/SUMMARY", "loss/CAPTION", "loss/REASONING", "loss/CONCLUSION"):
        values = losses(folder, key)
        assert values[-1] < values[0] - 0.2, key


def mixed_data(folder, rows=8):
    """A source of rows of different lengths, every other one without its image."""
    lines = []
    for number in range(rows):
        sample = make_sample(number, "train", 0)
        (folder / f"{number}.png").write_bytes(sample.images[0])
        row = {"id": str(number), "question": sample.last.question, "stages": sample.last.stages}
        lines.append(row if number % 2 else row | {"image": f"{number}.png"})
    (folder / "mixed.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {"train": [{"source": "jsonl", "path": str(folder / "mixed.jsonl")}]}


@pytest.mark.parametrize(
    "kind", ["llava", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("mllama", "qwen2_vl", "qwen2_5_vl"))]
)
def test_accumulation_changes_nothing(make_recipe, make_base, tmp_path, kind):
    """Four batches of one are one batch of four: the same losses and weights, whatever the lengths, with images or not."""
    runs = []
    for name, size, steps in (("one", 4, 1), ("four", 1, 4)):
        options = (
            f"name={name}",
            f"model.base={make_base(kind)}",
            f"training.per_device_train_batch_size={size}",
            f"training.gradient_accumulation_steps={steps}",
            "training.optim=sgd",
            "training.learning_rate=1",
            "training.max_grad_norm=0",
        )
        folder = train(make_recipe(tmp_path, *options, data=mixed_data(tmp_path)), tmp_path)
        weights = load_file(folder / "adapter" / "adapter_model.safetensors")
        runs.append((losses(folder), losses(folder, "loss/REASONING"), weights))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-4)
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-4)
    moved = [weight for name, weight in runs[0][2].items() if "lora_B" in name]
    assert min(weight.abs().max() for weight in moved) > 1e-4, "nothing was learned that could differ"
    torch.testing.assert_close(runs[1][2], runs[0][2], atol=1e-5, rtol=1e-3)


def test_the_loss_is_transformers_own_where_weights_are_one(tiny):
    """With every weight 1 our loss is the mean cross-entropy; a weight scales its stage's share alone."""
    log_probs = -torch.rand(2, 5)
    stages = torch.tensor([[-1, 0, 0, 1, -1], [-1, -1, 1, 1, 1]])
    trained = stages >= 0
    ones = stage_loss(log_probs, stages, torch.ones(2), trained.sum())
    torch.testing.assert_close(ones, -log_probs[trained].mean())
    weighted = stage_loss(log_probs, stages, torch.tensor([0.0, 2.0]), trained.sum())
    torch.testing.assert_close(weighted, -2 * log_probs[stages == 1].sum() / 6)
    sums = stage_sums(log_probs, torch.ones(2, 5), stages, 2)
    assert sums[:, 2].tolist() == [2, 4] and sums[:, 1].tolist() == [2, 4]
    torch.testing.assert_close(sums[:, 0], torch.stack([-log_probs[stages == k].sum() for k in (0, 1)]))


def test_trained_weights_keep_their_precision(make_recipe, tmp_path):
    """TRL casts what is trained on a 4-bit base to bf16; ours stays float32."""
    weights = load_file(train(make_recipe(tmp_path), tmp_path) / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_training_goes_on_from_an_adapter(make_recipe, tmp_path):
    """The second run begins where the first one ended."""
    first = train(make_recipe(tmp_path, "training.max_steps=10"), tmp_path)
    second = train(make_recipe(tmp_path, "name=more", f"model.adapter={first / 'adapter'}"), tmp_path)
    assert losses(second)[0] < losses(first)[0] - 0.1


def test_early_stopping_and_the_best_checkpoint(make_recipe, tmp_path):
    """With a learning rate of zero nothing gets better: the run stops, and the best checkpoint is what is kept."""
    options = ["training.learning_rate=0", "training.max_steps=50", "training.early_stopping_patience=2"]
    options += ["training.eval_strategy=steps", "training.eval_steps=1", "training.save_strategy=steps"]
    options += ["training.save_steps=1", "training.load_best_model_at_end=true", "training.metric_for_best_model=loss"]
    folder = train(make_recipe(tmp_path, *options, "training.eval_generations=0"), tmp_path)
    assert json.loads((folder / "report.json").read_text())["passes"][0]["steps"] == 3


def test_rows_that_reach_nothing_that_is_trained_are_refused_first(make_recipe, tmp_path):
    """Text-only rows give the vision encoder's adapters no gradient: that is said before anything is trained."""
    rows = tmp_path / "text.jsonl"
    stages = dict.fromkeys(("SUMMARY", "CAPTION", "REASONING", "CONCLUSION"), "x")
    rows.write_text("".join(json.dumps({"id": str(i), "question": "q", "stages": stages}) + "\n" for i in range(8)))
    data = {"train": [{"source": "jsonl", "path": str(rows)}]}
    recipe = make_recipe(tmp_path, "lora.parts=[vision_encoder]", "training.max_steps=50", data=data)
    with pytest.raises(DataError, match="8 samples have no image, 0 among them, and only what sees images is trained"):
        train(recipe, tmp_path)


def test_a_folder_in_use_or_taken_is_left_alone(make_recipe, tmp_path, monkeypatch):
    """A run's folder belongs to one process, and to one run; what a dead process left of a lock does not count."""
    monkeypatch.setattr(folders, "LOCK_PATIENCE", 0.1)
    recipe, folder = make_recipe(tmp_path), tmp_path / "tiny"
    hold = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); sys.stdin.read()"
    folder.mkdir()
    (folder / ".owner").write_text("process 7 on far")
    owner = subprocess.Popen([sys.executable, "-c", hold, str(folder / ".lock")], stdin=-1, stdout=-1)
    owner.stdout.readline()
    with pytest.raises(RunError, match="in use by process 7 on far"):
        train(recipe, tmp_path)
    owner.kill()
    owner.wait()
    train(recipe, tmp_path)
    before = (folder / "report.json").read_text()
    with pytest.raises(RunError, match="a finished run in this folder already"):
        train(recipe, tmp_path)
    assert (folder / "report.json").read_text() == before


def test_a_sample_that_is_too_long_is_refused_whole(make_recipe, tmp_path):
    """Nothing is cut: the sample, its length and the limit are named."""
    told = r"data\.train · train-0-0 · 131 tokens \(4 of images\) are more than training\.max_length=20 · raise it"
    with pytest.raises(DataError, match=told):
        train(make_recipe(tmp_path, "training.max_length=20"), tmp_path)


def test_bad_rows_are_found_before_anything_is_trained(make_recipe, tmp_path):
    """A damaged image and a row without stages are reported together, by id, and no checkpoint is begun."""
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    stages = dict.fromkeys(("SUMMARY", "CAPTION", "REASONING", "CONCLUSION"), "x")
    rows = [{"id": f"r{n}", "question": "q", "stages": stages} for n in range(6)]
    rows[2]["image"] = rows[4]["image"] = "bad.png"
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    data = {"train": [{"source": "jsonl", "path": str(path)}]}
    with pytest.raises(DataError, match=r"(?s)r2 · .*bad\.png.*r4 · .*bad\.png"):
        train(make_recipe(tmp_path, data=data), tmp_path)
    del rows[3]["stages"]["CAPTION"]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="r3 · no text for CAPTION"):
        train(make_recipe(tmp_path, data=data), tmp_path)
    assert not (tmp_path / "tiny" / "checkpoints").exists()


def test_no_data_is_an_error(make_recipe, tmp_path):
    """A recipe without a source trains nothing, and says so before a model is loaded."""
    with pytest.raises(DataError, match=r"data.train · there is nothing to train on"):
        train(make_recipe(tmp_path, data={"train": []}), tmp_path)


def test_what_became_of_long_samples_is_told_of_held_out_ones_too():
    """Those that are dropped, and those whose images are made smaller."""
    one, two = (make_sample(number, "train", 0) for number in range(2))
    text = sample_counts(Kept([one, two], [5, 7], [1.0, 0.9], ["a"]), Kept([one], [5], [0.5], ["b"]))
    assert "2 samples to train on" in text and "of 5 to 7 tokens; 1 held out" in text
    assert "2 dropped, too long: a, b" in text and "the images of 2 samples are made smaller" in text


@pytest.mark.parametrize("name", TRAINED_CHAT)
def test_the_preview_marks_what_is_trained(load_tiny, name):
    """The run shows one sample with its answer between marks."""
    encoder = load_tiny(name).encoder(FORMATS["four_stage"])
    text = mark_trained(spans(encode(encoder, make_sample(0, "train", 0), True), encoder))
    assert text.count("⟦") == 1 and "<|assistant|>⟦<SUMMARY>" in text and text.endswith("</CONCLUSION><|end|>⟧")


def test_the_published_examples_train_and_a_photograph_is_answered(make_recipe, tmp_path, shared_data):
    """Two steps on LLaVA-CoT's own examples in its own record form; then a question about a photograph."""
    examples = json.loads(shared_data("llavacot_readme_examples.json").read_text())
    rows = [
        {
            "id": str(number),
            "image": row["image"],
            "conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": row["output"]}],
        }
        for number, row in enumerate(examples)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    source = {"source": "llava_cot_100k", "path": str(path), "image_root": str(shared_data("waterview.jpg").parent)}
    recipe = make_recipe(tmp_path, "training.max_steps=2", "training.per_device_train_batch_size=1", data={"train": [source]})
    folder = train(recipe, tmp_path)
    assert len(losses(folder)) == 2
    photograph = shared_data("waterview.jpg")
    assert open_image(photograph).size[0] > 500
    search = {"strategy": "stage_beam", "candidates": 2}
    completion = ask(open_model(str(folder)), photograph, "Where is this?", search, trace=tmp_path / "trace.html")
    assert completion.generated_tokens and "SUMMARY" in (tmp_path / "trace.html").read_text()
    assert find_adapter(str(folder)) == folder / "adapter"


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["training.eval_strategy=steps", "data.eval=[]"], "nothing to evaluate on"),
        (["training.early_stopping_patience=2"], r"needs training\.metric_for_best_model"),
        (["training.optim=adamw_foo"], "adamw_foo"),
        (["training.load_best_model_at_end=true", "training.eval_strategy=steps"], "save and eval strategy to match"),
        (["quantization.bnb_4bit_compute_dtype=float17"], "float17"),
    ],
)
def test_settings_that_contradict_each_other_are_found_first(make_recipe, tmp_path, overrides, match):
    """What the libraries notice late, or with a traceback, is an error of the recipe before anything is trained."""
    with pytest.raises(RecipeError, match=match):
        train(make_recipe(tmp_path, *overrides), tmp_path)
    assert not (tmp_path / "tiny" / "checkpoints").exists()


def test_held_out_rows_are_checked_too(make_recipe, tmp_path):
    """A held-out row without stages is found before training, not at the first evaluation."""
    path = tmp_path / "held_out.jsonl"
    path.write_text(json.dumps({"id": "h", "question": "q", "answer": "a"}))
    data = {"train": [{"source": "shapes", "limit": 4}], "eval": [{"source": "jsonl", "path": str(path)}]}
    with pytest.raises(DataError, match=r"data\.eval · h · no text for SUMMARY"):
        train(make_recipe(tmp_path, data=data), tmp_path)


def test_an_adapter_of_another_base_is_refused(make_recipe, tmp_path):
    """Going on from an adapter that does not fit says so."""
    first = train(make_recipe(tmp_path), tmp_path)
    weights = first / "adapter" / "adapter_model.safetensors"
    save_file({name: torch.zeros(*(size + 1 for size in t.shape)) for name, t in load_file(weights).items()}, weights)
    with pytest.raises(AdapterError, match="does not fit the base"):
        train(make_recipe(tmp_path, "name=second", f"model.adapter={first}"), tmp_path)


def outputs_of(backbone, cot_format):
    """Loss and logits of two samples that were trained on, as one pass of a format writes them."""
    backbone.use_adapter()
    encoder = backbone.encoder(cot_format)
    rows = [encode(encoder, make_sample(number, "train", 0), True) for number in range(2)]
    inputs = batch(rows, backbone.processor, backbone.family.image_inputs)
    inputs.pop("stage_ids")
    with torch.inference_mode():
        outputs = backbone.model(**backbone.place(inputs))
    return outputs.loss, outputs.logits


def answers_of(opened):
    """What each pass writes for a held-out sample whose earlier stages are gold."""
    cot_format, sample = opened.recipe.format.build(), make_sample(0, "test", 0)
    engine = LocalEngine(opened.backbone, cot_format)
    return [answer(engine.for_pass(one), one, [sample], opened.recipe.search)[0].text for one in cot_format.passes]


@pytest.mark.parametrize("kind", ["t5_vision", *(pytest.param(kind, marks=pytest.mark.slow) for kind in TRAINED_CHAT)])
def test_two_stages_are_two_adapters_on_one_base(make_recipe, make_base, tmp_path, monkeypatch, kind):
    """Each pass leaves an adapter; both answer on one base, loaded once, and their merged models answer as they do."""
    options = ("training.max_steps=2", "training.learning_rate=3e-2", "format.name=two_stage")
    search = {"stages": {"RATIONALE": {"max_new_tokens": 12}, "ANSWER": {"max_new_tokens": 12}}}
    run = train(make_recipe(tmp_path, f"model.base={make_base(kind)}", *options, search=search), tmp_path)
    passes = json.loads((run / "report.json").read_text())["passes"]
    assert [(one["name"], one["steps"]) for one in passes] == [("rationale", 2), ("answer", 2)]
    weights = [load_file(run / "adapter" / name / "adapter_model.safetensors") for name in ("rationale", "answer")]
    assert weights[0].keys() == weights[1].keys()

    loaded, load = [], opening.load_backbone
    monkeypatch.setattr(opening, "load_backbone", lambda *given: loaded.append(load(*given)) or loaded[-1])
    assert "quantised" in open_model(str(run)).said and len(loaded) == 1
    tuned = open_model(str(run), "none")
    first, second = (tuned.backbone.for_pass(name) for name in ("rationale", "answer"))
    assert first.model is second.model is tuned.backbone.model and len(loaded) == 2
    rationale, conclusion = tuned.recipe.format.build().passes
    for one, own, other in ((rationale, first, second), (conclusion, second, first)):
        (loss, logits), (worse, others), (_, again) = (outputs_of(backbone, one) for backbone in (own, other, own))
        assert loss < worse - 0.05 and (logits - others).abs().max() > 1e-2
        torch.testing.assert_close(again, logits, atol=0, rtol=0)

    done = merge(run, onto="full")
    assert [report.folder for report in done.reports] == [str(run / "merged" / name) for name in ("rationale", "answer")]
    merged = open_model(str(done.folder))
    for one, backbone in ((rationale, first), (conclusion, second)):
        logits, expected = (outputs_of(model, one)[1] for model in (merged.backbone.for_pass(one.name), backbone))
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert answers_of(merged) == answers_of(tuned)


@pytest.mark.parametrize("kind", ["mllama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llava", "qwen2_vl"))])
def test_a_bfloat16_base_keeps_its_precision_through_training(make_recipe, make_base, tmp_path, kind):
    """After training on a 4-bit base in bfloat16, every part is as it was loaded, and the adapter is float32."""
    options = (f"model.base={make_base(kind)}", "model.dtype=bfloat16", "training.max_steps=1", "data.eval=[]")
    run = train(make_recipe(tmp_path, *options), tmp_path)
    (only,) = json.loads((run / "report.json").read_text())["passes"]
    precision = {part["part"]: part["precision"] for part in only["parts"]}
    assert precision.pop("language_model") == "bfloat16/nf4" and set(precision.values()) == {"bfloat16"}
    assert {tensor.dtype for tensor in load_file(run / "adapter" / "adapter_model.safetensors").values()} == {torch.float32}
