"""README, docs, CONTRIBUTING, the list of recipes: every command is run, or checked as far as it goes; links lead somewhere.

A block or command of a kind that is not known here fails. What is only checked is in `ONLY_CHECKED`, with the reason.
"""

import ast
import importlib
import importlib.util
import itertools
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

import lora_cot
from lora_cot import cli, plan
from lora_cot.commands.options import search_keys
from lora_cot.data.jsonl import JsonlRow
from lora_cot.recipe import load_recipe
from lora_cot.recipe.schema import Recipe
from tests import published
from tests.conftest import ROOT
from tests.documents import PAGES, anchors, blocks, commands, links, mentioned

VERBS = typer.main.get_command(cli.app).commands
MINI = "recipes/mini/llava_four_stage.yaml"
MINI_RUN = "runs/mini-llava-four-stage"
STANDS_FOR = {"RECIPE": MINI, "RECIPE_OR_FILE": MINI, "MODEL": MINI_RUN, "RUN": MINI_RUN}
"""What a word in capitals is, where a command is tried."""
ABLATIONS = {"diffusion.md": "recipes/flan_alpaca_base/scienceqa_diffusion_8gb.yaml"}
"""Which recipe a page's blocks of overrides are for."""

ONLY_CHECKED = {
    r"^(pip|make|vllm|torchrun) ": "installs something, or runs the tests, or another program",
    r"^curl ": "tests/serving/test_docs.py runs them, all that are marked",
    r"^lora-cot serve ": "does not end by itself: tests/serving/test_docs.py starts one",
    r"--engine http": "needs a server: tests/engines/test_opening.py",
    r"--(teacher|judge) http": "needs a server: tests/annotation/, tests/evaluation/test_judging.py",
    r"--data Lin-Chen": "published files: tests/data/test_evaluation_sets.py",
    r"compare greedy.jsonl": "takes evaluations of some strategies: tests/evaluation/test_comparing.py",
    r"^accelerate launch .*(--use_deepspeed|scienceqa|_7b/)": "tests/training/test_deepspeed.py; published weights and data",
    r"runs/mine-7b": "published weights",
}
"""Commands that are not run, and why."""
FAST = r"^lora-cot (score|validate predictions)"
"""Commands that load no model: run by `make test`."""


BLOCKS = [block for page in PAGES for block in blocks(page)[0]]
COMMANDS = [command for block in BLOCKS for command in commands(block)]
MENTIONED = [command for page in PAGES for command in mentioned(page, blocks(page)[1])]


def meant(words):
    """The words with what the capitals stand for."""
    whole = [STANDS_FOR.get(word, word) for word in words]
    return [re.sub(r"^RUN/", MINI_RUN + "/", word) for word in whole]


def reason_not_to_run(command):
    """Why it is only checked; None if it is run."""
    return next((reason for pattern, reason in ONLY_CHECKED.items() if re.search(pattern, command.text)), None)


# What can be seen of a command without running it.


def check_verb(verb, arguments, mine=()):
    """A line of `lora-cot`: its options and arguments, its recipe with the overrides, its keys of a search."""
    values = VERBS[verb].make_context(verb, meant(arguments)).params
    recipe = values.get("recipe") or values.get("path")
    if str(recipe).endswith(".yaml") and str(recipe) not in mine:
        load_recipe(recipe, values.get("overrides") or [])
    if "settings" in values:
        names = ("strategy", "candidates", "scorer", "judge_adapter", "settings", "interleave")
        search_keys(*(values[name] for name in names))


def check_launch(arguments, mine):
    """A line of `accelerate launch`: its own options, the files that it names, and what it launches."""
    from accelerate.commands.launch import launch_command_parser

    options = launch_command_parser().parse_args(arguments)
    if options.deepspeed_config_file is not None:
        json.loads((ROOT / options.deepspeed_config_file).read_text())
    if options.module:
        assert importlib.util.find_spec(options.training_script)
        check_verb(*options.training_script_args[:1], options.training_script_args[1:], mine)
    elif options.training_script != "SCRIPT":
        check_script([options.training_script, *options.training_script_args], mine)


