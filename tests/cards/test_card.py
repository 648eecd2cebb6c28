"""Cards: what the hub reads of them, licences, and texts that others wrote."""

import re

import pytest
import yaml

from lora_cot.cards.card import add_evaluation, write_adapter_card, write_merged_card
from lora_cot.cards.facts import Facts, hub_data, shown, shown_recipe
from lora_cot.cards.licences import Licence, licence_of, linked, name_problem
from lora_cot.cards.markdown import text
from lora_cot.checkpoints.folders import write_recipe
from lora_cot.data.sources import load_counted
from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import DataSection, Recipe

PASS = {
    "name": "four_stage",
    "steps": 2,
    "seconds": 3.0,
    "last": {"loss": 1.5},
    "evaluations": [{"step": 2, "eval_loss": 1.25, "eval_accuracy": 0.5}],
    "dropped": ["a", "b"],
    "parts": [{"trained": 1200}],
    "history": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}],
}
REPORT = {"family": "llava", "onto": "full", "dtype": "float32", "verified": True, "probes": 0, "with_images": 0,
          "probes_from": None, "changed_tensors": 4, "changed_values": 100,
          "adapter_vs_merged": None, "base_vs_merged": None, "trained_vs_merged": None}  # fmt: skip
DATA = {"sha256": "ab" * 32, "used": {"train": [7], "eval": []}, "hub": ["owner/data"]}
FACTS = Facts("llava", DATA, [PASS], "a GPU", 3.25)
EVIL = 'x"]: [*a*](javascript:alert(1)) <script>alert(1)</script> | `code` \n---\nlicense: mit\n# big ``` ~~~ {{ y }}'


def card(tmp_path, facts=FACTS, **sections):
    values = {"name": "run", "model": {"base": "llava-hf/llava-1.5-7b-hf"}} | sections
    write_recipe(Recipe.model_validate(values), tmp_path)
    write_adapter_card(tmp_path, facts)
    written = (tmp_path / "README.md").read_text()
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", written, re.DOTALL).groups()
    return yaml.safe_load(front), body


def test_what_the_hub_reads(tmp_path):
    """Base, relation, task, licence, data sets of the hub; nothing that is not known."""
    data = {"train": [{"source": "messages", "path": "owner/data"}, {"source": "jsonl", "path": "/home/me/rows.jsonl"}]}
    front, body = card(tmp_path, data=data)
    assert front == {
        "base_model": "llava-hf/llava-1.5-7b-hf",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "license": "llama2",
        "datasets": ["owner/data"],
        "tags": ["lora_cot", "lora", "chain-of-thought", "visual-question-answering"],
    }
    assert "/home" not in body and "| train | messages | owner/data | train | 7 |" in body
    assert "| train | jsonl | rows.jsonl |  | not recorded |" in body
    assert (
        f"SHA-256 `{'ab' * 32}`" in body and "2 samples were left out" in body and "| four\\_stage | accuracy | 0.5 |" in body
    )
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG") and "](loss.png)" in body


def test_a_benchmark_takes_the_place_of_the_last_evaluation(tmp_path):
    """Written later, from the adapter's folder alone."""
    card(tmp_path)
    share = {"correct": 3, "total": 4, "accuracy": 0.75, "interval": (0.3, 0.95)}
    add_evaluation(
        tmp_path,
        {"benchmark": "shapes", "split": "test", "strategy": "greedy", "accuracy": share, "groups": {"two steps": share},
         "format_validity": share, "unanswered": 1, "model": "/home/me/runs"},
    )  # fmt: skip
    body = (tmp_path / "README.md").read_text()
    assert "| accuracy | 75.0%" in body
    assert "| two steps | 75.0% \\[30.0%, 95.0%\\] of 4 |" in body and "eval" not in body.split("## Evaluation")[1]
    assert "/home/me" not in (tmp_path / "card.json").read_text()


