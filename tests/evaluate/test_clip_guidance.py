"""CLIP's gradient against finite differences in float64, and its effect on what is drawn."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from bigdiff.config.errors import UsageError
from bigdiff.evaluate import clip_guidance, denoising, sampling, stages
from bigdiff.evaluate.clip_guidance import SCHEDULERS, Steering
from bigdiff.evaluate.sampling import Request, Sampling
from bigdiff.evaluate.stages import Stages
from bigdiff.models.clip import Clip, load_clip

TARGETS = ("epsilon", "v_prediction", "sample")
WANTED = [Request(prompt="a red circle"), Request(prompt="a blue circle", seed=3, place=1)]
SHORT = Sampling(steps=4, guidance=2.0)


@pytest.fixture(scope="module")
def loaded(pipeline: Path) -> StableDiffusionPipeline:
    return sampling.load(pipeline)


@pytest.fixture(scope="module")
def clip(tiny_clip: str) -> Clip:
    return load_clip(tiny_clip, "", for_heads=False, device=torch.device("cpu"))


def levels(pipeline: StableDiffusionPipeline, settings: Sampling, how: Stages) -> np.ndarray:
    return np.stack([np.asarray(one) for one in stages.drawn(pipeline, WANTED, settings, how, bar=False)]).astype(int)


def test_the_loss_is_half_the_squared_angle() -> None:
    angles = torch.tensor([0.0, 1e-4, 0.5, 2.0, 3.1], dtype=torch.float64)
    one = torch.stack([angles.cos(), angles.sin()], dim=1)
    other = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(5, 2)
    torch.testing.assert_close(clip_guidance.spherical(one, other), angles**2 / 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [(90, 60), (48, 70), (32, 32)])
def test_clip_is_shown_what_it_is_shown_by_its_own_transform(clip: Clip, size: tuple[int, int]) -> None:
    small = np.random.default_rng(0).integers(40, 216, (3, 4, 3), np.uint8)
    picture = Image.fromarray(small).resize(size, Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    found = clip_guidance.seen(clip, pixels)
    assert (found - clip.pixels([picture])).abs().max() < 1.1 / 255 / min(clip.preprocessing.std)  # one level


@pytest.mark.parametrize("target", TARGETS)
def test_a_change_of_eps_is_the_same_change_of_every_target(target: str) -> None:
    clean, eps, added = torch.randn(3, 2, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cumulative = torch.tensor(0.3, dtype=torch.float64)
    signal, sigma = cumulative.sqrt(), (1 - cumulative).sqrt()
    noisy = signal * clean + sigma * eps

    def told(of_eps: Tensor) -> Tensor:
        implied = (noisy - sigma * of_eps) / signal
        return {"epsilon": of_eps, "v_prediction": signal * of_eps - sigma * implied, "sample": implied}[target]

    torch.testing.assert_close(clip_guidance.predicted_clean(target, told(eps), noisy, signal, sigma), clean)
    changed = told(eps) + clip_guidance.change(target, added, signal, sigma)
    torch.testing.assert_close(changed, told(eps + added))


@pytest.mark.parametrize("target", TARGETS)
def test_the_gradient_is_that_of_finite_differences(pipeline: Path, clip: Clip, target: str) -> None:
    whole = sampling.load(pipeline).to(torch.float64)
    whole.scheduler = DDIMScheduler.from_config(whole.scheduler.config, prediction_type=target)
    whole.scheduler.set_timesteps(4)
    network = copy.deepcopy(clip.network).double()
    shown = SimpleNamespace(network=network, preprocessing=clip.preprocessing)
    said = torch.from_numpy(clip.text_features([one.prompt or "" for one in WANTED])).double()
    with torch.no_grad():
        text = denoising.embeddings(whole, WANTED, 2.0)
    timestep, random = whole.scheduler.timesteps[1], torch.Generator().manual_seed(0)
    noisy, direction = torch.randn(2, 2, 2, 4, 4, generator=random, dtype=torch.float64)

    @torch.no_grad()
    def loss(latents: Tensor) -> float:
        told = denoising.predicted(whole, latents, timestep, text, 2.0)
        clean = whole.scheduler.step(told, timestep, latents).pred_original_sample
        pixels = whole.vae.decode(clean / whole.vae.config.scaling_factor).sample
        found = network.encode_image(clip_guidance.seen(shown, pixels), normalize=True)  # type: ignore[arg-type]
        return float(7 * ((found * said).sum(dim=1).clamp(-1, 1).arccos() ** 2 / 2).sum())

    leaf = noisy.clone().requires_grad_()
    told = denoising.predicted(whole, leaf, timestep, text, 2.0)
    towards = Steering(clip=shown, scale=7.0, said=said)  # type: ignore[arg-type]
    added = clip_guidance.correction(whole, told, leaf, timestep, towards)
    cumulative = float(whole.scheduler.alphas_cumprod[int(timestep)])
    signal, sigma = math.sqrt(cumulative), math.sqrt(1 - cumulative)
    of_eps = added * {"epsilon": 1.0, "v_prediction": signal, "sample": -signal / sigma}[target]
    step = 1e-4
    slope = (loss(noisy + step * direction) - loss(noisy - step * direction)) / (2 * step)
    assert abs(slope) > 1e-4
    assert float((of_eps / sigma * direction).sum()) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_scale_is_no_guidance(loaded: StableDiffusionPipeline, clip: Clip, name: str) -> None:
    settings = replace(SHORT, scheduler=name)
    found = levels(loaded, settings, Stages(clip=clip, clip_scale=0.0))
    assert np.array_equal(found, levels(loaded, settings, Stages()))
    stock = [np.asarray(one) for one in sampling.drawn(loaded, WANTED, settings, bar=False)]
    assert np.abs(found - np.stack(stock)).max() <= 1


@pytest.mark.parametrize("name", SCHEDULERS)
def test_clip_finds_the_prompt_closer_in_what_it_led(loaded: StableDiffusionPipeline, clip: Clip, name: str) -> None:
    settings = replace(SHORT, scheduler=name, steps=10)
    said = clip.text_features([one.prompt or "" for one in WANTED])

    def cosines(scale: float, batch: int) -> tuple[np.ndarray, np.ndarray]:
        found = levels(loaded, replace(settings, batch=batch), Stages(clip=clip, clip_scale=scale))
        pictures = [Image.fromarray(one.astype(np.uint8)) for one in found]
        return found, (clip.image_features(pictures) * said).sum(axis=1)

    (plain, before), (_, between), (led, after) = cosines(0.0, 2), cosines(20.0, 2), cosines(500.0, 2)
    assert (before < between).all() and (between < after).all()
    assert np.abs(led - plain).max() > 1
    assert np.abs(cosines(500.0, 1)[0] - led).max() <= 1  # whatever the batch


def test_schedulers_and_models_without_its_eps_are_refused(loaded: StableDiffusionPipeline, clip: Clip) -> None:
    for name in ("ddpm", "euler", "heun", "unipc"):
        with pytest.raises(UsageError, match=f"is defined with ddim, pndm, dpm.. alone, .* scheduler {name} is none"):
            levels(loaded, replace(SHORT, scheduler=name), Stages(clip=clip, clip_scale=1.0))
    other = copy.copy(loaded)
    other.scheduler = DDIMScheduler.from_config(
        loaded.scheduler.config, rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
    with pytest.raises(UsageError, match="zero terminal SNR"):
        levels(other, SHORT, Stages(clip=clip, clip_scale=1.0))
