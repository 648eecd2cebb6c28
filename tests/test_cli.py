"""The command line as users meet it: exit codes, what goes to which stream, mistakes met before anything is loaded."""

import io
import json
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from lora_cot.cli import main
from lora_cot.commands.options import search_keys
from lora_cot.data.shapes import make_sample
from lora_cot.errors import RunError
from tests import published

ROOT = Path(__file__).resolve().parents[1]
WHOLE = "<SUMMARY> s </SUMMARY> <CAPTION> c </CAPTION> <REASONING> r </REASONING> <CONCLUSION> B </CONCLUSION>"
HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "matplotlib")


def python(*arguments):
    """A fresh interpreter, as a user starts one."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=env, timeout=60)


def command(*arguments):
    """The same without an interpreter of its own: what it says and its exit code."""
    said, told = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(told), warnings.catch_warnings():
        patch.setattr(sys, "argv", ["lora-cot", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    return subprocess.CompletedProcess(sys.argv, end.value.code or 0, said.getvalue(), told.getvalue())


def refusal(*arguments):
    """Lines on standard error of a command whose input is wrong; it has said nothing else."""
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    return done.stderr.splitlines()


@pytest.fixture
def predictions(tmp_path):
    """A file of one complete text, two partial ones and one without tags."""
    path = tmp_path / "predictions.jsonl"
    texts = [WHOLE, WHOLE[:30], WHOLE[:30], "B"]
    path.write_text("\n".join(json.dumps({"id": n, "prediction": text}) for n, text in enumerate(texts)), "utf-8")
    return path


def test_the_package_is_light_to_import():
    """Neither the package nor its command line nor its recipes need torch, or anything as heavy, to be imported."""
    script = "import sys, lora_cot, lora_cot.cli, lora_cot.recipe; print(*sys.modules)"
    done = python("-c", script)
    loaded = done.stdout.split()
    assert "lora_cot.recipe.schema" in loaded, done.stderr
    assert set(loaded) & set(HEAVY) == set()


def test_help_answers_without_torch():
    """Help lists all verbs, and nothing heavy is imported for it."""
    done = python("-X", "importtime", "-m", "lora_cot.cli", "--help")
    assert done.returncode == 0
    assert all(
        f" {verb} " in done.stdout for verb in ("train", "merge", "eval", "score", "ask", "validate", "annotate", "push")
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert imported & set(HEAVY) == set()


@pytest.mark.parametrize("verb", ["train", "merge", "push", "eval", "ask", "validate"])
def test_every_verb_has_help(verb):
    """The help of a verb says what it does and takes."""
    done = command(verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f" {verb} [OPTIONS]" in done.stdout


def test_a_process_ends_as_the_function_does(predictions):
    """Exit code and streams are those of the interpreter that a user starts."""
    for arguments in (["validate", predictions, "--json"], ["validate", predictions.with_name("none.yaml")]):
        ends = [python("-m", "lora_cot.cli", *arguments), command(*arguments)]
        process, function = ((end.returncode, end.stdout, end.stderr) for end in ends)
        assert process == function


def test_validate_counts_outcomes_as_one_json_object(predictions):
    """With --json, standard output is one object and nothing else."""
    done = command("validate", predictions, "--json")
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)
    counts = json.loads(done.stdout)
    faults = {"<CAPTION> is missing": 2, "no stage tag in the text": 1}
    assert counts == {"rows": 4, "complete": 1, "partial": 2, "none": 1, "faults": faults}


def test_validate_counts_outcomes_for_people(predictions):
    """Without --json there is a line for each outcome and each fault; another format counts otherwise."""
    done = command("validate", predictions, "--format", "direct")
    assert done.stdout.split() == ["rows", "4", "complete", "4", "partial", "0", "none", "0"]
    assert len(done.stdout.splitlines()) == 4


def test_validate_refuses_an_unknown_format(predictions):
    """The error names the nearest format and all there are."""
    (line,) = refusal("validate", predictions, "--format", "four_stages")
    assert line.startswith("error: --format · no format 'four_stages' · did you mean 'four_stage'? allowed: answer_first, ")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["none.jsonl"], "none.jsonl · no such data file"),
        (["none.yaml"], "none.yaml · no such recipe file"),
        (["predictions.jsonl", "--field", "predicted"], "line 1 · predicted · no text under this key · did you mean"),
    ],
)
def test_validate_refuses_what_it_cannot_read(predictions, arguments, match):
    """A missing file or key is one line that names it."""
    (line,) = refusal("validate", predictions.parent / arguments[0], *arguments[1:])
    assert match in line


def test_validate_accepts_a_recipe(tmp_path, monkeypatch):
    """A recipe whose rows can be trained on is valid, also for programs; one without rows is not, and says why."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text("name: good\nmodel: {base: mini/llava}\ndata: {train: [{source: shapes, limit: 8}]}\n")
    done = command("validate", path, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["recipe"], report["valid"], report["splits"]["train"]["used"]) == (0, "good", True, 8)
    path.write_text("name: empty\nmodel: {base: mini/llava}\n")
    done = command("validate", path)
    assert done.returncode == 1 and "data.train · there is nothing to train on" in done.stdout
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_validate_reports_bad_rows(tmp_path, monkeypatch):
    """Findings go to a file that is named; with --json there is one object; a recipe that would not train ends with 1."""
    monkeypatch.chdir(tmp_path)
    rows = [{"id": "a", "question": "?", "answer": "B"}, {"id": "b", "question": "?"}]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"source": "jsonl", "path": "rows.jsonl"}
    recipe = {"name": "two", "model": {"base": "mini/llava"}, "format": {"name": "direct"}, "data": {"train": [source]}}
    Path("recipe.yaml").write_text(json.dumps(recipe))
    done = command("validate", "recipe.yaml", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, len(done.stdout.splitlines()), report["valid"]) == (1, 1, False)
    assert report["checks"]["empty"]["fails"] == 1 and report["bad_rows"] == "two.bad.jsonl"
    (line,) = Path("two.bad.jsonl").read_text().splitlines()
    expected = {"split": "train", "source": 0, "row": "rows.jsonl line 2", "id": "b", "check": "empty", "severity": "fails"}
    assert json.loads(line) == expected | {"reason": "the row has no answer · give it 'stages' or 'answer'"}
    done = command("validate", "rows.jsonl", "--format", "direct", "--bad", "other.jsonl")
    assert done.returncode == 1 and Path("other.jsonl").is_file() and "rows.jsonl line 2 (b) · the row has no" in done.stdout


