"""What a set will cost further on: the latent set's size, GPU-hours to encode it and to train on it for one epoch.

Estimates, from operator counts of Stable Diffusion 1.x (torch's FLOP counter on the meta device: a multiplication and
an addition are 2). Between the sizes that were counted, and beyond, a count is a * n + b * n^2 in the number of pixels
n: convolutions and linear layers grow with n, self-attention with its square. Fitted at 256 and 512 px, that is within
0.3 % of the autoencoder's count at 1024 px.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bigdiff.data.manifest import Manifest
from bigdiff.prep.buckets import are_whole
from bigdiff.prep.page import Cell, Markup, Right, note, number, section, size, table

_COUNTED: Final = (256 * 256, 512 * 512)  # pixels
_ENCODE: Final = (273e9, 1_117e9)  # FLOP a picture of those sizes: the VAE's encoder
_TRAIN: Final = (537e9, 2_407e9)  # the U-Net, forward and backward
TEXT_FLOP: Final = 13.3e9  # CLIP L's text encoder, 77 tokens
PEAK: Final = 989e12  # FLOP/s of one H100 SXM, dense bf16, by its data sheet
UTILISATION: Final = 0.35  # of that
_DOWN: Final = 8  # pixels of a side for each of the latent's
_CHANNELS: Final = 8  # means and log-variances of four
_HALF: Final = 2  # bytes
TOKEN_BYTES: Final = 154  # 77 ids of two bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Samples of one shape."""

    width: int  # pixels
    height: int
    samples: int


def groups(manifest: Manifest) -> tuple[Group, ...]:
    """The set's samples by the shape that is shown of them: their buckets', or the square of the one resolution."""
    found: dict[tuple[int, int], int] = {}
    for shard in manifest.shards:
        sides = shard.bucket.split("x") if shard.bucket else [manifest.contract["resolution"]] * 2
        shape = (int(sides[0]), int(sides[1]))
        found[shape] = found.get(shape, 0) + shard.samples
    return tuple(Group(width=width, height=height, samples=count) for (width, height), count in sorted(found.items()))


def latent_bytes(width: int, height: int) -> int:
    """Bytes of one sample of a latent set: moments in fp16 and token ids, without the tar's headers."""
    return _CHANNELS * (width // _DOWN) * (height // _DOWN) * _HALF + TOKEN_BYTES


def encode_flop(pixels: int) -> float:
    """FLOP to encode one picture into moments."""
    return _grown(_ENCODE, pixels)


def train_flop(pixels: int) -> float:
    """FLOP to train on one sample of a latent set: the U-Net forward and backward, the text encoder forward."""
    return _grown(_TRAIN, pixels) + TEXT_FLOP


def gpu_hours(flop: float, utilisation: float = UTILISATION, peak: float = PEAK) -> float:
    """Hours of one GPU that does `utilisation` of `peak` FLOP/s."""
    return flop / (utilisation * peak) / 3600


def written(manifest: Manifest) -> Markup:
    """The section of the page."""
    stored = groups(manifest)
    tars = sum(shard.bytes for shard in manifest.shards)
    latents = sum(group.samples * latent_bytes(group.width, group.height) for group in stored)
    encode = sum(group.samples * encode_flop(group.width * group.height) for group in stored)
    train = sum(group.samples * train_flop(group.width * group.height) for group in stored)
    several = "; of the centre square, N times that with --crops N" if are_whole(manifest.contract) else ""
    rows: list[Sequence[Cell]] = [
        ("this set", Right(size(tars)), "measured: the tars"),
        ("its latent set", Right(size(latents)), f"{_each(stored)}, without tar headers{several}"),
        (
            "encoding it, once",
            Right(_hours(gpu_hours(encode))),
            f"{_flop(encode, manifest.samples)}: VAE encoder{several}",
        ),
        (
            "training on it, one epoch",
            Right(_hours(gpu_hours(train))),
            f"{_flop(train, manifest.samples)}: U-Net forward and backward, text encoder forward",
        ),
    ]
    assumed = (
        f"Estimates, not measurements: operator counts of Stable Diffusion 1.x (autoencoder, U-Net, CLIP L/14 text "
        f"encoder), on an H100 that does {UTILISATION:.0%} of its {PEAK / 1e12:g} TFLOP/s of dense bf16. Other models, "
        "reading, previews, validation and checkpoints are not counted. Twice the utilisation is half the hours."
    )
    scaled = (
        "Counted at 256 and 512 px (encoder 273 and 1,117 GFLOP, U-Net forward and backward 537 and 2,407, text 13.3); "
        "other shapes by a n + b n^2 in their pixels n through both."
    )
    return section("What comes next", [note(assumed), table(("", "estimate", "from"), rows, named=True), note(scaled)])


def _grown(counted: tuple[float, float], pixels: int) -> float:
    """a * n + b * n^2 through both counts."""
    (small, large), (few, many) = _COUNTED, counted
    square = (many / large - few / small) / (large - small)
    return (few / small - square * small) * pixels + square * pixels**2


def _each(stored: Sequence[Group]) -> str:
    if len(stored) == 1:
        group = stored[0]
        return f"{latent_bytes(group.width, group.height):,} bytes a sample: fp16 moments and token ids"
    return f"fp16 moments and token ids of {len(stored)} shapes"


def _flop(total: float, samples: int) -> str:
    return f"{total / samples / 1e9:,.0f} GFLOP a sample"


def _hours(hours: float) -> str:
    if hours < 0.1:
        return f"{hours * 60:.2g} GPU-minutes" if hours * 60 >= 0.1 else f"{hours * 3600:.2g} GPU-seconds"
    return f"{number(hours)} GPU-hours"
