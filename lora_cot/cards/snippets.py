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
    or_id = "what `hf download` made of its repository" if names else "its hub id"
    constants = [f'MODEL = "."  # the folder that this card is in, or {or_id}']
    load = [f"processor = AutoProcessor.from_pretrained({_place(names[0] if names else '')})"]
    if merged:
        load += _load_merged(names)
    else:
        imports.insert(0, "from peft import PeftModel")
        if recipe.model.base.startswith("mini/"):
            imports.append("from lora_cot.backbones.loading import resolve_base")
        constants.append(_base(recipe.model.base))
        load += _load_adapters(recipe, names)
    head = "\n\n".join("\n".join(lines) for lines in (imports, constants, load))
    return f"{head}\n{_WRITE}\n" + "\n".join(_ask(recipe, names, merged))


def _place(name: str) -> str:
    """Of a pass, its folder by path: given as `subfolder`, transformers looks for the generation's settings above it."""
    return f'f"{{MODEL}}/{name}"' if name else "MODEL"


def _load_merged(names: Sequence[str]) -> list[str]:
    loaded = 'AutoModelForImageTextToText.from_pretrained({}, dtype="auto", device_map="auto")'
    if not names:
        return [f"model = {loaded.format('MODEL')}"]
    return ["models = {", *(f'    "{name}": {loaded.format(_place(name))},' for name in names), "}"]


def _load_adapters(recipe: Recipe, names: Sequence[str]) -> list[str]:
    revision = f", revision={json.dumps(recipe.model.revision)}" if recipe.model.revision else ""
    dtype = f'dtype="{recipe.model.dtype}", device_map="auto"'
    lines = [f"base = AutoModelForImageTextToText.from_pretrained(BASE{revision}, {dtype})"]
    first = f', adapter_name="{names[0]}"' if names else ""
    lines.append(f"model = PeftModel.from_pretrained(base, {_place(names[0] if names else '')}{first})")
    return [*lines, *(f'model.load_adapter({_place(name)}, "{name}")' for name in names[1:])]


def _base(base: str) -> str:
    """The line that names the base."""
    named = json.dumps(shown(base))
    if base.startswith("mini/"):
        return f"BASE = resolve_base({named})"
    return f"BASE = {named}" + ("" if is_hub_id(base) else "  # the folder of the base")


def _ask(recipe: Recipe, names: Sequence[str], merged: bool) -> list[str]:
    """The last lines: one prompt, or one for each pass with the texts of those before."""
    stages = recipe.format.build().stages
    most = [recipe.search.budget(stage) for stage in stages]
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
    merge = f"lora-cot merge . --output ../{name}-merged --onto full --no-verify"  # a proof needs the data, auto the proof
    first = [] if merged else ["# A server takes the merged model. With the data of the training, --no-verify may go.", merge]
    place = "." if merged else f"../{name}-merged"
    folders = [f"{place}/{one.name}" for one in cot_format.passes] if cot_format.split else [place]
    start = {
        "vllm": "vllm serve {} --served-model-name {} --host 127.0.0.1 --port {}",
        "sglang": "python -m sglang.launch_server --model-path {} --served-model-name {} --host 127.0.0.1 --port {}",
    }[server]
    ends = [f"-{one.name}" for one in cot_format.passes] if cot_format.split else [""]
    lines = [start.format(folder, name + end, 8000 + n) for n, (folder, end) in enumerate(zip(folders, ends, strict=True))]
    return "sh", "\n".join([*first, *lines])
