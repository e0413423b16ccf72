"""The mean loss over held-out samples by noise level, with standard errors, from weights that are given."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import CLIPTextModel

from bigdiff.config.schema import Stage
from bigdiff.metrics.meters import BINS
from bigdiff.models.components import build_unet
from bigdiff.models.denoiser import Denoiser, part
from bigdiff.models.encoders import text_states


@dataclass(frozen=True, kw_only=True, slots=True)
class Frozen:
    """What the trained weights do not hold; copies, where the engine takes the originals."""

    unet: Mapping[str, Tensor]  # "unet.*"
    text_encoder: CLIPTextModel | None

    @classmethod
    def of(cls, denoiser: Denoiser) -> "Frozen":
        """Of a module that the engine has yet to take."""
        return cls(unet=denoiser.frozen_unet(), text_encoder=copy.deepcopy(denoiser.text_encoder))


class Sums(NamedTuple):
    """By timestep bin, or by term of a loss, in float64: of the losses, of their squares, and how many."""

    losses: tuple[float, ...]
    squares: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def none(cls) -> "Sums":
        """Of no samples."""
        return cls((0.0,) * BINS, (0.0,) * BINS, (0,) * BINS)

    @classmethod
    def by_term(cls, terms: Sequence[Tensor]) -> "Sums":
        """Of the same samples' values [B] of each term."""
        found = [one.double().cpu() for one in terms]
        losses, squares = ([float(one.sum()) for one in some] for some in (found, [one.square() for one in found]))
        return cls(tuple(losses), tuple(squares), tuple(len(one) for one in found))

    @classmethod
    def of_all(cls, parts: Sequence["Sums"]) -> "Sums":
        """Of all parts' samples."""
        first, *rest = parts
        for one in rest:
            first = cls(*(tuple(map(add, *both)) for both in zip(first, one, strict=True)))
        return first

    def plus(self, losses: Tensor, timesteps: Tensor, train_timesteps: int) -> "Sums":
        """With these samples' losses fp32 [B] at timesteps int64 [B], too."""
        found = losses.double().cpu()
        bins = (timesteps * BINS // train_timesteps).cpu()
        sums = [torch.bincount(bins, weights, BINS).tolist() for weights in (found, found.square(), None)]
        return Sums.of_all([self, Sums(*map(tuple, sums))])


def scores(sums: Sums, suffix: str = "") -> dict[str, float]:
    """Means and their standard errors, by bin and over all, as they are logged; a bin without samples has none.

    The error of the whole is that of a stratified mean: how much the bins differ is no part of it.
    """
    found, error, whole = {}, 0.0, sum(sums.counts)
    for number, (total, square, count) in enumerate(zip(*sums, strict=True)):
        if not count:
            continue
        mean, variance = _moments(total, square, count)
        error += variance * count / whole**2
        found[f"validation/loss{suffix}_t/{number}"] = mean
        found[f"validation/error{suffix}_t/{number}"] = math.sqrt(variance / count)
    overall = {f"validation/loss{suffix}": sum(sums.losses) / whole, f"validation/error{suffix}": math.sqrt(error)}
    return overall | found


def term_scores(sums: Sums, names: Sequence[str], suffix: str = "") -> dict[str, float]:
    """Means and their standard errors by term, in the order of `names`, as they are logged; "loss" is the whole."""
    found = {}
    for name, total, square, count in zip(names, *sums, strict=True):
        mean, variance = _moments(total, square, count)
        error = "error" if name == "loss" else f"error_{name}"
        found[f"validation/{name}{suffix}"] = mean
        found[f"validation/{error}{suffix}"] = math.sqrt(variance / count)
    return found


def _moments(total: float, square: float, count: int) -> tuple[float, float]:
    """Mean, and variance with Bessel's correction; 0 of one sample, of which nothing is known."""
    mean = total / count
    return mean, max(square / count - mean**2, 0.0) * count / max(count - 1, 1)


class Network:
    """A stage's network as a function of its weights; its own memory is that of a frozen text encoder."""

    def __init__(self, stage: Stage, frozen: Frozen) -> None:
        self.frozen = frozen
        with torch.device("meta"):  # the shape; the weights come with each call
            unet = build_unet(stage.model.unet, stage.latent_size)
            self.denoiser = Denoiser(unet, None, train_text=False).eval()
        if frozen.text_encoder is not None:
            frozen.text_encoder.requires_grad_(False).eval()

    def prepared(self, trained: Mapping[str, Tensor], half: bool) -> dict[str, Tensor]:
        """All weights by name, in the precision that the stage computes in."""
        device = next(iter(trained.values())).device
        kind = torch.bfloat16 if half else torch.float32
        if self.frozen.text_encoder is not None:
            self.frozen.text_encoder.to(device, kind)
        return {name: one.to(device, kind) for name, one in {**self.frozen.unet, **trained}.items()}

    def predict(self, weights: Mapping[str, Tensor], noisy: Tensor, timesteps: Tensor, text: Tensor | None) -> Tensor:
        """As Denoiser.forward, of weights from `prepared`."""
        unet = {name: one for name, one in weights.items() if name.startswith("unet.")}
        states = text if text is None or text.is_floating_point() else self._states(weights, text)
        prediction: Tensor = functional_call(self.denoiser, unet, (noisy, timesteps, states))
        return prediction

    def _states(self, weights: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        text_encoder = self.frozen.text_encoder
        assert text_encoder is not None, "tokens need a text encoder"
        return text_states(text_encoder, tokens, part(weights, "text_encoder."))
