import pytest
import torch
from torch.distributions import Normal, kl_divergence

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Autoencoder
from bigdiff.models.autoencoder import Codec, adaptive_weight, at_last_layer, build, kl
from bigdiff.models.discriminator import PatchDiscriminator
from bigdiff.models.encoders import posterior_sample

TINY = Autoencoder(
    latent_channels=2, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, disc_channels=4, disc_layers=1
)


@pytest.fixture
def codec() -> Codec:
    torch.manual_seed(0)
    return Codec(build(TINY, 16), PatchDiscriminator(4, 1)).double()


def draws() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.rand(3, 3, 16, 16, dtype=torch.float64) * 2 - 1, torch.randn(3, 2, 8, 8, dtype=torch.float64)


def test_the_defaults_are_stable_diffusions_autoencoder() -> None:
    with torch.device("meta"):
        vae = build(Autoencoder(), 256)
    assert sum(one.numel() for one in vae.parameters()) == 83_653_863  # that of SD 1.x
    assert Autoencoder().factor == 8
    assert TINY.factor == 2


def test_diffusers_refusal_is_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"model\.autoencoder cannot be built"):
        build(Autoencoder(block_out_channels=(6, 10), norm_num_groups=4), 16)


def test_kl_is_that_of_torch() -> None:
    moments = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    mean, log_variance = moments.chunk(2, dim=1)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    expected = kl_divergence(posterior, Normal(torch.zeros_like(mean), torch.ones_like(mean))).sum((1, 2, 3))
    torch.testing.assert_close(kl(moments), expected)
    assert kl(torch.zeros(2, 4, 1, 1)).tolist() == [0.0, 0.0]


def test_a_pass_draws_what_diffusers_draws(codec: Codec) -> None:
    pixels, noise = draws()
    passed = codec(pixels, noise, True)
    posterior = codec.vae.encode(pixels).latent_dist
    drawn = codec.vae.decode(posterior.mean + posterior.std * noise).sample
    torch.testing.assert_close(passed.drawn, drawn)
    torch.testing.assert_close(passed.moments, posterior.parameters)
    assert torch.equal(codec(pixels, noise, False).drawn, passed.drawn)
    torch.testing.assert_close(posterior_sample(passed.moments, noise, 1.0), posterior.mean + posterior.std * noise)


def test_the_last_layers_gradient_is_autograds(codec: Codec) -> None:
    pixels, noise = draws()
    passed, weight = codec(pixels, noise, True), codec.vae.decoder.conv_out.weight
    for gradients in (passed.pull, torch.randn_like(passed.drawn)):
        (expected,) = torch.autograd.grad(passed.drawn, weight, gradients / len(pixels), retain_graph=True)
        torch.testing.assert_close(at_last_layer(passed, gradients, weight.shape), expected)


def test_the_pull_is_the_discriminators_gradient(codec: Codec) -> None:
    pixels, noise = draws()
    passed = codec(pixels, noise, True)
    leaf = passed.drawn.detach().requires_grad_()
    assert codec.discriminator is not None
    (expected,) = torch.autograd.grad(-codec.discriminator(leaf).mean((1, 2, 3)).sum(), leaf)
    torch.testing.assert_close(passed.pull, expected)
    assert not passed.pull.requires_grad
    assert not passed.features.requires_grad


def test_the_discriminators_loss_reaches_the_discriminator_alone(codec: Codec) -> None:
    passed = codec(*draws(), True)
    passed.hinge.mean().backward()
    moved = {name for name, one in codec.named_parameters() if one.grad is not None}
    assert moved == {name for name in codec.trained() if name.startswith("discriminator.")}


def test_without_a_judge_the_discriminator_is_left_alone(codec: Codec) -> None:
    passed = codec(*draws(), False)
    assert not passed.hinge.requires_grad
    assert passed.hinge.tolist() == passed.fooling.tolist() == [0.0] * 3
    assert torch.equal(passed.pull, torch.zeros_like(passed.drawn))


def test_adaptive_weight_is_the_ratio_and_bounded() -> None:
    ours, theirs = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.5])
    assert adaptive_weight(ours, theirs).item() == pytest.approx(5 / (0.5 + 1e-4))
    assert adaptive_weight(ours * 1e6, theirs * 0).item() == 1e4
    assert adaptive_weight(ours * 0, theirs).item() == 0.0
