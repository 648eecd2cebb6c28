"""The best checkpoint, at the end of a run."""

from types import SimpleNamespace

import pytest

from lora_cot.errors import RunError
from lora_cot.training.loop import SafeTrainer


def test_a_damaged_best_checkpoint_does_not_stop_a_run_for_good(tmp_path):
    """The way to the last weights is told."""
    run = SimpleNamespace(_keeping=SimpleNamespace(root=tmp_path), state=SimpleNamespace(best_global_step=3))
    told = "checkpoint-3 · no manifest.json: it was not finished · .* training.load_best_model_at_end=false"
    with pytest.raises(RunError, match=told.replace(".json", r"\.json")):
        SafeTrainer._load_best_model(run)
