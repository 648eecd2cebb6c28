"""What is counted without data is what a real step takes, tensor by tensor."""

import weakref
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import trl.trainer.utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from lora_cot.adapters.lora import attach
from lora_cot.backbones.loading import load_backbone
from lora_cot.data.collate import batch
from lora_cot.planning.counting import BATCH, REST, counting
from lora_cot.planning.outline import outline
from lora_cot.planning.steps import Reader, read_prompt, training_step
from lora_cot.planning.workload import Workload, rows
from lora_cot.training.callbacks import drop_input_gradients
from lora_cot.training.heads import fuse_head

WORK = Workload(150, 60, 120, 50, ((90, 60),), None, "")
"""Longer than most of the built-in samples, its rows of two lengths."""


class Real(TorchDispatchMode):
    """The bytes of real tensors made while it is active, and their peak."""

    def __init__(self, model, inputs):
        super().__init__()
        self.live = self.peak = 0
        quantized = [
            state for layer in model.modules() if (state := getattr(getattr(layer, "weight", None), "quant_state", 0))
        ]
        beside = [t for state in quantized for t in state.as_dict().values() if isinstance(t, torch.Tensor)]
        self.held = [*model.parameters(), *model.buffers(), *beside]  # kept, so that nothing else takes their addresses
        self.known = {storage(tensor) for tensor in self.held}
        tree_map_only(torch.Tensor, self.see, inputs)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.see, made)
        return made

    def see(self, tensor):
        if (key := storage(tensor)) not in self.known:
            size = tensor.untyped_storage().nbytes()
            self.known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(tensor.untyped_storage(), self.forget, key, size)

    def forget(self, key, size):
        self.known.discard(key)
        self.live -= size


def storage(tensor):
    return tensor.untyped_storage()._cdata


@contextmanager
def small_tiles(width=32):
    """TRL's head with tiles of so many words: its usual ones would outweigh all else in a tiny model."""
    with mock.patch.object(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", width):
        yield


def prepared(backbone, count, answered):
    """A batch of the largest rows, as the model takes it."""
    made = batch(rows(backbone, WORK, count, answered), backbone.processor, backbone.family.image_inputs, left=not answered)
    made.pop("stage_ids")
    return backbone.place(made)


def real_step(backbone, recipe):
    """Peak of forward and backward on real tensors."""
    model = backbone.model
    fuse_head(backbone)
    model.train()
    if recipe.training.library["gradient_checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        drop_input_gradients(model)
    inputs = prepared(backbone, recipe.training.library["per_device_train_batch_size"], answered=True)
    compact = mock.patch.object(trl.trainer.utils, "_use_triton", lambda device: True)
    with compact, Real(model, inputs) as counted:
        (-model(**inputs, fused_lm_head=True).log_probs.sum()).backward()
    return counted.peak


def pair(recipe):
    """The real model with adapters, and its outline."""
    real = attach(load_backbone(recipe.model, recipe.quantization), recipe.lora)
    return real, outline(recipe, recipe.model.base, real.model.dtype, torch.float32)


QUANTIZED, PLAIN = [], ["quantization=null"]
COMMON = [[*QUANTIZED, "training.gradient_checkpointing=true"], [*PLAIN, "training.gradient_checkpointing=false"]]
OTHER = [[*QUANTIZED, "training.gradient_checkpointing=false"], [*PLAIN, "training.gradient_checkpointing=true"]]


@pytest.mark.crossed
@pytest.mark.parametrize("options", [*COMMON, *(pytest.param(other, marks=pytest.mark.slow) for other in OTHER)], ids=",".join)
def test_a_run_takes_what_was_counted(make_recipe, tmp_path, each_base, options):
    """Reading a prompt, and forward and backward of a batch: of all kinds, in 4 bits or not, with checkpointing or not."""
    recipe = make_recipe(tmp_path, f"model.base={each_base}", *options)
    real, outlined = pair(recipe)
    check_reading(real, Reader(outlined, WORK, gpu=False))
    with small_tiles():
        counted = training_step(outlined, recipe, WORK, gpu=False)
        near = 0.05 if real.family.is_encoder_decoder else 0.01  # a T5 so small is mostly what is made on the way
        assert sum(counted.values()) == pytest.approx(real_step(real, recipe), rel=near)
    assert counted[BATCH] and counted[REST] and counted["language_model"]


def check_reading(real, reader):
    """A prompt's keys and values, and the fullest moment of reading it."""
    inputs = prepared(real, 1, answered=False)
    inputs.pop("labels")
    with Real(real.model, inputs) as counted, torch.no_grad():
        layers = read_prompt(real, inputs)
    assert reader.reading == pytest.approx(counted.peak, rel=0.02)
    kept = sum(t.nbytes for layer in layers for t in (layer.keys, layer.values))
    assert reader.cache(1, 0, 9) == kept
    assert reader.cache(2, 3, 10) == pytest.approx(2 * (4 * kept + 3 * 10 * reader.per_token))
    assert bool(reader.per_image) == (real.family.name == "mllama")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["model.dtype=bfloat16"], marks=pytest.mark.slow),
        ["lora.parts=[vision_encoder,projector,language_model]", "lora.lora_dropout=0.1"],
        ["lora.target_modules=[q_proj,v_proj]", "lora.use_dora=true"],
        ["model.attn_implementation=eager", "quantization.skip_parts=[lm_head]"],
        pytest.param(
            ["training.per_device_train_batch_size=1", "lora.modules_to_save=[multi_modal_projector]"], marks=pytest.mark.slow
        ),
        ["quantization.load_in_4bit=false", "quantization.load_in_8bit=true"],
    ],
    ids=lambda options: options[0],
)
def test_settings_take_what_was_counted(make_recipe, tmp_path, options):
    """Precision, places, dropout, DoRA, eager attention, what is trained in full."""
    recipe = make_recipe(tmp_path, "training.gradient_checkpointing=true", *options)
    real, outlined = pair(recipe)
    with small_tiles():
        counted = sum(training_step(outlined, recipe, WORK, gpu=False).values())
        assert counted == pytest.approx(real_step(real, recipe), rel=0.03)


