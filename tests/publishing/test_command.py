"""`push`, and `--push` of train and merge, as typed: exit codes, one JSON object, no token anywhere, and kills."""

import json
import os
import subprocess
import sys
import time

import pytest
import yaml

from lora_cot.cli import app
from lora_cot.errors import AccessError, RunError
from lora_cot.publishing.push import push
from tests.conftest import ROOT
from tests.publishing.conftest import BASE
from tests.publishing.hub_server import TOKEN
from tests.publishing.test_push import expected, pushed

REPO = "somebody/mine"
HEAVY = {"torch", "transformers", "peft", "trl", "datasets", "bitsandbytes"}


def environment(hub, tmp_path, **variables):
    found = os.environ | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    return found | {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"} | variables


@pytest.fixture
def command(hub, tmp_path):
    """Runs the command line in a process of its own."""

    def run(*arguments, **variables):
        line = [sys.executable, "-m", "lora_cot.cli", *map(str, arguments)]
        done = subprocess.run(
            line, env=environment(hub, tmp_path, **variables), cwd=tmp_path, capture_output=True, text=True, timeout=100
        )
        assert TOKEN not in done.stdout + done.stderr and "Traceback" not in done.stderr
        return done

    return run


def test_push_for_programs_and_for_people(hub, command, adapter):
    """One JSON object; then rows, which say that nothing has changed."""
    done = command("push", adapter, REPO, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, len(done.stdout.splitlines()), report["new_commit"]) == (0, 1, True), done.stderr
    assert report["visibility"] == "private" and pushed(hub) == expected(adapter)
    done = command("push", adapter, REPO)
    assert done.returncode == 0 and f"{report['commit']}, as it was: nothing has changed" in done.stdout
    assert "adapter_model.safetensors" in done.stdout and "there already" in done.stdout


@pytest.mark.slow
def test_a_refusal_is_one_line_and_exit_code_2(hub, command, adapter, tmp_path):
    """A dry run shows its table first."""
    hub.put(REPO, {"a": b""}, private=False)
    done = command("push", adapter, REPO)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith(f"error: {REPO} · the repository is public, and a private one was asked for")
    done = command("push", adapter, REPO, "--dry-run")
    assert done.returncode == 2 and "adapter_config.json" in done.stdout and "the repository is public" in done.stderr
    done = command("push", tmp_path / "none", REPO)
    assert done.returncode == 2 and "no such folder" in done.stderr


def test_a_dry_run_is_light_and_needs_nothing(hub, adapter, tmp_path):
    """Neither torch nor a network nor a token."""
    arguments = ["lora-cot", "push", str(adapter), REPO, "--dry-run", "--json"]
    script = (
        f"import sys; sys.argv = {arguments!r}\nfrom lora_cot.cli import app\n"
        "app(standalone_mode=False)\nprint(*sys.modules, file=sys.stderr)"
    )
    env = environment(hub, tmp_path, HF_HUB_OFFLINE="1")
    del env["HF_TOKEN"]
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert set(done.stderr.split()) & HEAVY == set() and json.loads(done.stdout)["found"].startswith("not looked at")
    assert hub.requests == []


def test_killed_while_it_uploads(hub, adapter, tmp_path):
    """The repository is at its old commit; the same command goes on."""
    hub.fault = lambda method, path, number: time.sleep(30) if method == "PUT" else None
    line = [sys.executable, "-m", "lora_cot.cli", "push", str(adapter), REPO]
    running = subprocess.Popen(line, env=environment(hub, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while not any(method == "PUT" for method, _ in hub.requests) and time.monotonic() < end:
        time.sleep(0.02)
    running.kill()
    running.communicate()
    assert pushed(hub) == {} and len(hub.repos[REPO].commits) == 1
    hub.fault = lambda *_: None
    hub.lock = type(hub.lock)()  # the killed one's is still asleep
    push(adapter, REPO)
    assert pushed(hub) == expected(adapter) and len(hub.repos[REPO].commits) == 2


@pytest.fixture
def recipe(hub, make_base, tmp_path, monkeypatch):
    """A recipe of one step on a base of the hub."""
    files = {path.name: path.read_bytes() for path in make_base("llava").iterdir() if path.is_file()}
    hub.put(BASE, files, private=False)
    monkeypatch.chdir(tmp_path)
    values = {
        "name": "run",
        "model": {"base": BASE, "dtype": "float32"},
        "data": {
            "train": [{"source": "shapes", "limit": 4}],
            "eval": [{"source": "shapes", "split": "test", "limit": 2}],
        },
        "lora": {"r": 2},
        "training": {"max_steps": 1, "per_device_train_batch_size": 2, "eval_generations": 0, "gradient_checkpointing": False},
        "search": {"stages": {name: {"max_new_tokens": 2} for name in ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "recipe.yaml"


@pytest.mark.slow
def test_train_and_merge_push_what_they_made(hub, recipe, capsys):
    """The adapter to one repository, the merged model to another, which is open."""
    app(["train", str(recipe), "--push", REPO], standalone_mode=False)
    assert f"pushed   {hub.url}/{REPO} (commit " in capsys.readouterr().out
    assert "adapter_model.safetensors" in pushed(hub) and "log.jsonl" not in pushed(hub) and hub.repos[REPO].private
    app(["merge", "runs/run", "--push", "somebody/whole", "--public", "--json"], standalone_mode=False)
    report = json.loads(capsys.readouterr().out)
    assert report["push"]["kind"] == "merged" and report["push"]["new_commit"]
    assert {"model.safetensors", "config.json", "recipe.yaml", "merge_report.json"} <= set(pushed(hub, "somebody/whole"))
    assert not hub.repos["somebody/whole"].private
    app(["merge", REPO, "--no-verify"], standalone_mode=False)


def test_what_could_not_be_pushed_is_refused_before_the_work(hub, recipe, make_base, adapter, monkeypatch):
    """No hours of training for a push that fails: a base on this machine, no token, a repository that is open."""
    hub.put("somebody/open", {"a": b""}, private=False)
    with pytest.raises(RunError, match="the repository is public"):
        app(["train", str(recipe), "--push", "somebody/open"], standalone_mode=False)
    with pytest.raises(RunError, match=r"model.base · 'llava' is on this machine only"):
        app(["train", str(recipe), f"model.base={make_base('llava')}", "--push", REPO], standalone_mode=False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/none")
    with pytest.raises(AccessError, match="there is no token"):
        app(["merge", str(adapter), "--push", REPO], standalone_mode=False)
    assert not (recipe.parent / "runs").exists() and not (recipe.parent / "adapter-merged").exists()
