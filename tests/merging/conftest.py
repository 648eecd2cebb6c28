"""Adapters made and merged by PEFT itself, and bases whose files are named as published ones."""

import json
import re
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file

from lora_cot.backbones.loading import load_backbone
from lora_cot.merging.onto import make_ready, write_model
from lora_cot.recipe import Recipe
from lora_cot.recipe.model import ModelSection

CHAT_LAYERS = r".*(language_model.*(q_proj|v_proj|down_proj)|(vision_tower|vision_model|visual).*(q_proj|fc1|qkv))"
T5_LAYERS = r".*\.(q|v|wo|wi_0|wi)"
LLAVA = {
    r"^model\.language_model\.": "language_model.model.",
    r"^lm_head": "language_model.lm_head",
    r"^model\.vision_tower\.": "vision_tower.vision_model.",
    r"^model\.(multi_modal_projector|image_newline)": r"\1",
}
QWEN = {r"^model\.language_model\.": "model.", r"^model\.visual\.": "visual."}
PUBLISHED = {
    "llava": LLAVA,
    "llava_next": LLAVA,
    "llava_onevision": LLAVA,
    "mllama": {**LLAVA, r"^model\.vision_model\.": "vision_model."},
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "t5_vision": {},
}
"""Module paths of transformers 5 → names in the published checkpoints."""


def layers_of(name):
    return T5_LAYERS if name == "t5_vision" else CHAT_LAYERS


def recipe_of(base, **sections):
    return Recipe(name="merge", model=ModelSection(base=str(base), **sections.pop("model", {})), **sections)


def merge_files(base, adapter, folder, onto="full", **sections):
    """The streamed merge alone; the folder."""
    recipe = recipe_of(base, **sections)
    write_model(make_ready(recipe, adapter, onto), recipe, folder)
    return folder


def state_of(folder):
    return load_backbone(ModelSection(base=str(folder))).model.state_dict()


def make_adapter(base, folder, model=None, **keys):
    """An adapter with nothing left at zero; and PEFT's model with it."""
    torch.manual_seed(0)
    peft = get_peft_model(
        model or load_backbone(ModelSection(base=str(base))).model, LoraConfig(lora_alpha=8, **{"r": 4, **keys})
    )
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    peft.save_pretrained(folder)
    return peft


def layout(folder):
    """What a base's files look like: names, order, types, shapes and metadata of each."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        size = int.from_bytes(path.read_bytes()[:8], "little")
        header = json.loads(path.read_bytes()[8 : 8 + size])
        metadata = header.pop("__metadata__", None)
        found[path.name] = [metadata, *((name, value["dtype"], value["shape"]) for name, value in header.items())]
    return found


def rewrite(base, folder, rules, shards=3, change=lambda name, tensor: tensor):
    """The base with its tensors renamed, changed, and spread over files, in an order that is not the alphabet's."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors*"), dirs_exist_ok=True)
    for sub in base.glob("*/*.safetensors"):
        shutil.copy(sub, folder / sub.relative_to(base))
    state = load_backbone(ModelSection(base=str(base))).model
    tied = set(state.all_tied_weights_keys)
    tensors = {name: tensor for name, tensor in state.state_dict().items() if name not in tied}
    renamed = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, by in rules.items():
            new = re.sub(pattern, by, new)
        renamed[new] = change(name, tensor.clone())
    names = sorted(renamed, key=lambda name: name[::-1])
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: renamed[name] for name in names[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt", "part": str(number)})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(tensor.numel() * tensor.element_size() for tensor in renamed.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tensors_of(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return found


@pytest.fixture(scope="session")
def published(make_base, tmp_path_factory):
    """Folder of a tiny base in three files, its tensors named as in published checkpoints."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = rewrite(make_base(name), tmp_path_factory.mktemp("published") / name, PUBLISHED[name])
        return made[name]

    return make
