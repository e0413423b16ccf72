import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.models import vgg16

from bigdiff.config.schema import Autoencoder
from bigdiff.models.autoencoder import Codec, adaptive_weight, at_last_layer, build, kl
from bigdiff.models.discriminator import PatchDiscriminator
from bigdiff.models.perceptual import Perceptual
from bigdiff.train.autoencoding import joined, psnr, wanted

TINY = Autoencoder(
    latent_channels=2,
    block_out_channels=(4, 8),
    layers_per_block=1,
    norm_num_groups=2,
    kl_weight=1e-2,
    disc_channels=4,
    disc_layers=1,
)
Gradients = dict[str, Tensor]


@pytest.fixture(scope="module")
def perceptual() -> Perceptual:
    torch.manual_seed(2)
    return Perceptual(vgg16(weights=None).state_dict()).double()


@pytest.fixture
def codec() -> Codec:
    torch.manual_seed(0)
    return Codec(build(TINY, 16), PatchDiscriminator(4, 1)).double()


@pytest.fixture
def draws() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(3, 3, 16, 16, dtype=torch.float64) * 2 - 1, torch.randn(3, 2, 8, 8, dtype=torch.float64)


def original(
    config: Autoencoder, codec: Codec, net: Perceptual | None, draws: tuple[Tensor, Tensor]
) -> tuple[Tensor, Gradients]:
    """Both losses of the published code on the same weights, in its order: two drawings, two backward passes."""
    pixels, noise = draws
    gradients: Gradients = {}
    value = torch.zeros((), dtype=torch.float64)
    discriminator = codec.discriminator
    assert discriminator is not None
    for side in ("autoencoder", "discriminator"):
        posterior = codec.vae.encode(pixels).latent_dist
        drawn = codec.vae.decode(posterior.mean + posterior.std * noise).sample
        if side == "autoencoder":
            apart = drawn - pixels
            losses = apart.abs() if config.reconstruction == "l1" else apart**2
            if net is not None:
                losses = losses + config.perceptual_weight * net(pixels, drawn).view(-1, 1, 1, 1)
            nll, penalty = losses.sum() / len(pixels), posterior.kl().sum() / len(pixels)
            fooling = -discriminator(drawn).mean()
            last = codec.vae.decoder.conv_out.weight
            (ours,) = torch.autograd.grad(nll, last, retain_graph=True)
            (theirs,) = torch.autograd.grad(fooling, last, retain_graph=True)
            weight = torch.clamp(ours.norm() / (theirs.norm() + 1e-4), 0.0, 1e4) * config.disc_weight
            total = nll + config.kl_weight * penalty + weight * fooling
        else:
            real, fake = discriminator(pixels.detach()), discriminator(drawn.detach())
            total = 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())
        prefix = "vae." if side == "autoencoder" else "discriminator."
        names = [name for name in codec.trained() if name.startswith(prefix)]
        found = torch.autograd.grad(total, [codec.trained()[name] for name in names])
        gradients |= dict(zip(names, found, strict=True))
        value = value + total.detach()
    return value, gradients


@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
@pytest.mark.parametrize("perceptually", [True, False])
def test_the_joint_gradients_are_those_of_the_alternating_losses(
    codec: Codec, perceptual: Perceptual, draws: tuple[Tensor, Tensor], reconstruction: str, perceptually: bool
) -> None:
    config = replace(TINY, reconstruction=reconstruction)
    net = perceptual if perceptually else None
    value, expected = original(config, codec, net, draws)
    passed = codec(*draws, True)
    known = wanted(config, net, draws[0], passed.drawn)
    shape = codec.vae.decoder.conv_out.weight.shape
    adaptive = adaptive_weight(*(at_last_layer(passed, one, shape) for one in (known.gradients, passed.pull)))
    total = joined(config, passed, known, config.disc_weight * adaptive)
    total.backward()
    assert total.item() == pytest.approx(value.item(), rel=1e-12)
    assert codec.trained().keys() == expected.keys()
    for name, parameter in codec.trained().items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-8, atol=1e-12 * adaptive.item())


def test_the_mean_over_micro_batches_is_the_whole_batch(codec: Codec, draws: tuple[Tensor, Tensor]) -> None:
    shape = codec.vae.decoder.conv_out.weight.shape

    def gradients(rows: slice) -> Tensor:
        passed = codec(draws[0][rows], draws[1][rows], True)
        known = wanted(TINY, None, draws[0][rows], passed.drawn)
        return torch.stack([at_last_layer(passed, one, shape) for one in (known.gradients, passed.pull)])

    parts = torch.stack([gradients(slice(row, row + 1)) for row in range(3)])
    torch.testing.assert_close(parts.mean(0), gradients(slice(0, 3)), rtol=1e-9, atol=1e-12)
    separate = torch.stack([adaptive_weight(*part) for part in parts]).mean()
    assert separate.item() != pytest.approx(adaptive_weight(*parts.mean(0)).item(), rel=1e-3)  # why it is averaged


def test_unjudged_it_is_reconstruction_and_posterior_alone(codec: Codec, draws: tuple[Tensor, Tensor]) -> None:
    passed = codec(*draws, False)
    known = wanted(TINY, None, draws[0], passed.drawn)
    total = joined(TINY, passed, known, torch.zeros((), dtype=torch.float64))
    total.backward()
    expected = (passed.drawn - draws[0]).abs().sum() / 3 + TINY.kl_weight * kl(passed.moments).mean()
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert all((one.grad is None) == name.startswith("discriminator.") for name, one in codec.trained().items())


def test_psnr_is_the_textbooks() -> None:
    pixels = torch.zeros(2, 3, 4, 4)
    drawn = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 3.0)])  # the second is clamped to 1
    peak = 2.0
    expected = [20 * math.log10(peak / 0.2), 20 * math.log10(peak / 1.0)]
    assert psnr(pixels, drawn).tolist() == pytest.approx(expected, rel=1e-5)
