"""What a micro-batch gives the network: the clean sample that noise is added to, and the text beside it."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from bigdiff.data.images import ImageBatch, boxed, mirrored
from bigdiff.data.latents import Batch
from bigdiff.models.components import token_ids
from bigdiff.models.encoders import in_range, moments, posterior_sample
from bigdiff.models.encoding import Encode
from bigdiff.runtime.seeding import normal, uniform
from bigdiff.train.task import Micro

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601), as Pillow's mode "L"


@dataclass(frozen=True, kw_only=True, slots=True)
class Latents:
    """Samples of the VAE's posterior, drawn anew at each visit, as the original code does."""

    seed: int
    scaling_factor: float  # of the VAE's latents
    vae: AutoencoderKL | None = None  # on the device, in the precision of the network; for pictures
    flip: float = 0.0  # probability that stored latents are those of the mirrored picture; pictures come mirrored
    crop: bool = False  # whether stored latents are those of any box, not of the centre; pictures come cropped

    def clean(self, batch: Micro) -> torch.Tensor:
        """Scaled latents fp32 [B, C, h, w]."""
        found = self.moments(batch).float()
        if not isinstance(batch, ImageBatch) and batch.layout.mean:
            return found * self.scaling_factor  # the set's posterior is so narrow that its mean is as good as a sample
        channels, height, width = found.shape[1] // 2, found.shape[2], found.shape[3]
        noise = normal(self.seed, "posterior", batch.positions, (channels, height, width))
        return posterior_sample(found, noise, self.scaling_factor)

    def moments(self, batch: Micro) -> torch.Tensor:
        """Mean and log-variance [B, 2C, h, w], or the mean alone [B, C, h, w]: as stored, or of the pictures."""
        if not isinstance(batch, ImageBatch):
            return self._stored(batch)
        assert self.vae is not None, "pictures need an autoencoder"
        with torch.no_grad():
            return moments(self.vae, in_range(batch.pixels).to(self.vae.dtype))

    def _stored(self, batch: Batch) -> torch.Tensor:
        if not self.flip:
            return self._box(batch, mirror=False)
        flipped = mirrored(self.seed, batch.positions, self.flip).view(-1, 1, 1, 1)
        return torch.where(flipped, self._box(batch, mirror=True), self._box(batch, mirror=False))

    def _box(self, batch: Batch, mirror: bool) -> torch.Tensor:
        centre = batch.mirrored if mirror else batch.moments
        if not self.crop:
            return centre
        others = batch.mirrored_crops if mirror else batch.crops
        drawn, middle = boxed(self.seed, batch.positions, batch.layout.boxes), batch.layout.boxes // 2
        rows = torch.arange(len(drawn), device=drawn.device)
        other = others[rows, torch.where(drawn > middle, drawn - 1, drawn.clamp_max(middle - 1))]
        return torch.where((drawn == middle).view(-1, 1, 1, 1), centre, other)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pixels:
    """The pictures themselves."""

    grey: bool

    def clean(self, batch: Micro) -> torch.Tensor:
        """Pixels in [-1, 1], fp32 [B, 3 or 1, H, W]."""
        assert isinstance(batch, ImageBatch), "a stage without a VAE reads pictures"
        pixels = in_range(batch.pixels)
        if not self.grey:
            return pixels
        weights = torch.tensor(LUMA, device=pixels.device).view(1, 3, 1, 1)
        return (pixels * weights).sum(dim=1, keepdim=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions:
    """The captions' token ids, or the text encoder's states where the set stores them."""

    seed: int
    dropout: float  # probability that a caption becomes "" (classifier-free guidance, Ho & Salimans 2022)
    tokenizer: CLIPTokenizer
    empty: torch.Tensor  # of the caption "": int64 [L], or fp16 [L, D] beside stored states; on the device

    def text(self, batch: Micro) -> torch.Tensor:
        """int64 [B, L] or fp16 [B, L, D]; which captions are dropped is decided anew at each visit."""
        found = self.found(batch)
        dropped = uniform(self.seed, "text_dropout", batch.positions) < self.dropout
        return torch.where(dropped.view(-1, *[1] * self.empty.dim()), self.empty[None], found)

    def found(self, batch: Micro) -> torch.Tensor:
        """The same without dropout."""
        if isinstance(batch, ImageBatch):
            return token_ids(self.tokenizer, list(batch.captions)).to(self.empty.device, non_blocking=True)
        return batch.states if self.empty.is_floating_point() else batch.tokens

    def kept(self, batch: Micro) -> torch.Tensor:
        """The rows that `text` does not drop, int64 [K] on the host.

        They are drawn there, from the positions that the host knows: to ask a device how many they are would be to wait
        for it.
        """
        first, count = batch.consumed.position, batch.consumed.samples
        drawn = uniform(self.seed, "text_dropout", torch.arange(first, first + count))
        return torch.from_numpy(np.flatnonzero(drawn.numpy() >= self.dropout))


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """The captions' states by a frozen text encoder."""

    captions: Captions  # token ids
    encode: Encode
    empty: torch.Tensor | None  # states [L, D] of the caption "", by `encode`; None: dropped captions are encoded, too

    @torch.no_grad()
    def text(self, batch: Micro) -> torch.Tensor:
        """States [B, L, D] of the captions, those that are dropped replaced as `Captions.text` does."""
        if self.empty is None:
            return self.encode(self.captions.text(batch))
        kept, found = self.captions.kept(batch), self.captions.found(batch)
        if len(kept) == len(found):
            return self.encode(found)
        states = self.empty.repeat(len(found), 1, 1)
        if len(kept):
            rows = kept.to(states.device, non_blocking=True)
            states.index_copy_(0, rows, self.encode(found[rows]))
        return states
