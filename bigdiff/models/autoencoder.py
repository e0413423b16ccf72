"""The KL autoencoder that is trained, and the discriminator of its patches (Rombach et al. 2022, section 3.1, app. G).

Both are one module, so that one engine, one flat vector of weights and one backward pass hold them. Their gradients
stay apart by construction: what the reconstruction is told of the discriminator is a constant gradient of its pixels,
and the discriminator sees a detached reconstruction. The original code (ldm/models/autoencoder.py) takes turns: it
draws each batch twice, steps the autoencoder on the first drawing and the discriminator on the second. Here both step
at once, from the same weights and the same drawing: simultaneous instead of alternating gradient descent (Mescheder et
al. 2017), at half the passes through the autoencoder.
"""

from typing import Final, NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Autoencoder
from bigdiff.models import learning
from bigdiff.models.discriminator import PatchDiscriminator, fooling, hinge
from bigdiff.models.encoders import LOG_VARIANCE, posterior_sample

MOST: Final = 1e4  # the adaptive weight at most
DELTA: Final = 1e-4  # keeps its denominator from zero


def build(config: Autoencoder, resolution: int) -> AutoencoderKL:
    """An autoencoder with fresh weights in float32; the caller seeds torch's default generator.

    Raises:
        UsageError: when diffusers refuses the configuration.
    """
    levels = len(config.block_out_channels)
    try:
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_num_groups,
            mid_block_add_attention=config.mid_attention,
            sample_size=resolution,
            scaling_factor=1.0,  # measured when it is exported
        )
    except (ValueError, TypeError) as error:
        raise UsageError(f"model.autoencoder cannot be built: {error}") from error


class Passed(NamedTuple):
    """What one pass makes of B pictures."""

    drawn: Tensor  # the reconstruction [B, 3, H, W]
    moments: Tensor  # mean and log-variance of the posterior, fp32 [B, 2C, h, w]
    features: Tensor  # what the decoder's last layer saw [B, c, H, W]; no gradient
    fooling: Tensor  # the adversarial loss of each sample, fp32 [B]; no gradient
    pull: Tensor  # its gradient with respect to each sample's reconstruction, fp32 [B, 3, H, W]; zeros without one
    hinge: Tensor  # the discriminator's loss of each sample, fp32 [B]; its gradient reaches the discriminator alone


class Codec(nn.Module):
    """An autoencoder and its discriminator."""

    def __init__(self, vae: AutoencoderKL, discriminator: PatchDiscriminator | None) -> None:
        super().__init__()
        self.vae = vae
        self.discriminator = discriminator

    def forward(self, pixels: Tensor, noise: Tensor, judged: bool) -> Passed:
        """fp32 pixels [B, 3, H, W] in [-1, 1], and noise [B, C, h, w] of the posterior's sample.

        `judged`: the discriminator looks on. It does so once, at pictures and at reconstructions, for both losses.
        """
        kind = self.vae.dtype
        moments = wide(self.vae.encode(pixels.to(kind)).latent_dist.parameters)
        latents = posterior_sample(moments, noise, 1.0)
        seen: list[Tensor] = []
        handle = self.vae.decoder.conv_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        try:
            drawn = self.vae.decode(latents.to(kind)).sample
        finally:
            handle.remove()
        if not judged:
            zeros = moments.new_zeros(len(drawn))
            return Passed(drawn, moments, seen[0], zeros, torch.zeros_like(wide(drawn)), zeros)
        assert self.discriminator is not None, "the stage's rules see to it"
        with torch.enable_grad():  # also where the caller only asks for the adaptive weight
            leaf = drawn.detach().requires_grad_()
            real, fake = wide(self.discriminator(pixels.to(kind))), wide(self.discriminator(leaf))
            fooled = fooling(fake)
            (pull,) = torch.autograd.grad(fooled.sum(), leaf, retain_graph=True)  # leaves the parameters' alone
            losses = hinge(real, fake)
        return Passed(drawn, moments, seen[0], fooled.detach(), wide(pull), losses)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name ("vae.encoder.conv_in.weight"), in a fixed order."""
        return learning.trained(self)


def wide(values: Tensor) -> Tensor:
    """At least fp32, in which all losses are computed."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def kl(moments: Tensor) -> Tensor:
    """KL(posterior || standard normal) of each sample, summed over its latents [B] (Kingma & Welling 2014, app. B)."""
    mean, log_variance = moments.chunk(2, dim=1)
    log_variance = log_variance.clamp(*LOG_VARIANCE)
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).flatten(1).sum(1)


def at_last_layer(passed: Passed, gradients: Tensor, shape: torch.Size) -> Tensor:
    """The mean gradient of the decoder's last weight, of `shape` [3, c, 3, 3], given each reconstruction's gradient."""
    features = passed.features.to(gradients)
    whole: Tensor = conv2d_weight(features, shape, gradients, padding=1)  # type: ignore[no-untyped-call]
    return whole / len(gradients)


def adaptive_weight(wanted: Tensor, adversarial: Tensor) -> Tensor:
    """Norm of the reconstruction loss's gradient by that of the adversarial one's (Esser et al. 2021, eq. 7)."""
    ratio: Tensor = torch.linalg.vector_norm(wanted) / (torch.linalg.vector_norm(adversarial) + DELTA)
    return ratio.clamp(0.0, MOST)
