from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from bigdiff.config.load import load_stage
from bigdiff.data.damage import Consumed
from bigdiff.data.latents import Batch
from bigdiff.data.member import layout, pack
from bigdiff.runtime import seeding
from bigdiff.train import step
from bigdiff.train.run import Run


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


@pytest.fixture
def run(toy: Path) -> Run:
    stage = load_stage(str(toy / "stage.yaml"))
    world = SimpleNamespace(device=torch.device("cpu"))
    empty = torch.tensor([1] + [2] * 11)
    return SimpleNamespace(stage=stage, world=world, scaling_factor=0.5, empty_tokens=empty)  # type: ignore[return-value]


def test_latents_are_a_scaled_posterior_sample(run: Run) -> None:
    given = batch(5)
    drawn = step.draw_latents(run, given)
    stored = DiagonalGaussianDistribution(given.moments.float())
    noise = seeding.normal(run.stage.seed, "posterior", given.positions, (2, 4, 4))
    torch.testing.assert_close(drawn, (stored.mean + stored.std * noise) * 0.5)
    again = step.draw_latents(run, replace(given, positions=given.positions + 96))  # the next visit draws anew
    assert not torch.equal(drawn, again)


def test_captions_drop_at_the_configured_rate_by_position(run: Run) -> None:
    given = batch(4000)
    kept = step.drop_captions(run, given.tokens, given.positions)
    dropped = (kept == run.empty_tokens).all(dim=1)
    assert torch.equal(kept[~dropped], given.tokens[~dropped])
    assert dropped.double().mean() == pytest.approx(run.stage.text_dropout, abs=0.03)
    half = step.drop_captions(run, given.tokens[2000:], given.positions[2000:])
    assert torch.equal(half, kept[2000:])
    other = step.drop_captions(run, given.tokens, given.positions + 4000)
    assert not torch.equal((other == run.empty_tokens).all(dim=1), dropped)
