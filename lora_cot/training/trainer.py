"""TRL's SFTTrainer with our loss by stage, and held-out questions answered at every evaluation."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from trl import SFTTrainer

from lora_cot.backbones import Backbone
from lora_cot.errors import Problem, TrainingError
from lora_cot.formats import CotFormat
from lora_cot.recipe import Recipe
from lora_cot.training.losses import stage_loss, stage_sums
from lora_cot.training.quality import measure
from lora_cot.types import Sample


class CotTrainer(SFTTrainer):
    """Logs, for each stage, `loss/STAGE` and `token_accuracy/STAGE`; evaluation adds `format_validity` and `accuracy`.

    TRL gives each label's log-probability without the full logits; its own loss is replaced, since it knows no stages.
    """

    def __init__(
        self,
        backbone: Backbone,
        cot_format: CotFormat,
        recipe: Recipe,
        questions: Sequence[Sample],
        **options: Any,
    ):
        """
        Args:
            backbone: with its adapters attached.
            cot_format: its stages are what losses are told apart by.
            recipe: its stage weights, and the budgets of answers.
            questions: answered at each evaluation.
            options: SFTTrainer's own.
        """
        precision = {name: p.dtype for name, p in backbone.model.named_parameters() if p.requires_grad}
        super().__init__(model=backbone.model, processing_class=backbone.processor, **options)
        for name, parameter in backbone.model.named_parameters():
            if name in precision:  # on a 4-bit base TRL casts all of it to bf16, without float32 copies
                parameter.data = parameter.data.to(precision[name])
        self._backbone, self._format, self._questions, self._recipe = backbone, cot_format, questions, recipe
        self._names = [stage.name for stage in cot_format.stages]
        self._weights = torch.tensor([recipe.training.stage_weights.get(name, 1.0) for name in self._names])
        self._sums: dict[str, torch.Tensor] = {}
        self._tokens, self._since = 0, time.perf_counter()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See `losses.stage_loss`; without `num_items_in_batch` the mean over this batch."""
        stage_ids = inputs.pop("stage_ids")[:, 1:]
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        if model.training and not outputs.log_probs.requires_grad:
            what = "the loss of this batch does not depend on anything that is trained"
            raise TrainingError(Problem("lora.parts", what, "adapt a part that these samples use"))
        count = (stage_ids >= 0).sum() if num_items_in_batch is None else num_items_in_batch
        loss = stage_loss(outputs.log_probs, stage_ids, self._weights.to(stage_ids.device), count)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        mode = "train" if model.training else "eval"
        sums = stage_sums(outputs.log_probs, outputs.is_top1, stage_ids, len(self._names))
        self._sums[mode] = self._sums.get(mode, 0) + sums
        if mode == "train":
            self._tokens += int(inputs["attention_mask"].sum())
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """The loss alone: logits are never built."""
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The loss on held-out samples, and the share of valid and right answers among those answered."""
        output = super().evaluation_loop(*args, **kwargs)
        if self._questions:
            quality = measure(self._backbone, self._format, self._questions, self._recipe)
            assert output.metrics is not None
            output.metrics.update(eval_format_validity=quality.format_validity, eval_accuracy=quality.accuracy)
        return output

    def log(self, logs: Any, start_time: float | None = None) -> None:
        """Adds losses by stage, real tokens a second and peak memory."""
        for mode, prefix in (("train", ""), ("eval", "eval_")):
            if (mode == "eval") == any(key.startswith("eval_") for key in logs) and mode in self._sums:
                sums = self.accelerator.reduce(self._sums.pop(mode), reduction="sum").tolist()
                for name, (loss, right, count) in zip(self._names, sums, strict=True):
                    if count:
                        logs[f"{prefix}loss/{name}"] = loss / count
                        logs[f"{prefix}token_accuracy/{name}"] = right / count
        if "loss" in logs:
            now = time.perf_counter()
            logs["tokens_per_second"] = self._tokens / (now - self._since)
            logs["peak_memory_gb"] = peak_memory_gb()
            self._tokens, self._since = 0, now
        elif any(key.startswith("eval_") for key in logs):
            self._tokens, self._since = 0, time.perf_counter()
        super().log(logs, start_time)


def peak_memory_gb() -> float:
    """Peak memory so far in GB: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
