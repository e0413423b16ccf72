"""Our loop against diffusers' text-to-image call, from the same noise."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from bigdiff.config.errors import UsageError
from bigdiff.evaluate import denoising, sampling
from bigdiff.evaluate.denoising import Conditions
from bigdiff.evaluate.sampling import SCHEDULERS, Request, Sampling

WANTED = [Request(prompt="a red circle", negative="dark"), Request(prompt="b", seed=3, place=1)]


@pytest.fixture(scope="module")
def loaded(pipeline: Path) -> StableDiffusionPipeline:
    return sampling.load(pipeline)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("name", SCHEDULERS)
@torch.no_grad()
def test_from_noise_it_is_what_diffusers_draws(loaded: StableDiffusionPipeline, name: str, guidance: float) -> None:
    settings = Sampling(steps=4, scheduler=name, guidance=guidance)
    denoising.prepare(loaded, settings)
    generators = [sampling.generator(one.seed, one.place) for one in WANTED]
    when = denoising.timesteps(loaded, 4, 1.0)
    assert denoising.own_size(loaded) == (8, 8)
    latents = denoising.noise(loaded, 8, 8, generators)
    text = denoising.embeddings(loaded, WANTED, guidance)
    conditions = Conditions(text=text, guidance=guidance, generators=generators)
    found = denoising.denoise(loaded, latents, when, conditions)
    stock = loaded(
        prompt=[one.prompt for one in WANTED],
        negative_prompt=[one.negative for one in WANTED],
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=[sampling.generator(one.seed, one.place) for one in WANTED],
        output_type="latent",
    ).images
    torch.testing.assert_close(found, stock, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strength", [0.25, 0.6, 0.99, 1.0])
def test_strength_is_the_share_of_the_steps_that_are_taken(loaded: StableDiffusionPipeline, strength: float) -> None:
    denoising.prepare(loaded, Sampling(steps=20))
    every = denoising.timesteps(loaded, 20, 1.0)
    assert len(every) == 20
    assert torch.equal(denoising.timesteps(loaded, 20, strength), every[20 - int(20 * strength) :])


@pytest.mark.parametrize(
    ("change", "strength", "sentence"),
    [
        ({"scheduler": "pndm"}, 0.5, "scheduler pndm begins with noise alone, --strength later: take one of ddim"),
        ({}, 0.0, "--strength 0 must be above 0 and at most 1"),
        ({}, 1.01, "--strength 1.01 must be above 0"),
        ({}, float("nan"), "--strength nan must be above 0"),
        ({"steps": 4}, 0.2, "--strength 0.2 of 4 steps is no step"),
    ],
)
def test_where_nothing_can_begin_is_refused(change: dict[str, object], strength: float, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        denoising.refuse_later(replace(Sampling(), **change), strength, "--strength")  # type: ignore[arg-type]
