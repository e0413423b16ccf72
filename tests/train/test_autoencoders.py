from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision.models import vgg16

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.data.excerpt import first
from bigdiff.data.images import ImageReader, ImageSet
from bigdiff.runtime.world import enter, leave
from bigdiff.train import autoencoders
from bigdiff.train.data import course, framing, opened

TINY = (
    "resolution=16",
    "model.autoencoder.block_out_channels=[4,8]",
    "model.autoencoder.norm_num_groups=2",
    "model.autoencoder.layers_per_block=1",
    "model.autoencoder.disc_channels=4",
    "model.autoencoder.disc_layers=1",
    "batch.total=8",
)
WITHOUT = (
    "model.autoencoder.perceptual_weight=0",
    "model.autoencoder.perceptual_vgg=",
    "model.autoencoder.perceptual_heads=",
)


def stage(*overrides: str) -> Stage:
    return load_stage("kl-f8", [*TINY, *WITHOUT, *overrides])


def test_the_seed_decides_the_weights_and_nothing_else() -> None:
    one, other, third = (autoencoders.load(stage(f"seed={seed}")).trained() for seed in (1, 1, 2))
    torch.manual_seed(5)
    again = autoencoders.load(stage("seed=1")).trained()
    assert all(torch.equal(one[name], other[name]) and torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["vae.decoder.conv_out.weight"], third["vae.decoder.conv_out.weight"])
    assert {name.partition(".")[0] for name in one} == {"vae", "discriminator"}


def test_without_its_weight_there_is_no_discriminator() -> None:
    usual = ("disc_weight=0", "disc_channels=64", "disc_layers=3")
    found = autoencoders.load(stage(*(f"model.autoencoder.{one}" for one in usual)))
    assert found.module.discriminator is None
    assert all(name.startswith("vae.") for name in found.trained())


def test_frozen_parts_are_kept_and_the_rest_learns() -> None:
    found = autoencoders.load(stage("model.frozen=['vae.encoder.*']"))
    assert found.kept() == {name for name, _ in found.module.named_parameters() if name.startswith("vae.encoder.")}
    assert not found.kept() & found.trained().keys()
    with pytest.raises(UsageError, match=r"model\.frozen: unet"):
        autoencoders.load(stage("model.frozen=['unet.*']"))


def test_lpips_is_loaded_where_it_is_wanted(tmp_path: Path) -> None:
    assert autoencoders.load(stage()).perceptual is None
    torch.save(vgg16(weights=None).features.state_dict(prefix="features."), tmp_path / "vgg.pth")
    files = (f"model.autoencoder.perceptual_vgg={tmp_path}/vgg.pth", "model.autoencoder.perceptual_heads=")
    assert autoencoders.load(load_stage("kl-f8", [*TINY, *files])).perceptual is not None
    with pytest.raises(UsageError, match=r"data/weights/vgg16-397923af\.pth: there is no such file"):
        autoencoders.load(load_stage("kl-f8", [*TINY]))


def test_previews_show_the_first_pictures_of_the_data(image_set: Callable[..., Path]) -> None:
    shown = stage(f"data.images={image_set(6, 6)}", "preview.count=5")
    found, world = autoencoders.load(shown), enter(60)
    try:
        with opened(shown.data) as sets:
            path = course(shown, sets)
            prepared = autoencoders.prepare(found, sets, path, world)
            reader = ImageReader([one for one in sets if isinstance(one, ImageSet)], framing(shown))
            expected = torch.cat(list(first(reader, path, 5)))
            none = autoencoders.prepare(
                autoencoders.load(stage("preview.every=0", "preview.count=0")), sets, path, world
            )
    finally:
        leave()
    assert prepared.preview is not None
    assert torch.equal(prepared.preview.pictures, expected)
    assert none.preview is None
    grid = prepared.preview.draw({name: one.detach() for name, one in found.trained().items()})
    assert grid.shape[2] == 3
