from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Diffusion
from bigdiff.diffusion.schedule import alphas_cumprod
from bigdiff.evaluate import sampling
from bigdiff.evaluate.sampling import SCHEDULERS, UNRESCALED, Sampling
from bigdiff.export.diffusers import scheduler

PROMPTS = ["a red circle", "a blue square", "at the left, a green triangle"]
SHORT = Sampling(steps=4, batch=3)


@pytest.fixture(scope="module")
def loaded(pipeline: Path) -> StableDiffusionPipeline:
    return sampling.load(pipeline)


def levels(pipeline: StableDiffusionPipeline, prompts: list[str], settings: Sampling) -> np.ndarray:
    return np.stack([np.asarray(one) for one in sampling.sample(pipeline, prompts, settings)]).astype(int)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_picture_depends_on_seed_and_place_alone(loaded: StableDiffusionPipeline, scheduler: str) -> None:
    settings = replace(SHORT, scheduler=scheduler)
    together = levels(loaded, PROMPTS, settings)
    assert together.shape == (3, 8, 8, 3)
    for batch in (1, 2):
        assert np.abs(levels(loaded, PROMPTS, replace(settings, batch=batch)) - together).max() <= 1
    assert np.abs(levels(loaded, PROMPTS[:2], settings) - together[:2]).max() <= 1
    other = levels(loaded, PROMPTS, replace(settings, seed=1))
    assert all(np.abs(other[place] - together[place]).max() > 1 for place in range(3))
    same = levels(loaded, [PROMPTS[0]] * 2, settings)
    assert np.abs(same[0] - same[1]).max() > 1  # the same words, other noise


def test_a_later_part_of_the_prompts_gives_the_same_pictures(loaded: StableDiffusionPipeline) -> None:
    together = levels(loaded, PROMPTS, SHORT)
    part = sampling.sample(loaded, PROMPTS[1:], SHORT, first=1, bar=False)
    assert np.abs(np.stack([np.asarray(one) for one in part]).astype(int) - together[1:]).max() <= 1


def test_pictures_that_are_not_finite_are_refused(pipeline: Path) -> None:
    """In 8 bits they would be black, and be judged as pictures."""
    broken = sampling.load(pipeline)
    with torch.no_grad():
        broken.vae.decoder.conv_out.bias[1] = float("nan")
    with pytest.raises(UsageError, match="picture 7 has values that are not finite: the weights are damaged"):
        sampling.sample(broken, PROMPTS, SHORT, first=7)


def test_ddim_is_what_stock_diffusers_draws(loaded: StableDiffusionPipeline, pipeline: Path) -> None:
    stock = StableDiffusionPipeline.from_pretrained(pipeline)
    assert isinstance(stock.scheduler, DDIMScheduler)
    expected = stock(
        PROMPTS[1],
        negative_prompt="green",
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=sampling.generator(3, 0),
        height=16,
        width=8,
    ).images[0]
    settings = replace(SHORT, guidance=5.0, negative_prompt="green", seed=3, height=16, width=8)
    drawn = levels(loaded, [PROMPTS[1]], settings)[0]
    assert drawn.shape == (16, 8, 3)
    assert np.abs(drawn - np.asarray(expected).astype(int)).max() <= 1


def predicted(target: str, sample: torch.Tensor, cumulative: torch.Tensor) -> torch.Tensor:
    """What a network that knows the data, numbers N(0.7, 0.3^2), says of a noisy one (Bayes)."""
    signal, sigma = cumulative.sqrt(), (1 - cumulative).sqrt()
    clean = (0.7 * sigma**2 + signal * 0.09 * sample) / (signal**2 * 0.09 + sigma**2)
    eps = (sample - signal * clean) / sigma
    return {"sample": clean, "epsilon": eps, "v_prediction": signal * eps - sigma * clean}[target]


