from pathlib import Path

import numpy as np
import pytest
import torch

from bigdiff.config.load import load_stage
from bigdiff.data.damage import Consumed
from bigdiff.data.latents import Batch
from bigdiff.data.member import layout, pack
from bigdiff.diffusion import objective
from bigdiff.train.denoising import Denoising
from bigdiff.train.inputs import Captions, Latents


def batch(count: int) -> Batch:
    moments = torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(0)).half().numpy()
    tokens = (np.arange(count) + 5).astype(np.uint16)
    members = [pack(moments[row], np.repeat(tokens[row], 12)) for row in range(count)]
    return Batch(
        raw=torch.frombuffer(bytearray(b"".join(members)), dtype=torch.uint8).view(count, -1),
        layout=layout(4, 4, 4, 12),
        bucket="",
        positions=torch.arange(1000, 1000 + count),
        consumed=Consumed(position=1000, samples=count, digest=0, substituted=()),
        wait_seconds=0.0,
    )


def predicted_zero(noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """A network without a weight."""
    assert timesteps.shape == (len(noisy),) and tokens.shape == (len(noisy), 12)
    return torch.zeros_like(noisy)


@pytest.fixture
def task(toy: Path) -> Denoising:
    stage = load_stage(str(toy / "stage.yaml"), ["diffusion.weighting=min_snr", "diffusion.snr_gamma=5"])
    return Denoising(
        stage=stage,
        engine=predicted_zero,  # type: ignore[arg-type]
        objective=objective.build(stage.diffusion, stage.seed, stage.batch.total, torch.device("cpu")),
        samples=Latents(seed=stage.seed, scaling_factor=0.5),
        captions=Captions(
            seed=stage.seed,
            dropout=stage.text_dropout,
            tokenizer=None,  # type: ignore[arg-type] # the tokens are stored
            empty=torch.tensor([1] + [2] * 11),
        ),
    )


def test_the_total_is_the_weighted_mean_and_each_sample_s_loss_unweighted(task: Denoising) -> None:
    given = batch(6)
    losses = task.losses(given)
    noised = task.objective.noised(task.samples.clean(given), given.positions)
    plain = noised.target.square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses.per_sample, plain)
    torch.testing.assert_close(losses.total, (plain * noised.weights).mean())
    assert len(set(noised.weights.tolist())) > 1
    assert losses.timesteps is not None and torch.equal(losses.timesteps, noised.timesteps)
