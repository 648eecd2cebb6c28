"""What a card says of how to run a model works as it stands."""

import re
import shlex
import sys

import pytest
from PIL import Image

from lora_cot import cli
from lora_cot.checkpoints.folders import write_recipe
from lora_cot.checkpoints.opening import open_model
from lora_cot.evaluation.ask import ask
from lora_cot.merging.merge import merge
from lora_cot.training.run import train

BUDGETS = {
    "four_stage": {name: {"max_new_tokens": 4} for name in ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")},
    "two_stage": {"RATIONALE": {"max_new_tokens": 6}, "ANSWER": {"max_new_tokens": 4}},
}


@pytest.fixture(scope="module")
def made(make_base, tmp_path_factory):
    """A trained run of a base in a format, merged; its folder."""
    from lora_cot.recipe.schema import Recipe

    runs = {}

    def make(base, cot_format):
        if (base, cot_format) not in runs:
            data = {"train": [{"source": "shapes", "limit": 8}], "eval": [{"source": "shapes", "split": "test", "limit": 3}]}
            values = {
                "name": "run",
                "model": {"base": str(make_base(base)), "dtype": "float32"},
                "format": {"name": cot_format},
                "data": data,
                "training": {"max_steps": 2, "learning_rate": 1e-2, "gradient_checkpointing": False, "logging_steps": 1},
                "search": {"stages": BUDGETS[cot_format]},
            }
            folder = train(Recipe.model_validate(values), tmp_path_factory.mktemp("runs"))
            merge(folder)
            (folder / "adapter" / base).symlink_to(make_base(base))  # "the folder of the base", by its name
            runs[base, cot_format] = folder
        return runs[base, cot_format]

    return make


def blocks(folder, language):
    """Code in a card."""
    return re.findall(rf"^```{language}\n(.*?)\n```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("kind", ["adapter", pytest.param("merged", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("base", "cot_format"),
    [
        pytest.param("llava", "four_stage", marks=pytest.mark.slow),
        pytest.param("mllama", "four_stage", marks=pytest.mark.slow),
        pytest.param("llava", "two_stage", marks=pytest.mark.slow),
        ("t5_vision", "two_stage"),
    ],
)
def test_the_first_two_snippets_answer(made, monkeypatch, capsys, base, cot_format, kind):
    """In Python, with the texts that this package's own search writes; and by `lora-cot`."""
    folder = made(base, cot_format) / kind
    monkeypatch.chdir(folder)
    Image.new("RGB", (56, 56), "red").save("picture.png")
    opened = open_model(".")
    wanted = ask(opened, folder / "picture.png", "What is in the picture?")
    python = blocks(folder, "python")[0]
    capsys.readouterr()
    exec(compile(python, "snippet", "exec"), {"__name__": "snippet"})
    printed = capsys.readouterr().out.strip()
    if cot_format == "four_stage":
        for token in opened.backbone.processor.tokenizer.all_special_tokens:
            wanted.text = wanted.text.replace(token, "")
        assert printed == wanted.text.strip()
    else:
        stages = [stage.text for stage in wanted.parsed.stages if stage.text]
        assert printed and all(" ".join(text.split()) in " ".join(printed.split()) for text in stages)
    monkeypatch.setattr(sys, "argv", shlex.split(blocks(folder, "sh")[0]))
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert "answer: " in capsys.readouterr().out
    (folder / "picture.png").unlink()


@pytest.mark.slow
def test_servers_are_shown_where_there_are_any(made, tmp_path):
    """vLLM for LLaVA, each pass its own; SGLang for Mllama; neither for T5, which no server knows."""
    assert blocks(made("llava", "four_stage") / "merged", "sh")[1] == (
        "vllm serve . --served-model-name run --host 127.0.0.1 --port 8000"
    )
    both = blocks(made("llava", "two_stage") / "merged", "sh")[1].splitlines()
    assert [line.split()[2] for line in both] == ["./rationale", "./answer"] and "8001" in both[1]
    _, first, second = blocks(made("llava", "four_stage") / "adapter", "sh")[1].splitlines()
    assert first == "lora-cot merge . --output ../run-merged --onto full --no-verify" and "vllm serve ../run-merged" in second
    text = (made("mllama", "four_stage") / "merged" / "README.md").read_text()
    assert "sglang.launch_server --model-path ." in text and "vLLM no (until 0.10.2)" in text
    text = (made("t5_vision", "two_stage") / "merged" / "README.md").read_text()
    assert "vllm serve" not in text and "no server knows T5 with vision" in text


def test_one_card_for_both_passes(made):
    """At the top, with a plot of each; none of PEFT's own in the folders."""
    for kind in ("adapter", "merged"):
        folder = made("llava", "two_stage") / kind
        there = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in (".md", ".png"))
        assert there == ["README.md", "loss-answer.png", "loss-rationale.png"]
        text = (folder / "README.md").read_text()
        assert "2 LoRA adapters" in text and "![loss over steps](loss-answer.png)" in text
    assert "| rationale | adapter and merged |" in text and "| answer | adapter and merged |" in text


def test_an_adapter_whose_training_was_not_recorded_has_a_card_too(make_base, tmp_path):
    """Merged without verification: it says both."""
    from tests.merging.conftest import layers_of, make_adapter, recipe_of

    adapter = tmp_path / "adapter"
    make_adapter(make_base("llava"), adapter, target_modules=layers_of("llava"))
    write_recipe(recipe_of(make_base("llava")), adapter)
    merge(adapter, tmp_path / "whole", verify=False)
    text = (tmp_path / "whole" / "README.md").read_text()
    assert "**Not verified:**" in text and "--no-verify" in text and "SHA-256" not in text
