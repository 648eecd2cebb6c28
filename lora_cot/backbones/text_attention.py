"""Which words an image's latents looked at while they were refined: the UNet's cross-attention, seen from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import interpolate

from lora_cot.backbones.base import Backbone
from lora_cot.errors import BackboneError, Problem


def text_attention(backbone: Backbone, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """How much each place of the latents looks at each token of the prompt, over all heads, layers and denoising steps.

    Args:
        backbone: with diffusion features; it is run as at inference.
        inputs: input_ids and attention_mask (B, T), vision_features and image_seed, as its batches have them; every row
            with an image.

    Returns:
        (B, T, H, W), its sum over T 1; maps of smaller layers are enlarged.

    Raises:
        BackboneError: the UNet does not look at the text, or is not run.
    """
    if not backbone.looks_at_text:
        what = "the UNet looks at no text here"
        raise BackboneError(Problem("model.diffusion", what, "set cross_attention: true and steps to 1 or more"))
    model: Any = backbone.base_model
    encoder, seen = model.encoder, []
    side = tuple(model.config.latent_shape[1:])

    def look(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        states, text = given[0] if given else named["hidden_states"], named["encoder_hidden_states"]
        query, key = (module.head_to_batch_dim(t) for t in (module.to_q(states), module.to_k(text)))
        mask = module.prepare_attention_mask(named.get("attention_mask"), text.shape[1], len(states))
        weights = module.get_attention_scores(query, key, mask).float()
        height = round(states.shape[1] ** 0.5)  # images are square
        maps = weights.unflatten(0, (len(states), -1)).mean(1).transpose(1, 2).unflatten(2, (height, -1))
        seen.append(interpolate(maps, size=side, mode="nearest"))

    layers = [module for name, module in encoder.diffusion.unet.named_modules() if name.endswith(".attn2")]
    hooks = [module.register_forward_pre_hook(look, with_kwargs=True) for module in layers]
    names = ("input_ids", "attention_mask", "vision_features", "image_seed")
    was_training = model.training
    backbone.use_adapter()
    try:
        with torch.inference_mode():
            encoder.eval()(**{name: value for name, value in backbone.place(inputs).items() if name in names})
    finally:
        encoder.train(was_training)
        for hook in hooks:
            hook.remove()
    return torch.stack(seen).mean(0)
