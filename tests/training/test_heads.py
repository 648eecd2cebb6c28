"""The fused head gives the log-probabilities of the model's own logits, of either kind of model."""

import torch

from lora_cot.backbones.loading import load_backbone
from lora_cot.data.collate import batch, encode
from lora_cot.data.labels import IGNORE_INDEX
from lora_cot.data.shapes import make_sample
from lora_cot.formats import FORMATS
from lora_cot.recipe.model import ModelSection
from lora_cot.training.heads import fuse_head


def test_log_probs_are_those_of_the_labels(each_base):
    """At every labelled place, and whether the label was the likeliest; the plain forward is as it was."""
    backbone = load_backbone(ModelSection(base=str(each_base)))
    encoder = backbone.encoder(FORMATS["four_stage"])
    rows = [encode(encoder, make_sample(number, "train", 0), True) for number in range(3)]
    made = batch(rows, backbone.processor, backbone.family.image_inputs)
    made.pop("stage_ids")
    with torch.no_grad():
        logits, labels = backbone.label_logits(made)
        fuse_head(backbone)
        output = backbone.model(**backbone.place(made), fused_lm_head=True)
        again, _ = backbone.label_logits(made)
    expected = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    trained = labels != IGNORE_INDEX
    assert output.log_probs.shape == labels.shape and trained.any()
    torch.testing.assert_close(output.log_probs[trained], expected[trained], atol=1e-4, rtol=1e-4)
    assert torch.equal(output.is_top1[trained].bool(), (logits.argmax(-1) == labels)[trained])
    torch.testing.assert_close(again, logits, atol=0, rtol=0)
