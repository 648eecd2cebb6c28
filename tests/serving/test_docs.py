"""The lines of docs/serving.md, as they stand there."""

import ast
import re
import subprocess
import textwrap
from pathlib import Path

import pytest

from lora_cot.data.shapes import make_sample
from tests.serving.test_process import process

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "serving.md"


def lines(file):
    block = re.search(r"<!-- run -->\n((?:    .+\n)+)", file.read_text("utf-8")).group(1)
    return [line.strip() for line in block.splitlines()]


def ask_as_shown(address, monkeypatch, folder):
    """The official client's lines, with a picture where they have one."""
    code = re.search(r"\n\n((?:    .*\n|\n)*    from openai .*\n(?:    .*\n|\n)*)", DOCS.read_text("utf-8")).group(1)
    (folder / "picture.png").write_bytes(make_sample(0, "test", 0).images[0])
    monkeypatch.chdir(folder)
    exec(textwrap.dedent(code).replace("http://127.0.0.1:8000", address), {})


@pytest.mark.slow
def test_the_lines_run(tiny_base, monkeypatch, tmp_path):
    """Against a server as the documents start it; none answers with an error."""
    docs = lines(DOCS)
    assert len(docs) == 9
    with process(tiny_base, "--name", "cot") as running:
        ask_as_shown(running.address, monkeypatch, tmp_path)
        for line in docs:
            done = subprocess.run(
                ["bash", "-c", line], env={"URL": running.address, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
            )
            is_error = re.search(r'"error": ?\{"message"', done.stdout)
            assert done.returncode == 0 and done.stdout and not is_error, (line, done.stdout)
            if "stream" in line:
                assert done.stdout.rstrip().endswith("data: [DONE]")


def codes(path):
    """The third argument of every `ApiError` in a file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ApiError" and len(node.args) > 2:
            yield from (one.value for one in ast.walk(node.args[2]) if isinstance(one, ast.Constant) and one.value)


def test_every_key_code_and_metric_is_in_the_document():
    """Search keys, error codes and metrics that exist are told."""
    from lora_cot.serving import schema
    from lora_cot.serving.metrics import Metrics
    from lora_cot.serving.scheduler import Load

    text = DOCS.read_text("utf-8")
    for name, field in schema.SearchOptions.model_fields.items():
        assert f"`{field.alias or name}`" in text, name
    found = {code for path in Path(schema.__file__).parent.glob("*.py") for code in codes(path)}
    assert len(found) > 8 and all(f"`{code}`" in text for code in found), found
    told = Metrics().text(Load(), 0, 0).decode()
    for name in re.findall(r"# TYPE lora_cot_(\w+) (?!gauge\n.*_created)", told):
        assert name.endswith("_created") or re.search(rf"`{name}[`{{]", text), name