def test_a_field_makes_any_file_one_of_predictions(tmp_path):
    """A file with questions and answers is counted as predictions if a field is named."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": WHOLE}))
    done = command("validate", path, "--field", "answer", "--json")
    assert (done.returncode, json.loads(done.stdout)["complete"]) == (0, 1)


@pytest.mark.slow
def test_validate_shows_samples(tmp_path, monkeypatch):
    """--show prints samples and writes a page; it needs a recipe."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("name: good\nmodel: {base: mini/llava}\ndata: {train: [{source: shapes, limit: 8}]}\n")
    done = command("validate", "recipe.yaml", "--show", "2")
    assert done.returncode == 0 and done.stdout.count("⟦<SUMMARY>") == 2 and "<image>×4" in done.stdout
    assert Path("good.samples.html").is_file()
    done = command("validate", "recipe.yaml", "--show", "1", "--json", "--html", "page.html")
    assert json.loads(done.stdout)["html"] == "page.html" and Path("page.html").is_file()
    Path("rows.jsonl").write_text("{}")
    assert refusal("validate", "rows.jsonl", "--show", "1") == [
        "error: --show · a file has no processor to show samples with · name a recipe"
    ]


@pytest.mark.parametrize("verb", ["validate", "train"])
def test_a_broken_recipe_is_refused_whole(tmp_path, verb):
    """Every mistake has one line on standard error, with file and dotted key; nothing goes to standard output."""
    path = tmp_path / "recipe.yaml"
    path.write_text("""
name: broken
model: {bas: mini/llava}
data: {train: [{source: shapes, limit: 0}]}
search: {strategy: "stage\\nbeam", stages: {CAPTIONS: {}}}
evalution: {}
""")
    lines = refusal(verb, path)
    keys = ["model.base", "model.bas", "data.train.0.limit", "search.strategy", "search.stages.CAPTIONS", "evalution"]
    assert sorted(lines) == sorted(line for line in lines if line.startswith(f"error: {path} · "))
    assert sorted(line.split(" · ")[1] for line in lines) == sorted(keys)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--strategy", "stage_bean", "no strategy 'stage_bean' · did you mean 'stage_beam'? allowed: adaptive, best_of_n, "),
        ("--format", "cot", "no format 'cot' · allowed: answer_first, answer_only, direct, "),
        ("--scorer", "selfjudge", "no scorer 'selfjudge' · did you mean 'self_judge'? allowed: logprob, reward, self_judge"),
        ("--judge-adapter", "no", "'no' is neither on nor off"),
        ("--set", "keep", "an override is written key=value"),
        ("--set", "kep=2", "unknown key · did you mean 'keep'?"),
        ("--set", "keep=two", "Input should be a valid integer"),
        ("--quantization", "nf8", "no quantisation 'nf8' · did you mean 'nf4'? allowed: auto, nf4, none"),
    ],
)
def test_eval_refuses_unknown_names_before_a_model_is_loaded(option, value, expected):
    """The option is named, not the model, which does not exist either."""
    (line,) = refusal("eval", "no/such/model", option, value)
    assert line.startswith(f"error: {option}") and f" · {expected}" in line