def check_script(words, mine=()):
    """A line of `python`: `train.py` and `merge.py` are verbs; others have their options in their source, or share them."""
    if words[0] in ("train.py", "merge.py"):
        return check_verb(words[0].removesuffix(".py"), words[1:], mine)
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1])
        return None
    source = (ROOT / words[0]).read_text()
    if "command_line(__doc__)" in source:
        source += (ROOT / "benchmarks" / "measuring.py").read_text()
    assert [word for word in words[1:] if word.startswith("--") and f'"{word}"' not in source] == []


def check_pip(words):
    """Requirements: this package with extras that exist, files that exist, or torch."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for before, word in itertools.pairwise(words):
        if before == "-c":
            assert (ROOT / word).is_file()
        elif word not in ("-c", "-e", "-w", "--no-deps", "torch", ".") and before != "-w":
            found = re.fullmatch(r"(?:\.|lora_cot)\[([\w,]+)\]", word)
            assert found and set(found[1].split(",")) <= set(extras), word


def check(command, mine=()):
    """All that can be seen of a command without running it."""
    program, *words = command.words
    if program == "lora-cot":
        check_verb(words[0], words[1:], mine)
    elif program == "accelerate":
        assert words[0] == "launch"
        check_launch(meant(words[1:]), mine)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        options = get_args_parser().parse_args(words)
        check_script([options.training_script, *options.training_script_args], mine)
    elif program == "python":
        check_script(words, mine)
    elif program == "pip":
        check_pip(words)
    elif program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M)
    elif program == "vllm":
        plugin = dict(itertools.pairwise(words)).get("--reasoning-parser-plugin")
        assert plugin is None or (ROOT / plugin).is_file()
    else:
        assert program == "curl" and command.marked, "no rule for this command"


def written(page):
    """Recipes that a page has its reader write: path by the line above the block."""
    found = {}
    for block in blocks(page)[0]:
        name = re.fullmatch(r"`(\S+\.yaml)`:", block.before)
        found |= {name[1]: block.text} if name else {}
    return found


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_one(command, monkeypatch):
    """Verbs, options, recipes, overrides, scripts, targets and files of every command exist."""
    monkeypatch.chdir(ROOT)
    check(command, written(command.page))


@pytest.mark.parametrize("command", MENTIONED, ids=str)
def test_a_command_in_a_text_is_one(command, monkeypatch):
    """It may leave out what it needs; what it has exists."""
    monkeypatch.chdir(ROOT)
    program, *words = command.words
    if program == "lora-cot" and words != ["--help"]:
        options = {name for parameter in VERBS[words[0]].params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= options
    elif command.text not in ("lora-cot --help", "accelerate launch", "kill -TERM -PGID"):
        check(command)


def test_every_verb_is_told():
    """As a command of README, and as a function."""
    text = (ROOT / "README.md").read_text("utf-8")
    functions = set(re.search(r"`from lora_cot import ([^`]+)`", text)[1].replace("\n", " ").split(", "))
    assert functions == set(lora_cot.__all__) - {"LoraCotError"}
    assert set(VERBS) <= {word.removesuffix(".py") for one in COMMANDS if one.page.name == "README.md" for word in one.words}


def test_what_is_only_checked_is_there():
    """No reason stands for nothing, and the tests that it names are there."""
    texts = [command.text for command in COMMANDS]
    assert [pattern for pattern in ONLY_CHECKED if not any(re.search(pattern, text) for text in texts)] == []
    named = re.findall(r"[\w/]+(?:\.py|/)(?!\w)", " ".join(ONLY_CHECKED.values()))
    assert named and [name for name in named if not (ROOT / name).exists()] == []


# Blocks that are no commands.


def check_recipe(text, folder):
    """A recipe, whole or a section of one."""
    values = yaml.safe_load(text)
    if "model" in values:
        (folder / "recipe.yaml").write_text(text)
        load_recipe(folder / "recipe.yaml")
    elif set(values) <= set(Recipe.model_fields):
        load_recipe(ROOT / MINI, [f"{key}={json.dumps(value)}" for key, value in values.items()])
    else:
        assert set(values) in ({"demonstrations"}, {"distributed_type", "mixed_precision", "num_processes", "fsdp_config"})


def check_python(text):
    """It compiles, and what it imports exists; other packages are not loaded for that."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert all(importlib.util.find_spec(one.name) for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert importlib.util.find_spec(node.module)
            module = importlib.import_module(node.module) if node.module.startswith("lora_cot") else None
            assert [one.name for one in node.names if module and not hasattr(module, one.name)] == []