def test_a_benchmark_without_right_and_wrong_says_what_its_figures_are(tmp_path):
    """Not that its ROUGE-L is an accuracy, nor that it is one of rationales."""
    card(tmp_path)
    share = {"correct": 3, "total": 4, "accuracy": 0.75, "interval": (0.3, 0.95)}
    found = {
        "benchmark": "llava_wild",
        "split": "test",
        "strategy": "greedy",
        "accuracy": share,
        "groups": {},
        "rouge_l": 0.75,
    }
    add_evaluation(tmp_path, found | {"format_validity": share, "unanswered": 1, "metric": "ROUGE-L"})
    told = (tmp_path / "README.md").read_text().split("## Evaluation")[1]
    assert "| ROUGE-L | 75.0%" in told and "rationales" not in told and "accuracy" not in told


def without_code(body):
    """A card's text outside of fences, which end where they begin with as many marks."""
    return re.sub(r"^(`{3,})[^\n`]*\n.*?\n\1$", "", body, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("evil", [EVIL, EVIL.replace("\n", " "), "'''\"\"\"\\", "\u202e<img src=x onerror=alert(1)>"])
def test_texts_do_no_harm(tmp_path, evil):
    """Paths, names and stages of a recipe with markdown, HTML or YAML in them are shown as they are."""
    stages = [{"name": "A", "cue": evil}, {"name": "B", "cue": evil, "is_answer": True}]
    sections = {
        "format": {"name": evil, "stages": stages, "split": True},
        "data": {"train": [{"source": "jsonl", "path": evil}, {"source": "messages", "path": evil}]},
        "model": {"base": f"owner/{evil}", "revision": evil},
    }
    front, body = card(tmp_path, Facts("llava", FACTS.data, [{**PASS, "name": "a"}], evil, 1.0), **sections)
    assert set(front) == {"library_name", "pipeline_tag", "datasets", "tags"}
    outside = without_code(body)
    assert set(re.findall(r"<[^>]*>", outside)) == {"<details>", "<summary>", "</summary>", "</details>"}
    assert re.findall(r"(?<!\\)\]\((.*?)\)", outside) == ["loss.png"]
    assert "\n---\n" not in outside and "\u202e" not in outside
    python = re.search(r"^(`{3,})python\n(.*?)\n\1$", body, re.DOTALL | re.MULTILINE)[2]
    compile(python, "snippet", "exec")


@pytest.mark.parametrize("given", ["# a", "- a", "1. a", "| a |", "_a_", "<b>", "[a](b)", "a\n\nb", "&amp;", "~~a~~", "$a$"])
def test_escaped_text_is_text(given):
    """As a reader of markdown shows it: the same letters, white space as one."""
    md = pytest.importorskip("markdown_it")
    shown_as = md.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text(given))
    import html

    assert html.unescape(re.sub(r"</?p>", "", shown_as)).strip() == " ".join(given.split()).replace("\\", "")


@pytest.mark.parametrize(
    ("path", "wanted"),
    [("/home/me/a.json", "a.json"), ("~/a", "a"), ("C:\\Users\\me\\a", "a"), ("\\\\host\\me\\a", "a"), ("file:///x/a", "a"),
     ("a/b", "a/b"), ("owner/name", "owner/name"), ("images", "images")],
)  # fmt: skip
def test_private_places_are_left_out(path, wanted):
    """Of an absolute path, the last part."""
    assert shown(path) == wanted


def base_with(tmp_path, **files):
    for name, content in files.items():
        (tmp_path / name.replace("_", ".")).write_text(content)
    return str(tmp_path)


def test_licences(tmp_path, monkeypatch):
    """Of bases that are known by their hub id; else of the base's own card, else its file; else unknown."""
    known = {
        "meta-llama/Llama-3.2-11B-Vision-Instruct": "llama3.2",
        "llava-hf/llava-1.5-7b-hf": "llama2",
        "Qwen/Qwen2-VL-7B-Instruct": "apache-2.0",
        "google/flan-t5-base": "apache-2.0",
        "somebody/else": None,
        "mini/llava": "apache-2.0",
    }
    assert {base: licence_of(base).key for base in known} == known
    research = licence_of("Qwen/Qwen2.5-VL-3B-Instruct")
    assert (research.key, research.name) == ("other", "qwen-research")
    assert licence_of(str(tmp_path)).key is None
    assert licence_of(base_with(tmp_path, LICENSE_txt="terms")).link == "LICENSE.txt"
    assert licence_of(base_with(tmp_path, README_md="---\nlicense: other\nlicense_name: own\n---\n")).words == "own"
    assert licence_of(base_with(tmp_path, README_md="---\n[broken\n---\n")).link == "LICENSE.txt"