def test_any_key_of_a_search_can_be_set():
    """Beside the options that some have; a key that is told twice is refused, whichever way."""
    given = search_keys("stage_beam", 8, None, "off", ["keep=2", "swires.mean=-1e-1", "stages.CAPTION.candidates=3"])
    assert given == {
        "strategy": "stage_beam",
        "candidates": 8,
        "judge_adapter": False,
        "keep": 2,
        "swires.mean": -0.1,
        "stages.CAPTION.candidates": 3,
    }
    for option, settings in ((None, ["keep=1", "keep=2"]), (3, ["candidates=4"])):
        with pytest.raises(RunError, match=r"--set (keep|candidates) · it is given twice"):
            search_keys(None, option, None, None, settings)
    keys = {"interleave.selector": "random", "interleave.n": 4}
    assert search_keys(None, None, None, None, ["interleave.n=4"], "random") == keys


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["ask", "eval"])
def test_patches_are_shown_only_where_they_can_be(verb, make_base, tmp_path):
    """Told before any weights are loaded, and before a server is asked."""
    (image := tmp_path / "image.png").write_bytes(make_sample(0, "test", 0).images[0])
    rest = (image, "What is it?") if verb == "ask" else ("--benchmark", "shapes")
    (line,) = refusal(verb, make_base("mllama"), *rest, "--interleave", "attention")
    assert "search.interleave · patches of the family mllama cannot be shown again" in line
    (line,) = refusal(verb, "no/such/model", *rest, "--interleave", "boxes", "--engine", "http://127.0.0.1:9/v1")
    assert "search.interleave · a model behind a server can be shown no patches" in line


def test_a_selector_that_is_not_there_is_refused():
    """With the nearest name."""
    with pytest.raises(RunError, match="no selector 'atention': did you mean 'attention'"):
        search_keys(None, None, None, None, None, "atention")


def test_ask_refuses_a_missing_image_before_a_model_is_loaded(tmp_path):
    """The image is named, not the model, which does not exist either."""
    path = tmp_path / "none.png"
    assert refusal("ask", "no/such/model", path, "What is it?") == [f"error: {path} · no such image file"]