def check_tree(text):
    """README's one line a file: every file of the package stands in it, and what stands in it is there."""
    names = set(re.findall(r"[\w./]+\.(?:py|md)\b", text))
    files = {path.name for path in ROOT.rglob("*") if path.suffix in (".py", ".md")}
    assert sorted(name for name in names if Path(name).name not in files) == []
    package = {path.name for path in (ROOT / "lora_cot").rglob("*.py")} - {"__init__.py"}
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert sorted((package | pages) - {Path(name).name for name in names}) == []


@pytest.mark.parametrize("block", [b for b in BLOCKS if not list(commands(b))], ids=str)
def test_a_block_is_what_it_seems(block, tmp_path):
    """Python, recipes, overrides, rows, entry points and the table of files."""
    first = block.lines[0]
    if block.language == "python" or first.startswith(("import ", "from ")):
        check_python(block.text)
    elif block.language == "yaml" or first.startswith("distributed_type:"):
        check_recipe(block.text, tmp_path)
    elif first.startswith('{"'):
        assert [JsonlRow.model_validate(json.loads(line)) for line in block.lines]
    elif first.startswith("[project."):
        assert tomllib.loads(block.text)["project"]["entry-points"]
    elif first.startswith("train.py"):
        check_tree(block.text)
    else:
        for line in block.lines:
            load_recipe(ROOT / ABLATIONS[block.page.name], shlex.split(line, comments=True))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """To a file that is there, and to a heading of it."""
    for target in links(blocks(page)[1]):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_file(), target
        assert not anchor or anchor in anchors(path), target


def test_the_index_has_every_page():
    """docs/README.md leads to all pages beside it."""
    index = ROOT / "docs" / "README.md"
    found = {target for target in links(blocks(index)[1]) if "/" not in target}
    assert found == {path.name for path in index.parent.glob("*.md")} - {"README.md"}


PLANNED = re.compile(r"^\| (\d+) GB \| `(\S+\.yaml)` \| ([\d.]+) to ([\d.]+) \| ([\d.]+) \| (\w+) \|$", re.M)
CARDS = {name: figures for card, name, *figures in PLANNED.findall((ROOT / "docs" / "consumer_gpus.md").read_text("utf-8"))}


def test_every_recipe_for_a_card_is_planned():
    """docs/consumer_gpus.md has a row for each but the miniatures."""
    recipes = {str(path.relative_to(ROOT / "recipes")) for path in (ROOT / "recipes").glob("*/*gb.yaml")}
    assert set(CARDS) == recipes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flan_alpaca_base/scienceqa_two_stage_6gb.yaml", "llava_1_5_7b/four_stage_12gb.yaml"])
def test_planned_figures_are_those_of_plan(name):
    """The document's row is what `lora-cot plan` says."""
    found = plan(load_recipe(ROOT / "recipes" / name), 12).to_json()
    most = {phase["name"]: phase["high_gb"] for phase in found["phases"]}
    told = [f"{value:.2f}" for value in (found["low_gb"], found["high_gb"], most["training"])]
    assert [*told, max(most, key=most.get)] == CARDS[name]


# What is run.


def run(arguments):
    """A line of `lora-cot` in this process."""
    assert cli.app(arguments, standalone_mode=False) in (None, 0)


