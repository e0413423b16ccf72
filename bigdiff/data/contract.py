"""What a latent set must have been made with: the lines that the encoder writes and the trainer compares."""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

CROPS: Final = 3  # boxes that a set stores for a stage that draws its crops, where nobody says how many


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
    stored: str = "moments"  # mean and log-variance, unscaled; or "mean" alone
    dtype: str = "float16"
    resize: str = "bicubic shorter side"
    crop: str = "center"
    mirror: bool | Literal["stored"] = False  # "stored": beside each sample is that of the mirrored picture
    crops: int = 1  # boxes whose latents are stored, from one end of the picture's room to the other; 1: the centre
    text_states: int = 0  # width of the text encoder's stored states; 0: none are
    text_encoder_sha256: str = ""  # of the one that made them
    buckets: tuple[tuple[int, int], ...] = ()  # widths and heights of a set of several shapes, in place of a resolution

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a sample's moments: 2C, h, w; of its mean: C, h, w."""
        return self.shape_of(self.resolution, self.resolution)

    def shape_of(self, width: int, height: int) -> tuple[int, int, int]:
        """The same of pictures of so many pixels."""
        channels = self.latent_channels * (1 if self.stored == "mean" else 2)
        return channels, height // self.vae_factor, width // self.vae_factor

    def lines(self) -> dict[str, Any]:
        """As plain JSON values, with the shape and the text length that follow from them."""
        shapes = {f"{width}x{height}": list(self.shape_of(width, height)) for width, height in self.buckets}
        absent = {"resolution" if shapes else "buckets"}
        absent |= set() if self.text_states else {"text_states", "text_encoder_sha256"}
        absent |= set() if self.crops > 1 else {"crops"}
        plain = {key: value for key, value in asdict(self).items() if key not in absent}
        plain |= {"buckets": shapes} if shapes else {"shape": list(self.shape)}
        return plain | {"empty_tokens": list(self.empty_tokens), "text_length": len(self.empty_tokens)}
