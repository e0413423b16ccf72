from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import vgg16

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.evaluate.validation import Sums
from bigdiff.runtime.seeding import normal
from bigdiff.runtime.world import World
from bigdiff.train import autoencoders
from bigdiff.train.held_pictures import HeldPictures, opened

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
TINY = (
    "resolution=16",
    "model.autoencoder.block_out_channels=[4,8]",
    "model.autoencoder.norm_num_groups=2",
    "model.autoencoder.layers_per_block=1",
    "model.autoencoder.perceptual_heads=",
    "model.autoencoder.disc_channels=4",
    "model.autoencoder.disc_layers=1",
    "model.autoencoder.kl_weight=0.5",
    "batch.total=8",
    "data.images=elsewhere",
    "log.every=1",
    "validation.every=1",
)
WITHOUT = ("model.autoencoder.perceptual_weight=0", "model.autoencoder.perceptual_vgg=")


def stage(held: Path, *more: str) -> Stage:
    return load_stage("kl-f8", [*TINY, f"validation.set={held}", "validation.samples=16", *more])


def found(of: Stage) -> tuple[HeldPictures, Sums]:
    """What the samples give with the stage's first weights."""
    given = autoencoders.load(of)
    with opened(given, WORLD) as held, torch.inference_mode():
        weights = held.prepared({name: one.detach() for name, one in given.trained().items()}, half=False)
        batches = held.batches()
        parts = [held.sums(weights, batch) for _ in range(held.stage.steps) for batch in next(batches)]
        batches.close()
    return held, Sums.of_all(parts)


def test_it_is_what_stock_networks_and_numpy_find(image_set: Callable[..., Path], tmp_path: Path) -> None:
    torch.save(vgg16(weights=None).features.state_dict(prefix="features."), tmp_path / "vgg.pth")
    of = stage(image_set(10, 10), f"model.autoencoder.perceptual_vgg={tmp_path}/vgg.pth", "seed=3")
    held, sums = found(of)
    scores = held.scores(sums, "_ema")
    given = autoencoders.load(of)
    vae, terms = given.module.vae.eval(), []
    with opened(given, WORLD) as again, torch.no_grad():
        batches = again.batches()
        for batch in (batch for _ in range(2) for batch in next(batches)):
            pixels = batch.pixels.float() / 127.5 - 1
            posterior = vae.encode(pixels).latent_dist
            drawn = vae.decode(
                posterior.mean + posterior.std * normal(0, "posterior", batch.positions, (4, 8, 8))
            ).sample
            squared = (drawn.clamp(-1, 1) - pixels).double().square().mean((1, 2, 3)).numpy()
            l1 = (drawn - pixels).abs().double().mean((1, 2, 3)).numpy()
            assert given.perceptual is not None
            lpips = given.perceptual(pixels, drawn).double().numpy()
            kl = posterior.kl().double().numpy()
            values = 3 * 16 * 16
            terms += [np.stack([values * (l1 + lpips) + 0.5 * kl, l1, 10 * np.log10(4 / squared), kl, lpips])]
        batches.close()
    whole = np.concatenate(terms, axis=1)
    assert whole.shape == (5, 16) and sums.counts == (16,) * 5
    for name, own in zip(("loss", "l1", "psnr", "kl", "perceptual"), whole, strict=True):
        error = "error" if name == "loss" else f"error_{name}"
        assert scores[f"validation/{name}_ema"] == pytest.approx(own.mean(), rel=1e-5)
        assert scores[f"validation/{error}_ema"] == pytest.approx(own.std(ddof=1) / 4, rel=1e-3)
    assert len(scores) == 10


def test_all_runs_see_the_same_pictures_and_noise(image_set: Callable[..., Path]) -> None:
    held = image_set(10, 10)
    one, sums = found(stage(held, *WITHOUT, "batch.micro=8"))
    assert "perceptual" not in one.terms
    frozen = ("batch.micro=2", "data.window=1", "data.flip=0.5", "model.frozen=['vae.encoder.*']")
    _, again = found(stage(held, *WITHOUT, *frozen))
    assert again.losses == pytest.approx(sums.losses, rel=1e-5) and again.counts == sums.counts
    _, larger = found(stage(held, *WITHOUT, "batch.total=16", "batch.micro=4"))
    assert larger.losses == pytest.approx(sums.losses, rel=1e-5)


def test_a_set_that_does_not_do_is_refused(image_set: Callable[..., Path]) -> None:
    held = image_set(10, 10)
    given = autoencoders.load(stage(held, *WITHOUT, "validation.samples=24"))
    with pytest.raises(UsageError, match=r"validation\.samples=24 is more than the 20 of"), opened(given, WORLD):
        pass
    with pytest.raises(UsageError, match="is trained on, too"):
        stage(held, *WITHOUT, f"data.images={held}")
