from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from bigdiff.config.errors import UsageError
from bigdiff.evaluate import sampling
from bigdiff.evaluate.sampling import SCHEDULERS, Sampling

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
        ({"steps": 2000}, "refuses"),
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
