"""How to run a model, as code that works as it stands: in transformers, with `lora-cot`, behind a server."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from lora_cot.cards.facts import is_hub_id, shown
from lora_cot.cards.support import SUPPORT
from lora_cot.recipe import Recipe

QUESTION = "What is in the picture?"
IMAGE = "picture.png"

_WRITE = f'''

def write(text, most):
    content = [{{"type": "image", "image": Image.open("{IMAGE}").convert("RGB")}}, {{"type": "text", "text": text}}]
    messages = [{{"role": "user", "content": content}}]
    options = {{"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}}
    inputs = processor.apply_chat_template(messages, **options).to(model.device, model.dtype)
    tokens = model.generate(**inputs, max_new_tokens=most, do_sample=False)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

'''


def python(recipe: Recipe, family: str, merged: bool) -> str:
    """One question, by transformers and PEFT; what they cannot run alone, by this package.

    Args:
        recipe: of the run.
        family: of its base.
        merged: the model is whole; else it is an adapter.
    """
    if SUPPORT[family].server == "":
        call = f'print(ask(open_model("."), Path("{IMAGE}"), "{QUESTION}").text)'
        return f"from pathlib import Path\n\nfrom lora_cot import ask, open_model\n\n{call}"
    cot_format = recipe.format.build()
    names = [one.name for one in cot_format.passes] if cot_format.split else []
    imports = ["from PIL import Image", "from transformers import AutoModelForImageTextToText, AutoProcessor"]
    constants = ['MODEL = "."  # the folder that this card is in, or its hub id']
    load = [f"processor = AutoProcessor.from_pretrained(MODEL{_sub(names[0]) if names else ''})"]
    if merged:
        loaded = [f"AutoModelForImageTextToText.from_pretrained(MODEL{_sub(name)}, {_AUTO})" for name in names or [""]]
        load += [f"models = {{{', '.join(f'{n!r}: {one}' for n, one in zip(names, loaded, strict=True))}}}"] if names else []
        load += [] if names else [f"model = {loaded[0]}"]
    else:
        imports.insert(0, "from peft import PeftModel")
        constants += _base(recipe)
        imports += [constants.pop(1)] if recipe.model.base.startswith("mini/") else []
        load += [f"base = AutoModelForImageTextToText.from_pretrained(BASE{_revision(recipe)}, {_dtype(recipe)})"]
        first = f', subfolder="{names[0]}", adapter_name="{names[0]}"' if names else ""
        load += [f"model = PeftModel.from_pretrained(base, MODEL{first})"]
        load += [f'model.load_adapter(MODEL, "{name}", subfolder="{name}")' for name in names[1:]]
    head = "\n".join(imports) + "\n\n" + "\n".join(constants) + "\n\n" + "\n".join(load) + "\n"
    return head + _WRITE + "\n" + "\n".join(_ask(recipe, names, merged))


_AUTO = 'dtype="auto", device_map="auto"'


def _sub(name: str) -> str:
    return f', subfolder="{name}"' if name else ""


def _dtype(recipe: Recipe) -> str:
    return f'dtype="{recipe.model.dtype}", device_map="auto"'


def _revision(recipe: Recipe) -> str:
    return f", revision={json.dumps(recipe.model.revision)}" if recipe.model.revision else ""


def _base(recipe: Recipe) -> list[str]:
    """The line that names the base; of a miniature, what it needs first."""
    base = json.dumps(shown(recipe.model.base))
    if recipe.model.base.startswith("mini/"):
        return ["from lora_cot.backbones.loading import resolve_base", f"BASE = resolve_base({base})"]
    return [f"BASE = {base}" + ("" if is_hub_id(recipe.model.base) else "  # the folder of the base")]


def _ask(recipe: Recipe, names: Sequence[str], merged: bool) -> list[str]:
    """The last lines: one prompt, or one for each pass with the texts of those before."""
    stages = recipe.format.build().stages
    known = recipe.search.stages
    most = [(known[s.name].max_new_tokens if s.name in known else None) or s.max_new_tokens for s in stages]
    if not names:
        return [f'print(write("{QUESTION}", {sum(most)}))']
    passes = [(name, stage.cue, budget) for name, stage, budget in zip(names, stages, most, strict=True)]
    return [
        f'prompt = "Question: {QUESTION}"',
        f"for name, cue, most in {json.dumps(passes)}:",
        "    model = models[name]" if merged else "    model.set_adapter(name)",
        '    found = write(f"{prompt}\\n{cue}", most)',
        '    prompt += f"\\n{cue} {found}"',
        "print(prompt)",
    ]


def command() -> str:
    """The same by `lora-cot`, stage by stage."""
    return f"lora-cot ask . {IMAGE} {shlex.quote(QUESTION)}"


def serving(recipe: Recipe, family: str, merged: bool) -> tuple[str, str]:
    """Language and text of what puts it behind a server."""
    server, name = SUPPORT[family].server, shlex.quote(recipe.name)
    if not server:
        loop = 'model = open_model(".")  # loaded once\nwhile question := input("question: "):\n'
        loop += f'    print(ask(model, Path("{IMAGE}"), question).text)'
        return "python", f"from pathlib import Path\n\nfrom lora_cot import ask, open_model\n\n{loop}"
    cot_format = recipe.format.build()
    first = [] if merged else [f"lora-cot merge . --output ../{name}-merged  # a server takes the merged model"]
    place = "." if merged else f"../{name}-merged"
    folders = [f"{place}/{one.name}" for one in cot_format.passes] if cot_format.split else [place]
    start = {
        "vllm": "vllm serve {} --served-model-name {} --host 127.0.0.1 --port {}",
        "sglang": "python -m sglang.launch_server --model-path {} --served-model-name {} --host 127.0.0.1 --port {}",
    }[server]
    ends = [f"-{one.name}" for one in cot_format.passes] if cot_format.split else [""]
    lines = [start.format(folder, name + end, 8000 + n) for n, (folder, end) in enumerate(zip(folders, ends, strict=True))]
    return "sh", "\n".join([*first, *lines])