def test_the_head_scores_in_place_on_a_gpu(make_recipe, tmp_path):
    """One tile of logits at once where there is Triton; several copies of it elsewhere."""
    recipe, trained = make_recipe(tmp_path), 60 + 3 * 50

    def step(gpu, width):
        with small_tiles(width):
            return sum(training_step(outline(recipe, recipe.model.base, *[torch.float32] * 2), recipe, WORK, gpu).values())

    assert step(True, 9000) - step(True, 8000) == 1000 * 4 * trained
    assert step(False, 640) > step(True, 640)


def test_accumulated_gradients_are_there_all_along(make_recipe, tmp_path):
    """In float32, whatever the adapters are computed in; without accumulation those of layers not yet reached are not."""
    found = []
    for accumulation in (1, 2):
        recipe = make_recipe(tmp_path, f"training.gradient_accumulation_steps={accumulation}")
        outlined = outline(recipe, recipe.model.base, torch.float32, torch.bfloat16)
        found.append(training_step(outlined, recipe, WORK, gpu=False))
    trained = sum(p.numel() for p in outlined.model.parameters() if p.requires_grad)
    assert found[1]["gradients"] == 4 * trained > found[0].get("gradients", 0)
    assert sum(found[1].values()) > sum(found[0].values())


def test_gradients_are_there_at_the_end(make_recipe, tmp_path):
    """Every trained parameter gets one."""
    recipe = make_recipe(tmp_path)
    outlined = outline(recipe, recipe.model.base, torch.float32, torch.float32)
    reached = []
    for parameter in outlined.model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: reached.append(p.numel()))
    training_step(outlined, recipe, WORK, gpu=False)
    assert sum(reached) == sum(p.numel() for p in outlined.model.parameters() if p.requires_grad)


def test_counting_leaves_nothing_behind(make_recipe, tmp_path):
    """No hook, no stand-in: attention is torch's own again, also after an error."""
    recipe = make_recipe(tmp_path)
    outlined = outline(recipe, recipe.model.base, torch.float32, torch.float32)
    attention, tower = torch.nn.functional.scaled_dot_product_attention, outlined.part("vision_encoder")
    with pytest.raises(ZeroDivisionError), counting(outlined.model, {"vision_encoder": tower}, {}, gpu=True):
        assert torch.nn.functional.scaled_dot_product_attention is not attention
        1 / 0  # noqa: B018
    assert torch.nn.functional.scaled_dot_product_attention is attention
    assert not tower._forward_hooks and not tower._forward_pre_hooks


def test_attention_keeps_what_a_fused_kernel_keeps():
    """Its inputs, its output, its mask as numbers and a number for each query; a half's gradient is summed in float32."""
    for dtype, summed in ((torch.float32, 0), (torch.bfloat16, 4)):
        heads = [torch.empty(2, 3, 50, 8, device="meta", dtype=dtype, requires_grad=True) for _ in range(3)]
        mask, size = torch.empty(2, 1, 50, 50, device="meta", dtype=torch.bool), 2 * 3 * 50 * 8
        with counting(torch.nn.Module(), {}, {}, gpu=True) as counted:
            for tensor in (*heads, mask):
                counted.see(tensor, BATCH)
            before = counted.live
            output = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask)
            kept = dtype.itemsize * (size + 2 * 50 * 50) + 4 * 2 * 3 * 50
            assert counted.live - before == kept and output.shape == heads[0].shape
            output.backward(output.detach())
            assert counted.peak - before >= kept + (3 * dtype.itemsize + summed) * size


def test_live_bytes_come_and_go():
    """Views are no second copy; what is freed is no longer live; the peak stays, with its owners."""
    layer = torch.nn.Linear(4, 4, device="meta")
    with counting(torch.nn.Module(), {}, {"x": torch.empty(10, device="meta")}, gpu=False) as counted:
        assert counted.live == 40
        one = torch.empty(100, device="meta")
        view = one.view(10, 10)[2:]
        assert counted.live == 440
        del one
        assert counted.live == 440
        del view
        assert counted.live == 40 and counted.peak == 440
        whole = torch.arange(6)
        assert whole.tolist() == [0, 1, 2, 3, 4, 5] and counted.live == 40 + 48
        assert (whole > 3).nonzero().flatten().tolist() == [4, 5], "whole numbers are really computed"
        assert torch.empty(2, 6, device="meta")[:, whole > 3].shape == (2, 2)
        assert layer(torch.empty(2, 4)).device.type == "meta"
    assert counted.at_peak == {BATCH: 40, REST: 400}