def small(recipe, overrides):
    """Overrides that make a training of two steps on a few rows."""
    loaded = load_recipe(recipe, overrides)
    fewer = ["training.max_steps=2", "training.per_device_train_batch_size=2", "training.eval_generations=1"]
    fewer += ["training.warmup_steps=0", *(["data.held_out=4"] if loaded.data.held_out else [])]
    for part in ("train", "eval"):
        fewer += [f"data.{part}.{number}.limit=16" for number, _ in enumerate(getattr(loaded.data, part))]
    return [*overrides, *fewer]


def arguments_of(command):
    """The command as a short line of `lora-cot`; what an earlier line made in its place is removed."""
    words = meant(command.words)
    if words[0] == "accelerate":
        words = ["lora-cot", *words[words.index("train.py") :]]
    elif words[0] == "python":
        words = ["lora-cot", *words[1:]]
    verb, *rest = [words[1].removesuffix(".py"), *words[2:]]
    if verb == "train":
        shutil.rmtree(Path("runs") / load_recipe(rest[0], rest[1:]).name, ignore_errors=True)
        rest = [rest[0], *small(rest[0], rest[1:])]
    if verb == "merge":
        shutil.rmtree(Path(rest[0]) / "merged", ignore_errors=True)
    if verb == "eval":
        rest += ["--limit", "2"]
        if "--output" in rest:
            Path(rest[rest.index("--output") + 1]).unlink(missing_ok=True)
    return [verb, *rest]


@pytest.fixture
def questions(tmp_path, monkeypatch):
    """A folder with the files that pages take for granted: predictions, answers, ScienceQA."""
    monkeypatch.chdir(tmp_path)
    Path("predictions.jsonl").write_text('{"id": 0, "prediction": "B"}\n')
    Path("answers.jsonl").write_text('{"id": "1", "output": "The answer is (A)."}\n')
    problems = {number: published.problem(split="test") for number in ("1", "2")}
    published.scienceqa(tmp_path / "FOLDER", problems, {"test": ["1", "2"]})
    return tmp_path


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.search(FAST, c.text)], ids=str)
def test_a_light_command_runs(command, questions):
    """Without a model."""
    run(arguments_of(command))


def made_runs(questions, make_base):
    """Runs that pages take for granted."""
    bases = {"recipes/mini/llava_four_stage.yaml": None, "recipes/mini/qwen2_vl_four_stage.yaml": make_base("qwen2_vl")}
    for recipe, base in bases.items():
        run(["train", recipe, *small(recipe, [] if base is None else [f"model.base={base}"])])
    run(["merge", "runs/mini-llava-four-stage"])


@pytest.fixture
def workshop(questions, make_base, tmp_path_factory):
    """That folder with those runs and a picture, and Qwen2-VL as tiny as tests have it."""
    from lora_cot.data.shapes import make_sample

    (questions / "picture.png").write_bytes(make_sample(0, "test", 0).images[0])
    kept = tmp_path_factory.getbasetemp() / "documented"
    if not kept.is_dir():
        made_runs(questions, make_base)
        shutil.copytree("runs", kept)
    shutil.copytree(kept, "runs", dirs_exist_ok=True)
    return questions


SEEN = set()
"""Words of plans and validations that ran: they leave nothing behind that a later page needs."""


def steps(page):
    """Commands and scripts of a page that are run, in order."""
    for block in blocks(page)[0]:
        if block.language == "python":
            yield block
        yield from (one for one in commands(block) if not reason_not_to_run(one))


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if list(steps(p))], ids=lambda page: page.name)
def test_a_page_runs_from_top_to_bottom(page, workshop):
    """As a reader would type it, with trainings of two steps and evaluations of two questions."""
    for name, text in written(page).items():
        (workshop / name).parent.mkdir()
        (workshop / name).write_text(text)
    for step in steps(page):
        if getattr(step, "words", None) in SEEN:
            continue
        if hasattr(step, "words"):
            run(arguments_of(step))
            SEEN.update([step.words] if step.words[1] in ("plan", "validate") else [])
        else:
            exec(compile(step.text, str(step), "exec"), {})