def draw(name: str, diffusion: Diffusion) -> torch.Tensor:
    """Numbers that the scheduler makes of noise with that network."""
    trained = scheduler(diffusion).config
    sampling.refuse_unfit(name, trained)
    steps = SCHEDULERS[name].from_config(trained)
    steps.set_timesteps(20)
    cumulative = alphas_cumprod(diffusion).float()
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * steps.init_noise_sigma
    own = {"generator": torch.Generator().manual_seed(1)} if name == "ddpm" else {}
    for timestep in steps.timesteps:
        told = predicted(
            diffusion.prediction_type, steps.scale_model_input(noise, timestep), cumulative[int(timestep.round())]
        )
        noise = steps.step(told, timestep, noise, **own).prev_sample
    return noise


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_target_is_sampled_to_the_same_data_or_refused(name: str, zero: bool) -> None:
    drawn = {}
    for target in ("epsilon", "v_prediction", "sample"):
        refused = (name in UNRESCALED and zero) or (name == "pndm" and target == "sample")
        diffusion = Diffusion(prediction_type=target, zero_terminal_snr=zero)  # type: ignore[arg-type]
        if zero and target == "epsilon":
            continue  # no stage trains it
        if refused:
            with pytest.raises(UsageError, match=f"scheduler {name} knows no .* take one of ddim, ddpm, euler"):
                draw(name, diffusion)
            continue
        drawn[target] = draw(name, diffusion)
        assert float(drawn[target].mean()) == pytest.approx(0.7, abs=0.05)
        assert 0.2 < float(drawn[target].std()) < 0.31
        if name != "pndm":  # which takes eps and v for differences of another kind
            torch.testing.assert_close(drawn[target], next(iter(drawn.values())), rtol=0, atol=1e-3)
    assert drawn or (zero and name in UNRESCALED)


def test_guidance_and_negative_prompts_have_their_effect(loaded: StableDiffusionPipeline) -> None:
    plain = levels(loaded, PROMPTS, replace(SHORT, guidance=9.0))
    assert np.abs(levels(loaded, PROMPTS, replace(SHORT, guidance=1.0)) - plain).max() > 1
    assert np.abs(levels(loaded, PROMPTS, replace(SHORT, guidance=9.0, negative_prompt="dark")) - plain).max() > 1


def test_generators_of_many_pictures_differ() -> None:
    drawn = {
        float(torch.rand((), generator=sampling.generator(seed, index))) for seed in range(20) for index in range(50)
    }
    assert len(drawn) == 1000


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scheduler": "best"}, "'best' is unknown: take one of ddim"),
        ({"steps": 0}, "steps=0"),
        ({"batch": 0}, "batch=0"),
        ({"guidance": 0.5}, "guidance=0.5"),
        ({"guidance": 1.0, "negative_prompt": "dark"}, "no effect"),
        ({"height": 9, "width": 9}, "refuses"),
        ({"steps": 1001}, "steps=1001 are more than the 1000 timesteps of this model"),
        ({"steps": 1001, "scheduler": "dpm++"}, "steps=1001"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    loaded: StableDiffusionPipeline, change: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        sampling.sample(loaded, PROMPTS, replace(SHORT, **change))


def test_what_is_no_pipeline_is_refused(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a pipeline"):
        sampling.load(tmp_path)
    (tmp_path / "model_index.json").write_bytes((pipeline / "model_index.json").read_bytes())
    with pytest.raises(UsageError, match="cannot be loaded"):
        sampling.load(tmp_path)


def test_prompts_are_read_a_line_each(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n  a caf\u00e9 \n", encoding="utf-8")
    assert sampling.read_prompts(file) == ["a red circle", "a caf\u00e9"]
    file.write_text("a red circle\n\na blue square\n")
    with pytest.raises(UsageError, match=r"prompts\.txt line 2 is empty"):
        sampling.read_prompts(file)
    file.write_text("")
    with pytest.raises(UsageError, match="no prompts"):
        sampling.read_prompts(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read"):
        sampling.read_prompts(file)
    with pytest.raises(UsageError, match="cannot read"):
        sampling.read_prompts(tmp_path / "none.txt")
