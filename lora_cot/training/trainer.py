"""TRL's SFTTrainer with our loss by stage, our batches, and held-out questions answered at every evaluation."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from lora_cot.backbones import Backbone
from lora_cot.backbones.zero import unhooked
from lora_cot.data.collate import as_dataset
from lora_cot.data.lengths import Kept
from lora_cot.errors import Problem, TrainingError
from lora_cot.formats import CotFormat
from lora_cot.recipe import Recipe
from lora_cot.training.heads import fuse_head
from lora_cot.training.loop import Keeping, SafeTrainer
from lora_cot.training.losses import FurtherLosses, stage_loss, stage_sums
from lora_cot.training.optimizer import set_learning_rates
from lora_cot.training.quality import measure
from lora_cot.types import Sample


class CotTrainer(SafeTrainer):
    """Logs, for each stage, `loss/STAGE` and `token_accuracy/STAGE`; evaluation adds `format_validity` and `accuracy`.

    Losses that a model adds while it is trained are logged as `loss/NAME`.

    TRL gives each label's log-probability without the full logits; its own loss is replaced, since it knows no stages.
    """

    def __init__(
        self,
        backbone: Backbone,
        cot_format: CotFormat,
        recipe: Recipe,
        data: tuple[Kept, Kept],
        questions: Sequence[Sample],
        keeping: Keeping,
        **options: Any,
    ):
        """
        Args:
            backbone: with its adapters attached.
            cot_format: its stages are what losses are told apart by.
            recipe: its stage weights and learning rates, and the budgets of answers.
            data: trained on, and held out.
            questions: answered at each evaluation.
            keeping: checkpoints: where they go, and which to go on from.
            options: SFTTrainer's own.
        """
        _score_labels_alone()
        arguments = options["args"]
        train_set, eval_set = data
        in_chat = not backbone.family.is_encoder_decoder
        with _checkpointing_as_told(arguments), _precision_kept(backbone.model, arguments):
            super().__init__(
                keeping=keeping,
                family=backbone.family,
                data=data,
                by_length=recipe.training.train_sampling_strategy == "group_by_length",
                model=backbone.model,
                processing_class=backbone.processor if in_chat else backbone.processor.tokenizer,
                train_dataset=as_dataset(train_set, in_chat),
                eval_dataset=as_dataset(eval_set, in_chat) if eval_set.samples else None,
                **options,
            )
        if not in_chat:
            fuse_head(backbone)
        self._backbone, self._format, self._questions, self._recipe = backbone, cot_format, questions, recipe
        self.model_accepts_loss_kwargs = True  # of all families: the loss is ours, over the tokens of a whole step
        self._names, self._further = [stage.name for stage in cot_format.stages], FurtherLosses(backbone)
        self._weights = torch.tensor([recipe.training.stage_weights.get(name, 1.0) for name in self._names])
        self._sums: dict[str, torch.Tensor] = {}
        self._tokens, self._since = torch.zeros(()), time.perf_counter()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The optimizer of the recipe, with the learning rates of parts that have their own."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh:
            set_learning_rates(optimizer, self._backbone, self._recipe.lora)
        return optimizer

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The batches of one optimizer step; the items of its further losses are counted, as transformers counts tokens."""
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._further.begin_step(batches, device, self.args.average_tokens_across_devices and self.accelerator.gather)
        return batches, tokens

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See `losses`; without `num_items_in_batch` the mean over this batch."""
        stage_ids = inputs.pop("stage_ids")
        outputs = model(**inputs, fused_lm_head=True)
        stage_ids = stage_ids[:, -outputs.log_probs.shape[1] :]  # a causal model's first token is no label
        if model.training and not outputs.log_probs.requires_grad:
            what = "the loss of this batch does not depend on anything that is trained"
            raise TrainingError(Problem("lora.parts", what, "adapt a part that these samples use"))
        count = (stage_ids >= 0).sum() if num_items_in_batch is None else num_items_in_batch
        loss = stage_loss(outputs.log_probs, stage_ids, self._weights.to(stage_ids.device), count)
        loss = loss + self._further.of(outputs)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        mode = "train" if model.training else "eval"
        sums = stage_sums(outputs.log_probs, outputs.is_top1, stage_ids, len(self._names))
        sums = torch.cat([sums, self._further.sums(outputs, inputs, sums.device)])
        self._sums[mode] = self._sums.get(mode, 0) + sums
        if mode == "train":
            self._tokens = self._tokens + inputs["attention_mask"].sum()
            if self._backbone.family.is_encoder_decoder:
                self._tokens = self._tokens + (stage_ids >= 0).sum()
            self.guards.check_loss(loss, self.accelerator.sync_gradients)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """The loss alone: logits are never built."""
        self.guards.at("an evaluation")
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The loss on held-out samples, and the share of valid and right answers among those answered."""
        output = super().evaluation_loop(*args, **kwargs)
        assert output.metrics is not None
        if "eval" in self._sums:  # a mean over tokens: batches are of different sizes
            stages = self._sums["eval"][: len(self._names)]
            loss, _, count = self.accelerator.reduce(stages, reduction="sum").unbind(-1)
            weights = self._weights.to(loss.device)
            output.metrics["eval_loss"] = float((loss * weights).sum() / count.sum().clamp(min=1))
        if self._questions:
            with unhooked(self.model_wrapped):
                quality = measure(self._backbone, self._format, self._questions, self._recipe, self.guards.between_answers)
            output.metrics["eval_format_validity"] = quality.format_validity
            if quality.accuracy is not None:
                output.metrics["eval_accuracy"] = quality.accuracy
        # All ranks must choose the same best checkpoint and stop together, however their numbers round.
        return output._replace(metrics=broadcast_object_list([output.metrics])[0])

    def _sums_now(self) -> dict[str, Any]:
        sums = self._sums.get("train")
        return {**super()._sums_now(), "stages": None if sums is None else sums.detach().cpu().clone()}

    def _restore_sums(self, sums: Mapping[str, Any]) -> None:
        super()._restore_sums(sums)
        if (stages := sums.get("stages")) is not None:
            self._sums["train"] = stages.to(self.args.device)

    def log(self, logs: Any, start_time: float | None = None) -> None:
        """Adds losses by stage, real tokens a second and peak memory."""
        for mode, prefix in (("train", ""), ("eval", "eval_")):
            if (mode == "eval") == any(key.startswith("eval_") for key in logs) and mode in self._sums:
                sums = self.accelerator.reduce(self._sums.pop(mode), reduction="sum").tolist()
                for name, (loss, right, count) in zip([*self._names, *self._further.names], sums, strict=True):
                    if count:
                        logs[f"{prefix}loss/{name}"] = loss / count
                        if name in self._names:
                            logs[f"{prefix}token_accuracy/{name}"] = right / count
        if "loss" in logs:
            now = time.perf_counter()
            tokens = self.accelerator.reduce(self._tokens.float().to(self.accelerator.device), reduction="sum")
            logs["tokens_per_second"] = float(tokens) / (now - self._since)
            logs["peak_memory_gb"] = peak_memory_gb()
            self._tokens, self._since = torch.zeros(()), now
        elif any(key.startswith("eval_") for key in logs):
            self._tokens, self._since = torch.zeros(()), time.perf_counter()
        super().log(logs, start_time)


