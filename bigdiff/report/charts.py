"""Is it learning, how fast, what is slow: the run's curves over images seen."""

from typing import Final

from bigdiff.prep.page import Markup, charts, note, section
from bigdiff.report import curves, lines
from bigdiff.report.curves import BUCKETS, Curve
from bigdiff.report.lines import COLOURS, Chart, Scale, Series
from bigdiff.report.readings import Readings

_SMOOTHED_FROM: Final = 12  # points, below which a running mean says nothing
_CROWDED: Final = 60  # points of one of ten lines, above which they hide each other
_LOSS, _NORM, _RATE = "train/loss", "train/grad_norm", "train/lr"
_SPEED, _WAIT, _SLOWEST = "speed/images_per_second", "speed/data_wait_fraction", "speed/slowest_rank"
_SENT: Final = "speed/communication_fraction"
_STALL: Final = "speed/checkpoint_stall_seconds"
_HELD: Final = "On held-out samples, the same with the same noise each time; the bands are standard errors."
_TERMS: Final = {  # of an autoencoder
    "psnr": "In dB, should rise.",
    "l1": "Mean absolute error of a value, pixels in [-1, 1].",
    "kl": "Of the posterior to a standard normal, of a sample.",
    "perceptual": "LPIPS.",
}
_BINS: Final = "Ranges of the diffusion's timesteps: 0 is nearly no noise, the last nearly nothing but noise."


def learning(readings: Readings) -> Markup:
    """The section of losses, gradients, learning rate and averages."""
    if not readings.count:
        return section("Is it learning", [note("There are no readings yet.")])
    figures = [
        _alone(readings, _LOSS, "training loss", "Should fall, fast at first and slowly later."),
        _validation(readings, "loss", "validation loss", _HELD),
        *(_validation(readings, term, f"validation {term}", f"{said} {_HELD}") for term, said in _TERMS.items()),
        _family(readings, "train/loss_t/", "training loss by timestep", _BINS),
        _family(readings, "validation/loss_ema_t/", "validation loss by timestep, average", _BINS),
        _family(readings, "validation/loss_t/", "validation loss by timestep, weights", _BINS),
        _alone(readings, _NORM, "gradient norm", "Before clipping. Spikes that stay are a learning rate too high."),
        _family(readings, _RATE, "learning rate", "As scheduled.", "zero"),
        _family(readings, "distance/", "distance of the averages", "From the weights, relative to their norm.", "zero"),
        *(
            _alone(readings, tag, tag.removeprefix("train/"), "A term of the loss.")
            for tag in readings.under("train/")
            if tag.count("/") == 1 and tag not in (_LOSS, _NORM, _RATE)
        ),
    ]
    absent = (
        "" if readings.curve("validation/loss").count else "There is no validation: the stage names no held-out set."
    )
    return section(
        "Is it learning", [note(f"Over images seen. {_thinning(readings)}"), charts(_there(figures)), note(absent)]
    )


def speed(readings: Readings) -> Markup:
    """The section of rates and waits."""
    if not readings.count:
        return section("How fast", [note("There are no readings yet.")])
    figures = [
        _alone(readings, _SPEED, "images per second", "Of all processes.", "zero"),
        _alone(readings, "speed/mfu", "MFU", "Work that the images need, over the devices' stated peak.", "zero"),
        _alone(readings, _WAIT, "data wait", "Share of the time that training stood still for data.", "zero"),
        _alone(readings, _SENT, "collectives", "Share of the time in them, the wait for others included.", "zero"),
        _alone(
            readings,
            _SLOWEST,
            "slowest rank",
            "Forward time of the slowest process over the median; 1 where none is slower.",
            "zero",
        ),
    ]
    stalls = readings.curve(_STALL)
    if stalls.count and stalls.highest > 0:
        figures.append(
            _alone(readings, _STALL, "checkpoint stall, seconds", "That steps waited for checkpoints.", "zero")
        )
    return section("How fast", [charts(_there(figures))])


def _alone(readings: Readings, tag: str, name: str, said: str, scale: Scale = "auto") -> Markup:
    """One tag, with its running mean where it is long enough."""
    curve = readings.curve(tag)
    if len(curve.buckets) < _SMOOTHED_FROM:
        series = [Series(name="readings", points=curve.points, colour="c0")]
    else:
        series = [
            Series(name="readings", points=curve.points, colour="pale"),
            Series(name="running mean", points=curves.smooth(curve), colour="c0"),
        ]
    return lines.drawn(Chart(name=name, series=series, said=_with_broken(said, curve), scale=scale))


def _family(readings: Readings, prefix: str, name: str, said: str, scale: Scale = "auto") -> Markup:
    """All tags below a prefix. Ranges of timesteps are an order, and running means where lines hide each other."""
    ranges = prefix.endswith("_t/")
    tags = readings.under(prefix)
    smooth = ranges and any(len(readings.curve(tag).buckets) > _CROWDED for tag in tags)
    series = []
    for index, tag in enumerate(tags):
        curve = readings.curve(tag)
        points = curves.smooth(curve) if smooth else curve.points
        colour = f"{'t' if ranges else 'c'}{index % COLOURS}"
        series.append(Series(name=tag.removeprefix(prefix) or name, points=points, colour=colour))
    said = f"{said} Running means." if smooth else said
    return lines.drawn(Chart(name=name, series=series, said=said, scale=scale))


def _validation(readings: Readings, term: str, name: str, said: str) -> Markup:
    """A term on held-out samples, of the weights and of the average."""
    series, error = [], "error" if term == "loss" else f"error_{term}"
    for suffix, of, colour in (("", "weights", "c1"), ("_ema", "average", "c0")):
        curve = readings.curve(f"validation/{term}{suffix}")
        errors = curves.band(curve, readings.curve(f"validation/{error}{suffix}"))
        series.append(Series(name=of, points=curve.points, colour=colour, errors=errors))
    return lines.drawn(Chart(name=name, series=series, said=said))


def _there(figures: list[Markup]) -> list[Markup]:
    return [figure for figure in figures if figure]


def _with_broken(said: str, curve: Curve) -> str:
    return f"{said} Left out: {curve.broken:,} readings that are not finite." if curve.broken else said


def _thinning(readings: Readings) -> str:
    longest = max(readings.curves.values(), key=lambda curve: curve.count)
    if longest.count <= len(longest.points):
        return f"All {readings.count:,} readings are drawn; each is of the steps since the one before."
    return (
        f"Of {readings.count:,} readings at most {4 * BUCKETS:,} a curve are drawn: the first, lowest, highest and "
        f"last of each group of neighbours, so that no spike is lost."
    )