def test_the_licence_goes_along(tmp_path):
    """The base's files of it, where they are at hand; not over one that is there."""
    base = base_with(tmp_path, LICENSE_txt="terms", NOTICE="notice", README_md="---\nlicense: llama3.2\n---\n")
    (tmp_path / "adapter").mkdir()
    front, body = card(tmp_path / "adapter", model={"base": base})
    assert (tmp_path / "adapter" / "LICENSE.txt").read_text() == "terms" and (tmp_path / "adapter" / "NOTICE").is_file()
    assert front["license"] == "llama3.2" and "**Built with Llama.**" in body and str(tmp_path) not in body


def test_the_licence_link_leads_somewhere(tmp_path, monkeypatch):
    """To the file beside the card, where there is one; else to the base's page on the hub; of neither, to nothing."""
    monkeypatch.setattr("lora_cot.cards.card.licence_of", lambda *_: Licence("other", "own", "LICENSE.txt"))
    facts = Facts("llava", FACTS.data, FACTS.passes, "a GPU", 1.0)
    front, body = card(tmp_path, facts, model={"base": "somebody/else", "revision": "v1"})
    url = "https://huggingface.co/somebody/else/blob/v1/LICENSE.txt"
    assert front["license_link"] == url and "somebody/else/blob/v1/LICENSE.txt" in body.partition("Its licence is own")[2]
    front, _ = card(tmp_path, facts, model={"base": "somebody/else"})
    assert front["license_link"] == url.replace("v1", "main")
    front, body = card(tmp_path, facts, model={"base": "/models/else"})
    assert "license_link" not in front and "LICENSE" not in body
    (tmp_path / "LICENSE.txt").write_text("terms")
    front, body = card(tmp_path, facts, model={"base": "somebody/else"})
    assert front["license_link"] == "LICENSE.txt" and "(LICENSE.txt)" in body
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "LICENSE").write_text("not pushed")
    for link, wanted in (
        ("https://x.y/L", "https://x.y/L"),
        ("docs/LICENSE", url.replace("v1/LICENSE.txt", "main/docs/LICENSE")),
    ):
        assert linked(Licence("other", "own", link), "somebody/else", None, tmp_path).link == wanted


def test_the_licence_goes_along_with_a_split_model(tmp_path):
    """Beside the card at the top, where its link leads."""
    (tmp_path / "base").mkdir()
    base = base_with(tmp_path / "base", LICENSE_txt="terms", README_md="---\nlicense: other\nlicense_link: LICENSE.txt\n---\n")
    recipe = Recipe.model_validate({"name": "two", "model": {"base": base}, "format": {"name": "two_stage"}})
    reports = [{**REPORT, "folder": name} for name in ("rationale", "answer")]
    write_merged_card(tmp_path, recipe, None, reports)
    assert (tmp_path / "LICENSE.txt").read_text() == "terms"
    assert "license_link: LICENSE.txt\n" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(("verified", "told"), [((True, True), False), ((True, False), True), ((False, False), True)])
def test_an_unproven_merge_says_so_first(tmp_path, verified, told):
    """In the first lines, also if only one pass is; not somewhere below."""
    recipe = Recipe.model_validate({"name": "two", "model": {"base": "a/b"}, "format": {"name": "two_stage"}})
    names = ("rationale", "answer")
    reports = [{**REPORT, "folder": name, "verified": one} for name, one in zip(names, verified, strict=True)]
    write_merged_card(tmp_path, recipe, None, reports)
    first = (tmp_path / "README.md").read_text().partition("# two\n\n")[2].split("\n\n")[0]
    assert first.startswith("**Not verified:**") is told


