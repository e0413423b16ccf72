"""What a network is tried on has the shapes, types and layout of what it is trained on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bigdiff.config.load import load_stage
from bigdiff.train import networks, trial

CPU = torch.device("cpu")


def test_a_sample_is_what_the_denoiser_takes_and_the_same_on_every_rank(toy: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"))
    denoiser = networks.load(stage).denoiser
    (one,), (again,) = (list(trial.samples(stage, denoiser, ((4, 4),), CPU)) for _ in range(2))
    assert one.noisy.shape == one.target.shape == (2, 2, 4, 4)
    assert one.noisy.is_contiguous(memory_format=torch.channels_last) and not one.noisy.is_contiguous()
    assert one.text is not None and one.text.shape == (2, 12)
    assert denoiser(one.noisy, one.timesteps, one.text).shape == one.target.shape
    assert again.text is not None
    for mine, theirs in ((one.noisy, again.noisy), (one.text, again.text), (one.timesteps, again.timesteps)):
        assert torch.equal(mine, theirs)


def test_without_text_and_with_plain_layout(toy: Path) -> None:
    textless = [
        "model.text=null",
        "text_dropout=0",
        "model.unet.cross_attention_dim=0",
        "model.unet.down_block_types=[DownBlock2D,AttnDownBlock2D]",
        "model.unet.up_block_types=[AttnUpBlock2D,UpBlock2D]",
        "engine.channels_last=false",
    ]
    stage = load_stage(str(toy / "stage.yaml"), textless)
    denoiser = networks.load(stage).denoiser
    (one,) = trial.samples(stage, denoiser, trial.shapes(stage, []), CPU)
    assert one.text is None and one.noisy.is_contiguous() and one.noisy.shape == (2, 2, 4, 4)
    assert denoiser(one.noisy, one.timesteps).shape == one.target.shape


def bucketed(*buckets: str) -> Any:
    return SimpleNamespace(manifest=SimpleNamespace(buckets=buckets), location="a set")


@pytest.mark.parametrize(
    ("settings", "sets", "expected"),
    [
        ([], [bucketed("", "")], ((64, 64),)),
        (
            ["data.buckets=true"],
            [bucketed("640x384", "512x512", "640x384"), bucketed("384x640", "512x512")],
            ((48, 80), (64, 64), (80, 48)),  # height first; a bucket's name has its width first
        ),
    ],
)
def test_every_shape_that_comes_once(
    settings: list[str], sets: list[Any], expected: tuple[tuple[int, int], ...]
) -> None:
    assert trial.shapes(load_stage("512px", settings), sets) == expected
