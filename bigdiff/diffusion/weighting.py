"""What a timestep's squared error counts in the loss, whatever the network predicts.

One x_t links the errors of the three targets: x_0 = (x_t - sigma eps) / alpha = alpha x_t - sigma v with
alpha^2 = alpha_bar, sigma^2 = 1 - alpha_bar, so

    |eps error|^2 = SNR |x_0 error|^2        |v error|^2 = (SNR + 1) |x_0 error|^2

(Salimans & Ho 2022, section 4). A weighting w of the x_0 error is thus w / SNR of eps and w / (SNR + 1) of v. Below,
each is written in a form that divides by nothing that can be 0 for its target: with zero terminal SNR, SNR is 0 at the
last timestep, and eps is refused there (bigdiff.config.rules).
"""

import torch

from bigdiff.config.schema import Diffusion
from bigdiff.diffusion.schedule import signal_to_noise


def weights(diffusion: Diffusion, cumulative: torch.Tensor) -> torch.Tensor:
    """Factor on the mean squared error of the stage's target, float64 [train_timesteps], from alphas_cumprod."""
    if diffusion.weighting == "min_snr":
        return min_snr(diffusion, cumulative)
    if diffusion.weighting == "p2":
        return p2(diffusion, cumulative)
    if diffusion.weighting == "edm":
        return edm(diffusion, cumulative)
    return torch.ones_like(cumulative)


def min_snr(diffusion: Diffusion, cumulative: torch.Tensor) -> torch.Tensor:
    """min(SNR, gamma) of the x_0 error (Hang et al. 2023, section 3.4; eps and v: section 4.2).

    x_0: min(SNR, gamma); eps: min(SNR, gamma) / SNR; v: min(SNR, gamma) / (SNR + 1), which is 0 where SNR is.
    """
    snr, gamma = signal_to_noise(cumulative), diffusion.snr_gamma
    if diffusion.prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    if diffusion.prediction_type == "v_prediction":
        return torch.minimum(cumulative, gamma * (1.0 - cumulative))
    return snr.clamp(max=gamma)


def p2(diffusion: Diffusion, cumulative: torch.Tensor) -> torch.Tensor:
    """1 / (k + SNR)^gamma of the eps error (Choi et al. 2022, eq. 8, over the simple loss).

    x_0: SNR / (k + SNR)^gamma; v: SNR / (SNR + 1) / (k + SNR)^gamma; both are 0 where SNR is.
    """
    snr = signal_to_noise(cumulative)
    factor = (diffusion.p2_k + snr) ** -diffusion.p2_gamma
    if diffusion.prediction_type == "epsilon":
        return factor
    if diffusion.prediction_type == "v_prediction":
        return cumulative * factor
    return snr * factor


def edm(diffusion: Diffusion, cumulative: torch.Tensor) -> torch.Tensor:
    """(s^2 + d^2) / (s d)^2 of the x_0 error, with d = sigma_data (Karras et al. 2022, table 1: lambda).

    Their x_0 + s eps is our x_t / alpha, so s^2 = 1 / SNR and the weight is SNR + 1 / d^2. x_0: that; eps:
    1 + 1 / (d^2 SNR); v: alpha_bar + (1 - alpha_bar) / d^2, which with d = 1 is the plain v loss. It never vanishes.
    """
    snr, inverse = signal_to_noise(cumulative), diffusion.sigma_data**-2
    if diffusion.prediction_type == "epsilon":
        return 1.0 + inverse / snr
    if diffusion.prediction_type == "v_prediction":
        return cumulative + (1.0 - cumulative) * inverse
    return snr + inverse