def test_data_sets_of_the_hub_are_told_from_files(tmp_path, monkeypatch):
    """By the source, the ending, and whether there is such a folder here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "scienceqa").mkdir(parents=True)
    paths = {"messages": ["owner/rows", "data/rows.json"], "scienceqa": ["data/scienceqa", "owner/qa"], "jsonl": ["a/b"]}
    train = [{"source": source, "path": path} for source, some in paths.items() for path in some]
    recipe = Recipe.model_validate({"name": "run", "model": {"base": "a/b"}, "data": {"train": train}})
    assert hub_data(recipe) == ["owner/rows", "owner/qa"]


def test_llamas_rule_for_names(tmp_path):
    """Built with Llama, and a name that begins with it."""
    model = {"base": "meta-llama/Llama-3.2-11B-Vision-Instruct"}
    facts = Facts("mllama", FACTS.data, FACTS.passes, "a GPU", 1.0)
    front, body = card(tmp_path, facts, model=model)
    assert front["license"] == "llama3.2" and "**Built with Llama.**" in body
    assert "to begin with 'Llama'; 'run' does not" in body
    _, body = card(tmp_path, facts, model=model, name="Llama-3.2-reasons")
    assert "**Built with Llama.**" in body and "does not" not in body
    licence = licence_of(model["base"])
    assert name_problem(licence, "me/reasons") and not name_problem(licence, "me/Llama-reasons")
    assert not name_problem(licence_of("llava-hf/llava-1.5-7b-hf"), "reasons")


def test_rows_are_counted_by_source():
    """As often as they are taken; of rows that are kept back, by the source they come from."""
    sources = [{"source": "shapes", "limit": 6, "weight": 2}, {"source": "shapes", "limit": 10, "seed": 1, "weight": 0.5}]
    loaded = load_counted(DataSection.model_validate({"train": sources, "eval": [sources[1]]}), FORMATS["direct"])
    assert loaded.used == {"train": [12, 5], "eval": [5]} and (len(loaded.train), len(loaded.held_out)) == (17, 5)
    loaded = load_counted(DataSection.model_validate({"train": sources, "held_out": 4}), FORMATS["direct"])
    assert sum(loaded.used["held_out"]) == 4 == len(loaded.held_out) and sum(loaded.used["train"]) == len(loaded.train)


def test_places_of_the_training_machine_and_ids_of_its_samples_are_not_told(tmp_path):
    """Relative paths are private too; hub ids are not; of what was left out only the number is kept."""
    from lora_cot.cards.facts import Facts, shown

    places = ("../acme/patients.jsonl", "data/acme/img", "data/rows.json", "./x", "/a/b", "~/c/d")
    assert [shown(value) for value in places] == ["patients.jsonl", "img", "rows.json", "x", "b", "d"]
    others = ["org/data", "mini/llava", "looks at a/b and c/d"]
    assert [shown(value) for value in others] == others
    facts = Facts("llava", {}, [{"name": "x", "dropped": ["MRN-1", "MRN-2"]}], "cpu", 1.0)
    facts.write(tmp_path)
    assert "MRN" not in (tmp_path / "card.json").read_text() and Facts.read(tmp_path).passes[0]["dropped"] == 2


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ("org/adapter", "org/adapter"),
        ("org/adapter@v1", "org/adapter@v1"),
        ("runs/acme/a", "a"),
        ("runs/a", "a"),
        ("/x/a", "a"),
    ],
)
def test_an_adapter_of_the_hub_is_told_from_one_here(tmp_path, monkeypatch, adapter, told):
    """Of a folder, the last part; of the hub's, its whole id."""
    (tmp_path / "runs" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.model_validate({"name": "x", "model": {"base": "org/base", "adapter": adapter}})
    assert yaml.safe_load(shown_recipe(recipe))["model"]["adapter"] == told
