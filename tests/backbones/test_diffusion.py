"""Noise that is added and taken away: closed forms, whatever the UNet is."""

import sys

import pytest
import torch

from lora_cot.backbones import diffusion
from lora_cot.backbones.mini.t5_diffusion import scheduler_config, vae_config
from lora_cot.errors import BackboneError

SHARES = diffusion.kept(scheduler_config())


def latents(rows=3):
    """Some, and noise like them."""
    torch.manual_seed(0)
    return torch.randn(rows, 4, 8, 8), torch.randn(rows, 4, 8, 8)


def test_the_schedule_is_stable_diffusions():
    """Its published beginning and end; (0.00085 to 0.012, by square roots)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(SHARES, (1 - betas).cumprod(0))
    assert SHARES[0] > 0.999 and 0.0045 < SHARES[-1] < 0.0048


@pytest.mark.parametrize("step", [0, 300, 999])
def test_noised_latents_have_the_mean_and_variance_of_the_closed_form(step):
    """√ᾱ · z and 1 − ᾱ, over many draws of the noise that training takes."""
    torch.manual_seed(0)
    one, count = torch.randn(1, 4, 2, 2), 20_000
    share = SHARES[step]
    noise, steps = diffusion.draw(one.expand(count, -1, -1, -1), 1000)
    made = diffusion.noised(one.expand(count, -1, -1, -1), noise, share.expand(count))
    torch.testing.assert_close(made.mean(0), share.sqrt() * one[0], atol=0.03, rtol=0)
    torch.testing.assert_close(made.var(0), (1 - share).expand(4, 2, 2), atol=0.04 * float(1 - share) + 1e-7, rtol=0)
    assert steps.min() == 0 and steps.max() == 999 and abs(steps.float().mean() - 499.5) < 10


def test_a_perfect_prediction_gives_the_exact_latents():
    """From every step, in one step of training and in any number of steps of inference."""
    given, noise = latents()
    steps = torch.tensor([0, 500, 999])
    made = diffusion.noised(given, noise, SHARES[steps])
    torch.testing.assert_close(diffusion.estimated(made, noise, SHARES[steps]), given, atol=2e-5, rtol=1e-4)

    def knows(current, steps):
        share = SHARES[steps][:, None, None, None]
        return (current - share.sqrt() * given) / (1 - share).sqrt()

    for count in (1, 2, 7):
        found = diffusion.denoised(given, noise, SHARES, knows, 700, count)
        torch.testing.assert_close(found, given, atol=1e-4, rtol=1e-4)


def test_denoising_goes_down_in_even_steps_as_ddim_does():
    """diffusers' own DDIM from the same step with the same predictions; without steps nothing happens."""
    from diffusers import DDIMScheduler

    given, noise = latents()
    asked = []

    def predict(current, steps):
        asked.append(steps.tolist())
        return torch.tanh(current)

    found = diffusion.denoised(given, noise, SHARES, predict, 800, 4)
    assert asked == [[800] * 3, [600] * 3, [400] * 3, [200] * 3]
    theirs = DDIMScheduler(**scheduler_config(), clip_sample=False, set_alpha_to_one=True)
    theirs.set_timesteps(5)  # 800, 600, 400, 200, 0
    current = theirs.add_noise(given, noise, torch.tensor([800]))
    for place in (800, 600, 400):
        current = theirs.step(torch.tanh(current), place, current).prev_sample
    clean = theirs.step(torch.tanh(current), 200, current).pred_original_sample
    torch.testing.assert_close(found, clean, atol=1e-5, rtol=1e-4)
    assert torch.equal(diffusion.denoised(given, noise, SHARES, predict, 800, 0), given)


def test_noise_follows_from_a_rows_seed_alone():
    """Whatever else is in the batch and was drawn before."""
    like = torch.zeros(2, 4, 3, 3)
    made = diffusion.own_noise([7, 2**59], like)
    torch.manual_seed(5)
    assert torch.equal(diffusion.own_noise([2**59], like[:1]), made[1:]) and not torch.equal(made[0], made[1])


def test_patches_are_cut_row_by_row():
    """Each holds its own square of every channel."""
    given = torch.arange(2 * 4 * 4).float().view(1, 2, 4, 4)
    made = diffusion.in_patches(given, 2)
    assert made.shape == (1, 4, 8)
    assert torch.equal(made[0, 1], torch.cat([given[0, channel, :2, 2:].flatten() for channel in range(2)]))


def test_latents_are_the_mean_of_diffusers_own_encoder():
    """Of the same weights."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    whole = AutoencoderKL(**vae_config()).eval()
    mine = diffusion.LatentEncoder(vae_config())
    mine.load_state_dict({k: v for k, v in whole.state_dict().items() if k.startswith(("encoder.", "quant_conv."))})
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(mine(pixels), whole.encode(pixels).latent_dist.mean)


def test_a_unet_that_predicts_something_else_is_refused():
    """Its estimate of the latents would be another formula."""
    with pytest.raises(BackboneError, match=r"its UNet predicts v_prediction, and only the noise"):
        diffusion.kept({**scheduler_config(), "prediction_type": "v_prediction"})


def test_without_diffusers_the_extra_is_named(monkeypatch):
    """In one sentence."""
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(BackboneError, match=r"need the package diffusers · pip install 'lora_cot\[diffusion\]'"):
        diffusion.library()
