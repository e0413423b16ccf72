"""The names of a run's weights: its averages as they are tracked and saved, and how a person asks for one."""

from collections.abc import Sequence
from typing import Final

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Ema

RAW: Final = "raw"  # the weights themselves
DEFAULT: Final = "ema"  # the first average that the run tracks, or the raw weights where it tracks none
WIDEST: Final = 12.0**-0.5  # relative width of a power function of exponent 0, the plain mean of all weights
FORMS: Final = "ema (the first average), raw, ema/DECAY or power/WIDTH as tracked, sigma=WIDTH"


def decay_name(decay: float) -> str:
    """Name of the average with a constant decay, such as "ema/0.9999"."""
    return f"ema/{decay!r}"


def power_name(width: float) -> str:
    """Name of the power-function average of relative width `width`, such as "power/0.05"."""
    return f"power/{width!r}"


def names(ema: Ema) -> tuple[str, ...]:
    """All averages of a stage; the first is the one that is drawn, handed over and exported unless another is named."""
    return (*map(decay_name, ema.decays), *map(power_name, ema.power))


def width(weights: str) -> float | None:
    """The relative width in "sigma=0.08", which is reconstructed; None for weights that a checkpoint holds.

    Raises:
        UsageError: when it is no number in (0, WIDEST).
    """
    if not weights.startswith("sigma="):
        return None
    try:
        value = float(weights.removeprefix("sigma="))
    except ValueError:
        value = 0.0
    if not 0 < value < WIDEST:
        raise UsageError(f"weights={weights}: sigma must be a number between 0 and {WIDEST:.4f}, such as sigma=0.08")
    return value


def tracked_width(name: str) -> float | None:
    """The relative width of an average with such a name as "power/0.05"; None for others."""
    return float(name.removeprefix("power/")) if name.startswith("power/") else None


def described(name: str) -> str:
    """`raw`, or what an average's name says, in words."""
    if name == RAW:
        return "raw"
    if tracked_width(name) is not None:
        return f"power-function average of relative width {tracked_width(name)}"
    return f"exponential moving average of decay {name.removeprefix('ema/')}"


def several(weights: str) -> tuple[str, ...]:
    """Those of a list such as "ema,raw"."""
    return tuple(one.strip() for one in weights.split(","))


def held(weights: str, tracked: Sequence[str], where: str) -> str:
    """The name under which a checkpoint holds what `weights` asks for: `raw` or one of `tracked`.

    Raises:
        UsageError: naming the choices when `where` holds no such weights.
    """
    if weights == RAW or weights in tracked:
        return weights
    if weights == DEFAULT:
        return tracked[0] if tracked else RAW
    choices = ", ".join((RAW, *tracked))
    raise UsageError(f"weights={weights}: {where} holds {choices}; other widths are reconstructed as sigma=WIDTH")
