"""The wheel: what is in it, and that it works where no checkout is."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from types import SimpleNamespace

import pytest

import lora_cot
from tests.conftest import ROOT

RECIPE = "recipes/mini/llava_four_stage.yaml"


def test_the_version_is_told_once():
    """The package's own is the project's, and the changelog begins with it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    assert project["tool"]["hatch"]["version"] == {"path": "lora_cot/__init__.py"}
    assert re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[0] == lora_cot.__version__


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs the installed command in an empty folder; `wheel` is the file it came from."""
    base = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    alone = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *alone, "-w", base, ROOT], check=True, cwd=base, timeout=120)
    (wheel,) = base.glob("*.whl")
    subprocess.run([*pip, "install", *alone[:1], "--no-index", "--target", base / "site", wheel], check=True, timeout=120)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": str(base / "site")}
    (base / "empty").mkdir()

    def run(*words):
        return subprocess.run(words, capture_output=True, text=True, env=env, cwd=base / "empty", timeout=120)

    return SimpleNamespace(wheel=wheel, run=run, command=str(base / "site" / "bin" / "lora-cot"), site=base / "site")


def tracked(folder, pattern="*"):
    """Files of a folder that are no leavings of Python's, as paths below the repository."""
    found = (path.relative_to(ROOT) for path in (ROOT / folder).rglob(pattern) if path.is_file())
    return {str(path) for path in found if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_what_ships_with_it(installed):
    """Every file of the package (page, templates, miniatures, py.typed), recipes and ds_configs; and nothing else."""
    names = {name for name in zipfile.ZipFile(installed.wheel).namelist() if ".dist-info/" not in name}
    shipped = tracked("recipes") | tracked("ds_configs")
    assert names == tracked("lora_cot") | {f"lora_cot/shipped/{name}" for name in shipped}
    assert {"lora_cot/py.typed", "lora_cot/serving/page/app.js", "lora_cot/pages/templates/run.html"} <= names
    metadata = next((installed.site).glob("*.dist-info/METADATA")).read_text("utf-8")
    assert "](" not in metadata  # a link into the checkout leads nowhere from an index
    assert f"\nVersion: {lora_cot.__version__}\n" in metadata and "\nLicense-Expression: Apache-2.0\n" in metadata


@pytest.mark.slow
def test_it_works_outside_the_checkout(installed):
    """Help, a plan and a validation of a recipe by its name in the documents; the package is the installed one."""
    where = installed.run(sys.executable, "-c", "import lora_cot; print(lora_cot.__file__)")
    assert where.stdout.strip() == str(installed.site / "lora_cot" / "__init__.py")
    helped = installed.run(installed.command, "--help")
    assert helped.returncode == 0 and " serve " in helped.stdout
    planned = installed.run(installed.command, "plan", RECIPE, "--json", "training.deepspeed=ds_configs/zero2.json")
    assert planned.returncode == 0 and json.loads(planned.stdout)["recipe"] == "mini-llava-four-stage", planned.stderr
    rows = ["data.train.0.limit=8", "data.eval.0.limit=8"]
    script = f"from lora_cot import load_recipe, validate; print(validate(load_recipe({RECIPE!r}, {rows!r})).valid)"
    checked = installed.run(sys.executable, "-c", script)
    assert (checked.returncode, checked.stdout) == (0, "True\n"), checked.stderr
