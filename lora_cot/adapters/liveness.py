"""Does every adapter learn? Watched during the first steps, so that a dead one costs seconds, not a night."""

from __future__ import annotations

from typing import Any

import torch

from lora_cot.errors import Problem, TrainingError


class Liveness:
    """Marks each trained tensor that has had a gradient other than zero.

    LoRA's A has none at the first step, because B begins at zero: only B and what is trained in full are watched.
    """

    def __init__(self, model: torch.nn.Module):
        watched = {n: p for n, p in model.named_parameters() if p.requires_grad and "lora_A" not in n}
        self._waiting = dict.fromkeys(watched)
        self._hooks = [p.register_post_accumulate_grad_hook(self._hook(name)) for name, p in watched.items()]

    def _hook(self, name: str) -> Any:
        def mark(parameter: torch.Tensor) -> None:
            if name in self._waiting and parameter.grad is not None and bool(parameter.grad.any()):
                del self._waiting[name]

        return mark

    def close(self) -> list[str]:
        """Stop watching; names of the tensors that never had a gradient."""
        for hook in self._hooks:
            hook.remove()
        return list(self._waiting)

    def check(self) -> None:
        """Stop watching and raise if anything is dead.

        Raises:
            TrainingError: naming what got no gradient.
        """
        dead = self.close()
        if dead:
            what = f"{len(dead)} trained tensors got no gradient: {', '.join(dead[:3])}{' …' if len(dead) > 3 else ''}"
            raise TrainingError(Problem("lora", what, "take those layers out of lora.parts or lora.target_modules"))
