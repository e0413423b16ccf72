"""From pixels and captions to what a latent set stores: the networks, what goes in, what comes out, and its checks."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, CLIPTokenizer

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data import pixels
from bigdiff.data.contract import LatentContract
from bigdiff.data.images import Framing, size, sizes
from bigdiff.data.member import Form, Layout, layout
from bigdiff.data.pixels import Frame
from bigdiff.models.components import (
    load_text_encoder,
    load_tokenizer,
    load_vae,
    token_ids,
    tokenizer_sha256,
    weights_sha256,
)
from bigdiff.models.encoders import LOG_VARIANCE, decode, moments
from bigdiff.models.exact import exact
from bigdiff.models.halving import halved, moved, name_of
from bigdiff.models.norm import fuse_alone
from bigdiff.prep.latent_settings import Settings, beside
from bigdiff.runtime.transfer import Results, there

Half = npt.NDArray[np.float16]
CANARY: Final = 8  # pictures of a shard that are decoded again: each costs two encoded ones
# of the latents' standard deviation: a posterior that is narrower adds less than 1e-4 to their variance
NARROW: Final = 0.01
# elements of the widest activation on a GPU: 32 pictures of 512 px, 8.6 GB for four of them in half precision
WIDEST: Final = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """What turns images and captions into samples; the same for every shard of a set."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    resolution: int
    batch: int  # images encoded together; 64 small ones keep the activations in a core's cache
    device: torch.device
    threads: int  # that decode images; 1 decodes and writes between the batches
    least_psnr: float  # dB
    text_encoder: CLIPTextModel | None = None  # whose states are stored, too
    mirrored: bool = False  # the mirrored pictures' latents are stored, too
    mean_only: bool = False  # the posterior's mean is stored without its log-variance
    crops: int = 1  # boxes of each picture that are stored, the centre among them
    bucket: str = ""  # "WIDTHxHEIGHT" of the shard in hand, where the set has buckets
    half: AutoencoderKL | None = None  # the encoder in half precision, which computes the moments in place of `vae`

    @property
    def at_once(self) -> int:
        """Pictures of one forward pass: the batch, or on a GPU an even part of it whose activations fit."""
        if self.device.type == "cpu":
            return self.batch
        widest = int(self.vae.config["block_out_channels"][0]) * self.frame.width * self.frame.height
        return -(-self.batch // -(-self.batch * widest // WIDEST))

    @property
    def frame(self) -> Frame:
        """What is shown of each picture."""
        width, height = Framing(resolution=self.resolution).size(self.bucket)
        return Frame(width=width, height=height)

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Its boxes: what is shown is the one in the middle."""
        return pixels.boxes(self.frame.width, self.frame.height, self.crops)

    @property
    def layout(self) -> Layout:
        """Of the members."""
        frame, one = self.frame, factor(self.vae)
        channels = self.vae.config["latent_channels"] * (1 if self.mean_only else 2)
        width = 0 if self.text_encoder is None else int(self.text_encoder.config.hidden_size)
        form = Form(mean=self.mean_only, mirrored=self.mirrored, crops=self.crops)
        return layout(channels, frame.height // one, frame.width // one, self.tokenizer.model_max_length, width, form)


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """A batch that the device still computes."""

    stored: Results  # the posterior's spread, whether each is finite [N, B], and N parts of what is stored
    boxes: int  # of each picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A batch as it is stored."""

    moments: Half  # [B, 2C, h, w], or the mean [B, C, h, w]
    mirrored: Half | None  # the same of the mirrored pictures
    spread: float  # the posterior's standard deviation relative to the means'; 0 where it is not asked for
    crops: tuple[Half, ...] = ()  # [B, N - 1, 2C, h, w] of the other boxes and, beside mirrored ones, of them mirrored


def load(settings: Settings) -> Encoder:
    """The autoencoder and tokenizer of `settings`, on the GPU when there is one.

    Raises:
        UsageError: when one is absent, or they and the resolution do not fit.
    """
    for key in ("text_length", "batch", "workers"):
        if (value := getattr(settings, key)) is not None and value <= 0:
            raise UsageError(f"{key}={value} must be positive")
    if settings.resolution < 0:
        raise UsageError(f"resolution={settings.resolution} must be positive")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = load_vae(settings.vae).to(device, memory_format=torch.channels_last)
    tokenizer = load_tokenizer(settings.tokenizer, settings.text_length)
    if len(tokenizer) > 2**16:
        raise UsageError(f"tokenizer {settings.tokenizer} has {len(tokenizer)} tokens, more than uint16 holds")
    if settings.resolution % factor(vae):
        raise UsageError(f"resolution={settings.resolution} does not divide by the autoencoder's {factor(vae)}")
    return Encoder(
        vae=vae,
        tokenizer=tokenizer,
        resolution=settings.resolution,
        batch=settings.batch,
        device=device,
        threads=processes(settings) if device.type == "cuda" else 1,
        least_psnr=settings.least_psnr,
        text_encoder=_text_encoder(settings, device),
        mirrored=settings.mirrored,
        mean_only=settings.mean_only,
        crops=settings.crops,
        half=_half(vae, settings, device),
    )


def _half(vae: AutoencoderKL, settings: Settings, device: torch.device) -> AutoencoderKL | None:
    half = halved(vae, settings.precision)
    if half is not None and settings.fused_norms and (problem := fuse_alone(half, device, half.dtype)):
        raise UsageError(f"--fused-norms cannot be had: {problem}; encode without it")
    return half


def processes(settings: Settings) -> int:
    """`settings.workers`, or what this machine suggests."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return settings.workers or beside(cores, torch.cuda.device_count())


def _text_encoder(settings: Settings, device: torch.device) -> CLIPTextModel | None:
    if not settings.text_encoder:
        return None
    found = load_text_encoder(settings.text_encoder)
    longest = found.config.max_position_embeddings
    if settings.text_length > longest:
        raise UsageError(
            f"text encoder {settings.text_encoder} takes {longest} tokens, text_length={settings.text_length}: lower it"
        )
    return found.to(device)


def factor(vae: AutoencoderKL) -> int:
    """Pixels per latent, along a side."""
    return int(2 ** (len(vae.config["block_out_channels"]) - 1))


def refuse_buckets(encoder: Encoder, images: Path, buckets: Sequence[str]) -> None:
    """Raise a UsageError for an image set whose shapes cannot be encoded, or are not the resolution that was asked for.

    `buckets` are those of its shards; "" is one without.
    """
    asked, several = encoder.resolution > 0, any(buckets)
    if several and (asked or not all(buckets)):
        raise UsageError(
            f"the shards of {images} have buckets that say their sizes: encode them with a stage of data.buckets=true, "
            f"or without --resolution"
            if asked
            else f"some shards of {images} have a bucket and others none: build the image set again"
        )
    if several and encoder.crops > 1:
        raise UsageError(
            f"--crops has no effect on {images}: its pictures have their bucket's shape, encode without it"
        )
    if not several and not asked:
        raise UsageError(
            f"{images} has no buckets to say its shapes: give --resolution, or a stage of data.buckets=false"
        )
    for bucket in buckets:
        if bucket:
            size(bucket, str(images))
        frame = replace(encoder, bucket=bucket).frame
        if frame.width % factor(encoder.vae) or frame.height % factor(encoder.vae):
            raise UsageError(
                f"bucket {bucket!r} of {images} does not divide by the autoencoder's {factor(encoder.vae)}"
            )


def stored_as(encoder: Encoder, buckets: Sequence[str] = ()) -> LatentContract:
    """The contract of the set that `encoder` makes of an image set with these `buckets` (none: of one shape)."""
    text = encoder.text_encoder
    return LatentContract(
        vae_sha256=weights_sha256(encoder.vae),
        vae_scaling_factor=float(encoder.vae.config["scaling_factor"]),
        vae_factor=factor(encoder.vae),
        latent_channels=encoder.vae.config["latent_channels"],
        resolution=encoder.resolution,
        tokenizer_sha256=tokenizer_sha256(encoder.tokenizer),
        empty_tokens=tuple(token_ids(encoder.tokenizer, [""])[0].tolist()),
        stored="mean" if encoder.mean_only else "moments",
        resize=pixels.RESIZE,
        crop=pixels.CROP,
        mirror="stored" if encoder.mirrored else False,
        crops=encoder.crops,
        text_states=0 if text is None else int(text.config.hidden_size),
        text_encoder_sha256="" if text is None else weights_sha256(text),
        buckets=sizes(buckets, "the set"),
    )


def encode(encoder: Encoder, shown: torch.Tensor, keys: Sequence[str], others: Sequence[torch.Tensor] = ()) -> Encoded:
    """What is stored of uint8 pixels [B, H, W, 3], and of the `others`: the same pictures in their other boxes.

    Raises:
        RunError: naming the first sample whose moments float16 cannot hold.
        UsageError: when the mean alone is to be stored, and the posterior is too wide for that.
    """
    return finish(encoder, start(encoder, shown, others), keys)


@torch.inference_mode()
def start(encoder: Encoder, shown: torch.Tensor, others: Sequence[torch.Tensor] = ()) -> Started:
    """Begin to compute what `encode` gives; on a GPU nothing is waited for."""
    seen = [there(one, encoder.device) for one in (shown, *others)]
    first = _moments(encoder, seen[0])
    spread = posterior_spread(first) if encoder.mean_only else torch.zeros(())
    found = [first]
    found += [_moments(encoder, seen[0].flip(2))] if encoder.mirrored else []
    found += [_moments(encoder, one) for one in seen[1:]]
    found += [_moments(encoder, one.flip(2)) for one in seen[1:]] if encoder.mirrored else []
    parts = [(one.chunk(2, dim=1)[0] if encoder.mean_only else one).half() for one in found]
    finite = torch.stack([one.isfinite().flatten(1).all(dim=1) for one in parts])
    return Started(stored=Results(spread, finite, *parts), boxes=len(seen))


def finish(encoder: Encoder, started: Started, keys: Sequence[str]) -> Encoded:
    """What `start` began, once it is there.

    Raises:
        RunError: as `encode`.
        UsageError: as `encode`.
    """
    spread, finite, *parts = started.stored.tensors()
    if float(spread) > NARROW:
        raise UsageError(
            f"--mean-only would lose something: the posterior's standard deviation is {float(spread):.2g} of the "
            f"latents' on the pictures from {keys[0]} on, more than {NARROW:g}: encode without it"
        )
    if not bool(finite.all()):
        key = keys[int((~finite).nonzero()[0, 1])]
        raise RunError(f"the autoencoder gives sample {key} moments beyond float16's range: choose another autoencoder")
    shown, *rest = (one.numpy() for one in parts)
    mirrored = rest.pop(0) if encoder.mirrored else None
    boxes = [rest[begin : begin + started.boxes - 1] for begin in range(0, len(rest), max(1, started.boxes - 1))]
    crops = tuple(np.stack(part, axis=1) for part in boxes)
    return Encoded(moments=shown, mirrored=mirrored, spread=float(spread), crops=crops)


def _moments(encoder: Encoder, seen: torch.Tensor) -> torch.Tensor:
    """Of uint8 pixels [B, H, W, 3] on the device."""
    network = encoder.half or encoder.vae
    passes = [moments(network, normalised(part).to(network.dtype)) for part in torch.split(seen, encoder.at_once)]
    return passes[0] if len(passes) == 1 else torch.cat(passes)


def posterior_spread(found: torch.Tensor) -> torch.Tensor:
    """Root mean square of the posterior's standard deviation over the standard deviation of the means."""
    mean, log_variance = found.float().chunk(2, dim=1)
    within = log_variance.clamp(*LOG_VARIANCE).exp().mean()
    return (within / mean.var().clamp_min(1e-12)).sqrt()


def rounding(encoder: Encoder, shown: torch.Tensor, keys: Sequence[str]) -> float:
    """How far half precision moves the posterior of pixels [B, H, W, 3]: of means and deviations, the root mean square.

    Relative to the means' standard deviation, against float32; 0 where half precision is not asked for.

    Raises:
        UsageError: above `NARROW`, or when something is not finite.
    """
    if encoder.half is None:
        return 0.0
    with exact():
        seen = there(shown, encoder.device)
        found = moved(_moments(encoder, seen), _moments(replace(encoder, half=None), seen))
    if not found <= NARROW:
        raise UsageError(
            f"--precision {name_of(encoder.half)} would change the latents: it moves them by {found:.2g} of their "
            f"standard deviation on the pictures from {keys[0]} on, more than {NARROW:g}: encode with another precision"
        )
    return found


@torch.inference_mode()
def canary(encoder: Encoder, shown: torch.Tensor, stored: Half, where: Path) -> float:
    """PSNR in dB (peak to peak 2) of what the stored means decode to, against the pixels uint8 [B, H, W, 3].

    Raises:
        RunError: below `encoder.least_psnr`: the latents would not be pictures (wrong pixel range, VAE or kernel).
    """
    mean = torch.from_numpy(stored).to(encoder.device, torch.float32)[:, : encoder.vae.config["latent_channels"]]
    drawn = decode(encoder.vae, mean * encoder.vae.config["scaling_factor"])
    error = float((drawn - normalised(there(shown, encoder.device))).square().mean())
    psnr = 10 * math.log10(4 / max(error, 1e-12))
    if psnr < encoder.least_psnr:
        raise RunError(
            f"{where}: its first pictures come back from the autoencoder at {psnr:.1f} dB, below "
            f"{encoder.least_psnr:g} dB: this autoencoder does not fit these images"
        )
    return psnr


def normalised(shown: torch.Tensor) -> torch.Tensor:
    """Pixels uint8 [B, H, W, 3] as float32 [B, 3, H, W] in [-1, 1], where they are."""
    # [B, H, W, 3] seen as [B, 3, H, W] is channels_last already: no copy
    return shown.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
