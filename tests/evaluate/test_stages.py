"""Pictures from pictures, and enlarged: against diffusers' own image-to-image pipeline, and whatever the batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from bigdiff.config.errors import UsageError
from bigdiff.evaluate import denoising, sampling, stages
from bigdiff.evaluate.sampling import SCHEDULERS, Request, Sampling
from bigdiff.evaluate.stages import Stages

LATER = [name for name in SCHEDULERS if name not in denoising.FROM_NOISE]
WANTED = [
    Request(prompt="a red circle", negative="dark"),
    Request(prompt="b", seed=3, place=1),
    Request(prompt="at the left, a green triangle", seed=3, place=2),
]
SHORT = Sampling(steps=5, batch=3)
_RANDOM = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
PICTURE = np.array(Image.fromarray(_RANDOM).resize((20, 12), Image.Resampling.BICUBIC))
BEGUN = Stages(image=PICTURE, strength=0.6)
LARGER = Stages(upscale=1.5, upscale_strength=0.6)


@pytest.fixture(scope="module")
def loaded(pipeline: Path) -> StableDiffusionPipeline:
    return sampling.load(pipeline)


def levels(pipeline: StableDiffusionPipeline, wanted: list[Request], settings: Sampling, how: Stages) -> np.ndarray:
    drawn = stages.drawn(pipeline, wanted, settings, how, bar=False)
    return np.stack([np.asarray(one) for one in drawn]).astype(int)


@pytest.mark.parametrize("strength", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("name", LATER)
def test_a_picture_from_a_picture_is_what_diffusers_draws(
    loaded: StableDiffusionPipeline, name: str, strength: float
) -> None:
    settings = replace(SHORT, scheduler=name, guidance=4.0, height=12, width=12)
    found = levels(loaded, WANTED, settings, replace(BEGUN, strength=strength))
    stock = StableDiffusionImg2ImgPipeline(**loaded.components, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        prompt=[one.prompt for one in WANTED],
        negative_prompt=[one.negative for one in WANTED],
        image=Image.fromarray(PICTURE),
        strength=strength,
        num_inference_steps=5,
        guidance_scale=4.0,
        generator=[sampling.generator(one.seed, one.place) for one in WANTED],
    ).images
    assert found.shape == (3, 12, 20, 3)
    assert np.abs(found - np.stack([np.asarray(one) for one in expected])).max() <= 1


def of_four_channels(loaded: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """Diffusers' pipeline from latents knows them by their four channels."""
    torch.manual_seed(0)
    settings = {**loaded.unet.config, "in_channels": 4, "out_channels": 4}
    unet = UNet2DConditionModel.from_config(settings)
    vae = AutoencoderKL.from_config({**loaded.vae.config, "latent_channels": 4})
    made = StableDiffusionPipeline(
        **{**loaded.components, "unet": unet.eval(), "vae": vae.eval()}, requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("name", LATER)
def test_a_larger_picture_is_what_diffusers_draws_over_the_interpolated_latents(
    loaded: StableDiffusionPipeline, name: str
) -> None:
    pipeline = of_four_channels(loaded)
    settings = replace(SHORT, scheduler=name, guidance=4.0)
    found = levels(pipeline, WANTED, settings, LARGER)
    said = {
        "prompt": [one.prompt for one in WANTED],
        "negative_prompt": [one.negative for one in WANTED],
        "num_inference_steps": 5,
        "guidance_scale": 4.0,
        "generator": [sampling.generator(one.seed, one.place) for one in WANTED],
    }
    small = pipeline(**said, output_type="latent").images
    second = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    second.set_progress_bar_config(disable=True)
    expected = second(
        **said, image=torch.nn.functional.interpolate(small, scale_factor=1.5, mode="bilinear"), strength=0.6
    )
    assert small.shape == (3, 4, 4, 4) and found.shape == (3, 12, 12, 3)
    assert np.abs(found - np.stack([np.asarray(one) for one in expected.images])).max() <= 1


@pytest.mark.parametrize(
    ("how", "shape"),
    [(BEGUN, (8, 12)), (LARGER, (12, 12)), (replace(BEGUN, upscale=2.0, upscale_strength=0.5), (16, 24))],
)
@pytest.mark.parametrize("name", LATER)
def test_a_picture_depends_on_seed_and_place_alone(
    loaded: StableDiffusionPipeline, name: str, how: Stages, shape: tuple[int, int]
) -> None:
    settings = replace(SHORT, scheduler=name)
    together = levels(loaded, WANTED, settings, how)
    assert together.shape == (3, *shape, 3)
    assert np.abs(levels(loaded, WANTED, replace(settings, batch=2), how) - together).max() <= 1
    assert np.abs(levels(loaded, WANTED[1:], replace(settings, batch=1), how) - together[1:]).max() <= 1
    moved = [replace(one, seed=one.seed + 1) for one in WANTED]
    assert all(one.max() > 1 for one in np.abs(levels(loaded, moved, settings, how) - together))


def test_settings_that_cannot_work_are_refused(loaded: StableDiffusionPipeline) -> None:
    for change, how, sentence in (
        ({"scheduler": "pndm"}, BEGUN, "pndm begins with noise alone"),
        ({"steps": 1001}, BEGUN, "steps=1001 are more than the 1000 timesteps"),
        ({"height": 9}, BEGUN, "--size 9 must be a multiple of 2"),
        ({"batch": 0}, BEGUN, "batch=0"),
        ({}, replace(BEGUN, strength=0.1), "--strength 0.1 of 5 steps is no step"),
        ({}, replace(LARGER, upscale_strength=0.1), "--upscale-strength 0.1 of 5 steps is no step"),
        ({}, replace(LARGER, upscale=1.1), "--upscale 1.1 of 4 x 4 latents gives no whole ones"),
        ({"scheduler": "pndm"}, LARGER, "pndm begins with noise alone"),
        ({"width": 9}, LARGER, "--size 9 must be a multiple of 2"),
    ):
        with pytest.raises(UsageError, match=sentence):
            levels(loaded, WANTED, replace(SHORT, **change), how)  # type: ignore[arg-type]
