"""How a model is opened."""

import pytest

from lora_cot.checkpoints.opening import open_model
from lora_cot.errors import RunError


@pytest.mark.parametrize("model", ["mini/llava", "runs/none"])
def test_a_quantisation_that_does_not_exist_is_refused(model):
    """Whatever is to be loaded in it, and before that is looked for."""
    with pytest.raises(RunError, match="--quantization · no quantisation 'int8' · allowed: auto, nf4, none"):
        open_model(model, "int8")
