"""What a latent set must have been made with: the lines that the encoder writes and the trainer compares."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentContract:
    """The `contract` of a latent set's manifest.

    Defects that it stops: latents of another VAE, moments of [0, 1] pixels (mlcommons/training #721), a scaling
    factor applied twice, captions of another tokenizer or length. Text dropout is no part of it: it is drawn while
    training and never stored.
    """

    vae_sha256: str
    vae_scaling_factor: float
    vae_factor: int  # pixels per latent, along a side
    latent_channels: int
    resolution: int  # pixels along a side
    tokenizer_sha256: str
    empty_tokens: tuple[int, ...]  # ids of the caption ""
    pixel_range: str = "[-1, 1]"
    stored: str = "moments"  # mean and log-variance, unscaled
    dtype: str = "float16"
    resize: str = "bicubic shorter side"
    crop: str = "center"
    mirror: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a sample's moments: 2C, h, w."""
        side = self.resolution // self.vae_factor
        return 2 * self.latent_channels, side, side

    def lines(self) -> dict[str, Any]:
        """As plain JSON values, with the shape and the text length that follow from them."""
        plain = asdict(self) | {"empty_tokens": list(self.empty_tokens)}
        return plain | {"shape": list(self.shape), "text_length": len(self.empty_tokens)}
