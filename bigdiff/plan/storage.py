"""What a stage needs on disks, and what making its latents takes, for a number of pictures."""

from dataclasses import dataclass
from typing import Final

from bigdiff.config.schema import Stage, on_images
from bigdiff.data import member
from bigdiff.models import flops
from bigdiff.plan.room import most_bytes
from bigdiff.plan.scaling import FRACTION

_BLOCK: Final = 512  # bytes: a tar's header, and what a member is padded to


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """What is known of the set before there is one."""

    samples: int = 0  # 0: nothing
    kilobytes: float = 0.0  # of a stored picture in the mean, 1e3 bytes; 0: not known


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """Bytes; what is not asked for, or does not exist in the stage, is 0."""

    checkpoints: int  # at most, with averages that are stored
    pictures: int  # tars of image shards
    latents: int  # tars of moments in fp16 and token ids, without their indexes
    encoding: int  # FLOP of an image through the autoencoder's encoder


def storage(stage: Stage, parameters: int, given: Pictures) -> Storage:
    """Of `stage`, whose trained networks have so many `parameters`.

    Raises:
        UsageError: for an autoencoder's configuration that cannot be read.
    """
    latent = latent_bytes(stage) if given.samples and not on_images(stage.data) and stage.model.vae else 0
    return Storage(
        checkpoints=most_bytes(stage, parameters),
        pictures=given.samples * in_tar(round(given.kilobytes * 1000)) if given.kilobytes else 0,
        latents=given.samples * latent,
        encoding=flops.encoding(stage) if latent else 0,
    )


def latent_bytes(stage: Stage) -> int:
    """Of a sample in the tar of a stage's latent set, moments and token ids alone."""
    length = stage.model.text.max_length if stage.model.text else 1
    side = stage.latent_size
    return in_tar(member.layout(2 * stage.model.unet.latent_channels, side, side, length).total)


def in_tar(size: int) -> int:
    """Bytes that a member of so many takes in a tar."""
    return _BLOCK + -(-size // _BLOCK) * _BLOCK


def hours(one: Storage, samples: int, peak: float) -> float:
    """Device-hours to encode all latents on a device of `peak` FLOP/s, of which `scaling.FRACTION` is reached."""
    return one.encoding * samples / (FRACTION * peak) / 3600
