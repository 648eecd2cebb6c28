"""A merged folder in the real vLLM: it loads under the base's own names, and answers as it does here.

`VLLM_SERVE` names a program that serves a model: `SERVE FOLDER PORT [FLAGS]`, in the foreground, in an environment of its own.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager

import httpx2
import pytest

from lora_cot.backbones.loading import load_backbone
from lora_cot.data.sources import load_data
from lora_cot.engines.image_parts import image_part
from lora_cot.engines.local import LocalEngine
from lora_cot.formats import FORMATS
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import DataSection, SearchSection
from lora_cot.search.strategies import answer
from tests.merging.conftest import PUBLISHED, layers_of, make_adapter, merge_files, rewrite, tensors_of

SERVE = shutil.which(os.environ.get("VLLM_SERVE", ""))
PATIENCE = float(os.environ.get("VLLM_PATIENCE", 300))
"""Seconds until it must be up."""
TOKENS = 24
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(SERVE is None, reason="VLLM_SERVE names no program that serves a model")]


@contextmanager
def served(folder, log, *flags):
    """The address of a server of that folder, with further flags of vLLM's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as output:
        server = subprocess.Popen(
            [SERVE, str(folder), str(port), *flags], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
    try:
        while not is_up(address):
            assert server.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(1)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def is_up(address):
    try:
        return httpx2.get(f"{address}/health", timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def theirs(address, sample):
    """The server's greedy answer, its tokens."""
    content = [*map(image_part, sample.images), {"type": "text", "text": sample.last.question}]
    asked = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": TOKENS}
    found = httpx2.post(f"{address}/v1/chat/completions", json=asked | {"return_token_ids": True}, timeout=120)
    assert found.status_code == 200, found.text
    return found.json()["choices"][0]["token_ids"]  # the text lacks the half of a character that a random model ends with


def ours(folder, samples):
    """The same here, as texts."""
    engine = LocalEngine(load_backbone(ModelSection(base=str(folder))), FORMATS["direct"])
    stage = FORMATS["direct"].stages[0].name
    search = SearchSection.model_validate({"stages": {stage: {"max_new_tokens": TOKENS}}})
    return [found.text for found in answer(engine, FORMATS["direct"], samples, search)]


def split_processor(base):
    """As it is published: a file of the image processor, which the video half reads too."""
    whole = json.loads((base / "processor_config.json").read_text())
    (base / "processor_config.json").unlink()
    values = whole["image_processor"] | {"processor_class": whole["processor_class"]}
    size = values.pop("size")
    values |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    (base / "preprocessor_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_vllm_serves_what_was_merged(make_base, tmp_path, name):
    """From a base in the published layout; greedily, with the same images and questions, and not as its base answers."""
    base = rewrite(make_base(name), tmp_path / "base", PUBLISHED[name])
    if name == "qwen2_vl":
        split_processor(base)
    make_adapter(base, tmp_path / "adapter", target_modules=layers_of(name))
    merged = merge_files(base, tmp_path / "adapter", tmp_path / "merged")
    assert set(tensors_of(merged)) == set(tensors_of(base))
    data = DataSection.model_validate({"train": [{"source": "shapes", "split": "test", "limit": 4}]})
    samples, _ = load_data(data, FORMATS["direct"])
    wanted = ours(merged, samples)
    assert wanted != ours(base, samples) and all(wanted)
    with served(merged, tmp_path / "vllm.log") as address:
        found = [theirs(address, sample) for sample in samples]
    tokenizer = load_backbone(ModelSection(base=str(merged))).processor.tokenizer
    texts = [tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) for ids in found]
    assert [text.removesuffix(tokenizer.eos_token) for text in texts] == wanted
