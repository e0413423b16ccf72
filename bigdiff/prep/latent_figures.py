"""Mean and deviation of each shard's latents, and the shards that are wildly unlike the others."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bigdiff.data.manifest import Manifest

FEWEST: Final = 4  # shards of which one can be unlike the others
ROBUST: Final = 8.0  # median absolute deviations, scaled as those of a normal distribution, and besides at least:
SHIFT: Final = 0.25  # of the median shard's standard deviation, of mean or standard deviation
DROP: Final = 3.0  # dB of the canary's PSNR, half the signal's power
NAMES: Final = {"latent_mean": "mean", "latent_std": "standard deviation", "psnr_db": "PSNR of the first pictures"}


@dataclass(kw_only=True, slots=True)
class Totals:
    """Sums over a shard's latents: its unscaled posterior means."""

    sums: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))  # of ones, values and squares

    def add(self, means: npt.NDArray[np.float16]) -> None:
        """Those of a batch [B, C, h, w]."""
        flat = means.astype(np.float32).ravel()
        self.sums += flat.size, flat.sum(dtype=np.float64), np.dot(flat, flat)

    @property
    def mean(self) -> float:
        """To four digits."""
        return _rounded(self.sums[1] / max(self.sums[0], 1))

    @property
    def std(self) -> float:
        """To four digits."""
        count, total, squares = self.sums / max(self.sums[0], 1)
        return _rounded(max(squares - total * total, 0.0) ** 0.5) if count else 0.0


def strange(made: Manifest) -> list[str]:
    """A sentence for each figure of a shard that is far from the other shards', if they are not few, and for copies."""
    found: list[str] = []
    crops = made.contract.get("crops", 1)
    if crops > 1 and not made.lineage["cropped"]:
        found.append(
            f"--crops stored {crops} equal copies of each picture: none has room beside that: encode without it"
        )
    deviations = _known(made, "latent_std")
    for key, name in NAMES.items():
        values = _known(made, key)
        if len(values) < FEWEST:
            continue
        middle = statistics.median(values.values())
        spread = 1.4826 * statistics.median(abs(one - middle) for one in values.values())
        least = DROP if key == "psnr_db" else SHIFT * statistics.median(deviations.values())
        found += [
            f"shard {shard}: its {name} is {one:g}, of the median shard {middle:g}: look at its pictures"
            for shard, one in values.items()
            if abs(one - middle) > max(ROBUST * spread, least) and (key != "psnr_db" or one < middle)
        ]
    return found


def _known(made: Manifest, key: str) -> dict[str, float]:
    values: Sequence[Any] = made.lineage.get(key, [])
    pairs = zip(made.shards, values, strict=False)
    return {shard.name: float(one) for shard, one in pairs if one is not None}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
