"""Pictures from small pipelines without text: against what stock diffusers draws, and whatever the batch."""

from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, LDMPipeline, StableDiffusionPipeline, UNet2DModel

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Diffusion
from bigdiff.evaluate import sampling
from bigdiff.evaluate.sampling import SCHEDULERS, Request, Sampling
from bigdiff.evaluate.textless import LATENTS, PIXELS, draw, drawn, either
from bigdiff.export.diffusers import pixel_scheduler, scheduler

SHORT = Sampling(steps=4, batch=3)
Kind: TypeAlias = DDPMPipeline | LDMPipeline


def unet(channels: int) -> UNet2DModel:
    return UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
    )


def of_pixels(channels: int = 3) -> DDPMPipeline:
    torch.manual_seed(0)
    pipeline = DDPMPipeline(unet=unet(channels).eval(), scheduler=pixel_scheduler(Diffusion()))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def of_latents(diffusion: Diffusion | None = None) -> LDMPipeline:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4,), layers_per_block=1, latent_channels=2, norm_num_groups=2, scaling_factor=0.5
    )
    pipeline = LDMPipeline(vqvae=vae.eval(), unet=unet(2).eval(), scheduler=scheduler(diffusion or Diffusion()))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def levels(pipeline: Kind, count: int, settings: Sampling) -> npt.NDArray[np.int64]:
    return np.stack([np.asarray(one) for one in draw(pipeline, count, settings)]).astype(np.int64)


def made(name: str) -> Kind:
    return of_latents() if name == "latents" else of_pixels()


WORKING = [("latents", one) for one in LATENTS] + [("pixels", one) for one in PIXELS]


@pytest.mark.parametrize(("of", "name"), WORKING)
def test_a_picture_depends_on_seed_and_place_alone(of: str, name: str) -> None:
    settings = replace(SHORT, scheduler=name)
    together = levels(made(of), 3, settings)
    assert together.shape == (3, 8, 8, 3)
    torch.manual_seed(5)  # the global generator has no part in it
    pipeline = made(of)
    for batch in (1, 2):
        assert np.abs(levels(pipeline, 3, replace(settings, batch=batch)) - together).max() <= 1
    assert np.abs(levels(pipeline, 2, settings) - together[:2]).max() <= 1
    other = levels(pipeline, 3, replace(settings, seed=1))
    for place in range(3):
        assert np.abs(other[place] - together[place]).max() > 1
        assert np.abs(together[place - 1] - together[place]).max() > 1


def test_a_later_part_is_the_same_pictures_and_what_is_not_finite_is_refused() -> None:
    for pipeline in (of_latents(), of_pixels()):
        together = levels(pipeline, 3, SHORT)
        part = np.stack([np.asarray(one) for one in draw(pipeline, 2, SHORT, first=1, bar=False)]).astype(np.int64)
        assert np.abs(part - together[1:]).max() <= 1
        last = pipeline.unet.conv_out if isinstance(pipeline, DDPMPipeline) else pipeline.vqvae.decoder.conv_out
        with torch.no_grad():
            last.bias[0] = float("nan")
        with pytest.raises(UsageError, match="picture 5 has values that are not finite"):
            draw(pipeline, 1, SHORT, first=5)