@contextmanager
def _checkpointing_as_told(arguments: Any) -> Iterator[None]:
    """Keeps TRL from turning reentrant checkpointing on under ZeRO-3.

    DeepSpeed no longer needs it (0.19.8), and with it Mllama's layers, each given the same image states, go through the
    vision encoder's graph a second time.
    """
    how: Any = arguments.gradient_checkpointing_kwargs or {}
    reentrant = how.pop("use_reentrant", False) if arguments.deepspeed else None
    yield
    if reentrant is not None:
        how["use_reentrant"] = reentrant
        for name in {"gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"} & vars(arguments).keys():
            setattr(arguments, name, how)  # two names of one mapping, of which TRL has put another under one


@contextmanager
def _precision_kept(model: torch.nn.Module, arguments: Any) -> Iterator[None]:
    """Keeps what is trained in its own precision, or puts it into DeepSpeed's, which has float32 copies.

    On a 4-bit base TRL casts all of it to bf16, without any.
    """
    engine = arguments.hf_deepspeed_config.dtype() if arguments.deepspeed else None
    precision = {name: engine or p.dtype for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in precision:
            parameter.data = parameter.data.to(precision[name])


def _score_labels_alone() -> None:
    """TRL's head scores labelled positions alone where there is Triton, else all: other compilers balk at changing shapes.

    A CPU does not. Prompts and image slots, often most of a row, then cost nothing there either.
    """
    from trl.kernels.chunked_logprob import _use_triton
    from trl.trainer import utils

    utils._use_triton = lambda device: device.type == "cpu" or _use_triton(device)


def peak_memory_gb() -> float:
    """Peak memory so far in GB: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
