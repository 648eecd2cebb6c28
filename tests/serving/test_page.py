"""The page's files: all there, nothing from outside, nothing inline, every control with a name."""

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

import lora_cot
import lora_cot.serving

FOLDER = Path(lora_cot.serving.__path__[0]) / "page"
FILES = sorted(FOLDER.iterdir())
SCRIPTS = [file for file in FILES if file.suffix == ".js"]
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def elements():
    return Elements((FOLDER / "index.html").read_text()).found


def test_the_package_holds_them():
    """The wheel takes all of the package's files, whatever they are."""
    root = Path(lora_cot.__file__).parents[1]
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert (
        wheel["packages"] == ["lora_cot"]
        and not {"exclude", "only-include"} & set(wheel)
        and "index.html" in [file.name for file in FILES]
    )
    assert not re.search(r"\.(js|css|html|svg)|page", (root / ".gitignore").read_text())


def test_every_file_is_used_and_every_used_file_is_there(elements):
    """By the page, its scripts or its style."""
    used = {attrs[key] for _, attrs in elements for key in ("src", "href") if key in attrs}
    used |= {name for file in SCRIPTS for name in re.findall(r'from "\./([^"]+)"', file.read_text())}
    assert used == {file.name for file in FILES} - {"index.html"}


@each_file
def test_nothing_is_fetched_from_outside(file):
    """The name of the format of the icon is the only address."""
    text = file.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//\w+\.\w|@import|url\(", text)


def test_nothing_is_inline(elements):
    """No script, style or handler, which the policy would block."""
    assert not [tag for tag, attrs in elements if tag == "style" or (tag == "script" and "src" not in attrs)]
    assert not [name for _, attrs in elements for name in attrs if name == "style" or name.startswith("on")]


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_no_script_makes_markup_of_text(file):
    """What a model wrote cannot become an element; and files stay readable."""
    text = file.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|\.style\b", text)
    assert len(text.splitlines()) <= 300


def test_every_control_has_a_name(elements):
    """A label, or its own text."""
    labelled = {attrs["for"] for tag, attrs in elements if tag == "label"}
    assert labelled == {attrs["id"] for tag, attrs in elements if tag in ("input", "select", "textarea")}
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_scripts_know_the_elements_they_name(elements):
    """Every id that a script asks for is on the page."""
    ids = {attrs["id"] for _, attrs in elements if "id" in attrs}
    asked = {name for file in SCRIPTS for name in re.findall(r'\bat\("(\w+)"\)', file.read_text())}
    assert asked and asked <= ids