@pytest.mark.parametrize(("of", "name"), WORKING)
def test_a_picture_is_what_the_scheduler_makes_of_the_noise_step_by_step(of: str, name: str) -> None:
    pipeline, settings = made(of), replace(SHORT, scheduler=name, seed=3)
    steps = SCHEDULERS[name].from_config(pipeline.scheduler.config)
    steps.set_timesteps(settings.steps)
    random = sampling.generator(3, 0)
    drawn = torch.randn(1, int(pipeline.unet.config["in_channels"]), 8, 8, generator=random) * steps.init_noise_sigma
    own = {"generator": random} if name == "ddpm" else {}
    with torch.no_grad():
        for timestep in steps.timesteps:
            told = pipeline.unet(steps.scale_model_input(drawn, timestep), timestep).sample
            drawn = steps.step(told, timestep, drawn, **own).prev_sample
        if isinstance(pipeline, LDMPipeline):
            drawn = pipeline.vqvae.decode(drawn / 0.5).sample
    pixels = ((drawn.clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 0).numpy()
    assert pixels.std() > 1
    assert np.abs(levels(pipeline, 1, settings)[0] - pixels).max() <= 1


def test_grey_pictures_are_drawn_as_rgb() -> None:
    (picture,) = draw(of_pixels(channels=1), 1, SHORT)
    found = np.asarray(picture)
    assert (picture.mode, found.shape) == ("RGB", (8, 8, 3))
    assert np.array_equal(found[..., 0], found[..., 1]) and np.array_equal(found[..., 0], found[..., 2])


def test_prompts_go_to_models_of_text_and_counts_to_the_others(pipeline: Path) -> None:
    with_text, without = sampling.load(pipeline), of_latents()
    assert isinstance(with_text, StableDiffusionPipeline)
    settings = replace(SHORT, steps=1)
    said, unsaid = [Request(prompt=text, place=place) for place, text in enumerate("ab")], [Request(prompt=None)]
    expected = sampling.sample(with_text, ["a", "b"], settings)
    assert [one.tobytes() for one in either(with_text, said, settings)] == [one.tobytes() for one in expected]
    assert [one.tobytes() for one in either(without, unsaid, settings)] == [
        one.tobytes() for one in draw(without, 1, settings)
    ]
    with pytest.raises(UsageError, match="this model draws what a text says: give prompts, not a count"):
        either(with_text, unsaid, settings)
    with pytest.raises(UsageError, match="was trained without text: give a count of pictures, not prompts"):
        either(without, said, settings)


def test_a_picture_has_the_seed_and_place_that_it_was_asked_with() -> None:
    for pipeline in (of_latents(), of_pixels()):
        other = np.asarray(draw(pipeline, 2, replace(SHORT, seed=5))[1]).astype(int)
        mixed = [Request(prompt=None, seed=0, place=0), Request(prompt=None, seed=5, place=1)]
        assert np.abs(np.asarray(list(drawn(pipeline, mixed, SHORT))[1]).astype(int) - other).max() <= 1


@pytest.mark.parametrize(
    ("of", "name"),
    [("latents", "ddpm"), ("pixels", "pndm"), ("pixels", "euler"), ("pixels", "heun"), ("pixels", "unipc")],
)
def test_a_scheduler_that_the_pipeline_cannot_call_is_refused(of: str, name: str) -> None:
    pipeline, known = made(of), LATENTS if of == "latents" else PIXELS
    sentence = f"scheduler {name} does not work with a {type(pipeline).__name__}: take {' or '.join(known)}"
    assert refusal(pipeline, 1, replace(SHORT, scheduler=name)) == sentence
    assert name not in known and {*known, name} <= SCHEDULERS.keys()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scheduler": "best"}, "scheduler 'best' is unknown"),
        ({"batch": 0}, "batch=0 must be positive"),
        ({"steps": 1001}, "steps=1001 are more than the 1000 timesteps of this model"),
        ({"steps": 1001, "scheduler": "dpm++"}, "steps=1001 are more than"),
        ({"guidance": 5.0}, "guidance has no effect on a model without text: leave it out"),
        ({"negative_prompt": "dark"}, "a negative prompt has no effect on a model without text"),
        ({"height": 16}, "another size has no effect on a model without text"),
        ({"width": 16}, "another size has no effect on a model without text"),
    ],
)
def test_settings_that_cannot_work_or_have_no_effect_are_refused(change: dict[str, object], sentence: str) -> None:
    for pipeline in (of_latents(), of_pixels()):
        before = pipeline.scheduler
        assert sentence in refusal(pipeline, 1, replace(SHORT, **change))  # type: ignore[arg-type]
        assert pipeline.scheduler is before


def test_no_pictures_and_schedulers_that_do_not_fit_the_training_are_refused() -> None:
    for count in (0, -1):
        assert f"count={count} must be positive" in refusal(of_pixels(), count, SHORT)
    rescaled = of_latents(Diffusion(prediction_type="v_prediction", zero_terminal_snr=True))
    assert "knows no zero terminal SNR" in refusal(rescaled, 1, replace(SHORT, scheduler="heun"))
    assert len(draw(rescaled, 1, SHORT)) == 1


def refusal(pipeline: Kind, count: int, settings: Sampling) -> str:
    with pytest.raises(UsageError) as caught:
        draw(pipeline, count, settings)
    return str(caught.value)
