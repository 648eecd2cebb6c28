"""train.py with noise and steps that follow from the latents: the same however rows are shared out among batches and ranks."""

import sys

from lora_cot.backbones import diffusion
from lora_cot.cli import main


def draw(latents, steps):
    """As `diffusion.draw`, by what the latents add up to."""
    places = (latents.detach().flatten(1).abs().sum(1) * 10).round().long().cpu() % steps
    return diffusion.own_noise(places.tolist(), latents), places


if __name__ == "__main__":
    diffusion.draw = draw
    sys.argv.insert(1, "train")
    main()