@pytest.fixture
def scienceqa(tmp_path):
    """Options of `score` for two questions of ScienceQA, one answered, and a prediction for none."""
    problems = {number: published.problem(split="test") for number in ("1", "2")}
    folder = published.scienceqa(tmp_path / "data", problems, {"test": ["1", "2", "3"]})
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"id": "1", "output": "The answer is (A)."}\n{"id": "9", "output": "B"}\n')
    return ["--benchmark", "scienceqa", "--predictions", path, "--data", folder, "--split", "test"]


def test_score_judges_what_there_is_and_lists_the_rest(scienceqa):
    """Gaps are no failure; for programs each class has its counts; people read the same figures."""
    done = command("score", *scienceqa, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert (report["NAT"], report["SOC"]) == ({"correct": 1, "total": 1}, {"correct": 0, "total": 0})
    assert (report["Avg"], report["unanswered"]) == ({"correct": 1, "total": 1}, 0)
    for told in ("no prediction: 1\n  2\n", "no question: 1\n  9\n", "no problem: 1\n  pid_splits.json · 3 · "):
        assert told in done.stderr
    plain = command("score", *scienceqa)
    assert plain.returncode == 0 and "  NAT" in plain.stdout and "of 1" in plain.stdout


@pytest.mark.parametrize("name", ["d.yaml", "d.json"])
def test_validate_reads_demonstrations(tmp_path, name):
    """Texts and regions are counted; a box outside its image is named."""
    (tmp_path / "a.png").write_bytes(published.png())
    one = {"image": "a.png", "question": "?", "steps": ["It is.", [0, 0, 8, 8], "So."], "answer": "red"}
    path = tmp_path / name
    path.write_text(json.dumps({"demonstrations": [one]}))
    done = command("validate", path, "--json")
    assert done.returncode == 0 and json.loads(done.stdout) == {"demonstrations": 1, "texts": 2, "regions": 1}
    path.write_text(json.dumps({"demonstrations": [one | {"steps": [[0, 0, 9, 8]]}]}))
    (line,) = refusal("validate", path)
    assert line.startswith(f"error: {path} · demonstrations.0 · steps.0 · the box [0, 0, 9, 8] is not inside its image of 8×8")


def test_score_of_m3cots_own_form_needs_no_data(tmp_path):
    """By domain, topic and overall, with counts."""
    row = {key: value for key, value in published.m3cot_record().items() if key not in ("image", "question", "context")}
    path = published.json_lines(tmp_path / "p.jsonl", [row | {"messages": ["Which?", "[Answer] (A)"]}])
    done = command("score", "--benchmark", "m3cot", "--predictions", path, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and done.stderr == ""
    assert all(report[name] == {"correct": 1, "total": 1} for name in ("science", "natural-science", "Avg"))


def test_score_is_light(scienceqa):
    """It needs neither torch nor a model."""
    arguments = ["lora-cot", "score", *map(str, scienceqa)]
    script = (
        f"import sys; sys.argv = {arguments!r}\nfrom lora_cot.cli import app\napp(standalone_mode=False)\nprint(*sys.modules)"
    )
    done = python("-c", script)
    assert done.returncode == 0 and set(done.stdout.split()) & set(HEAVY) == set(), done.stderr


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--benchmark", "scienceqs", "no benchmark 'scienceqs' · did you mean 'scienceqa'?"),
        ("--split", "dev", "scienceqa has no split 'dev' · allowed: test, val, train"),
        ("--rationale", "LEA", "no rationale 'LEA' · did you mean 'LE'?"),
    ],
)
def test_score_refuses_unknown_names(scienceqa, option, value, expected):
    """The option is named."""
    (line,) = refusal("score", *scienceqa, option, value)
    assert line.startswith(f"error: {option} · {expected}")
