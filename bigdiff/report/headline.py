"""The top of the page: how it stands, in large numbers, and a table that says what each means."""

from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from bigdiff.checkpoint import layout
from bigdiff.prep.page import Cell, Markup, note, number, section, table, totals
from bigdiff.report.folder import Folder


def top(run: Folder) -> Markup:
    """Title, and what a glance should give."""
    last, standing = run.readings.last, run.standing
    numbers = [
        (standing.state, f"{standing.step:,} of {standing.steps:,} steps"),
        (f"{run.seen:,}", "images seen"),
    ]
    if "train/loss" in last:
        numbers.append(
            (number(last["train/loss"]), f"loss; {number(run.readings.first['train/loss'])} at the first reading")
        )
    if "speed/images_per_second" in last:
        numbers.append((number(last["speed/images_per_second"]), "images/s"))
    if standing.seconds_left is not None:
        numbers.append((tqdm.format_interval(standing.seconds_left), "left, at this speed"))
    return Markup(note(run.stage.recipe) + totals(numbers))


def written(run: Folder) -> Markup:
    """The section of the page."""
    rows = [row for row in (*_progress(run), *_speed(run), *_kept(run)) if row[1]]
    before = "" if run.readings.count else "It has begun and written no reading yet."
    return section("At a glance", [note(before), table(("", "", "what it means"), rows, named=True)])


def moment(seconds: float) -> str:
    """A time of day, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _progress(run: Folder) -> list[tuple[Cell, ...]]:
    standing, first, last = run.standing, run.readings.first, run.readings.last
    share = f"{standing.step / standing.steps:.1%}" if standing.steps else ""
    return [
        ("stage", run.stage.name, f"in {run.path}"),
        ("state", standing.state, "; ".join(filter(None, (run.doubt, standing.why or standing.again)))),
        ("steps", f"{standing.step:,} of {standing.steps:,} ({share})", f"of {run.stage.batch.total:,} images each"),
        ("images seen", f"{run.seen:,}", "what every curve below is drawn over"),
        ("first reading", moment(first["time"]) if "time" in first else "", ""),
        ("last reading", moment(last["time"]) if "time" in last else "", f"of {run.readings.count:,} readings"),
        ("time left", *_left(run)),
    ]


def _left(run: Folder) -> tuple[str, str]:
    standing = run.standing
    if standing.state == "finished":
        return "none", "it is at its end"
    rate = standing.images_per_second
    if not rate:
        return "", ""
    hours = max(standing.steps - standing.step, 0) * run.stage.batch.total / rate / 3600
    when = "" if standing.state == "running" else ", once it goes on"
    return f"{hours:.2f} hours{when}", "at the speed of the last reading"


def _speed(run: Folder) -> list[tuple[Cell, ...]]:
    def with_mean(tag: str, form: str) -> str:
        curve, last = run.readings.curve(tag), run.readings.last
        return f"{last[tag]:{form}} (mean {curve.mean:{form}})" if curve.count and tag in last else ""

    rate, wait = with_mean("speed/images_per_second", ",.1f"), with_mean("speed/data_wait_fraction", ".2%")
    memory = run.readings.curve("memory/peak_gb")
    return [
        ("images/s", rate, "of all processes; the last reading, and the mean of all"),
        ("TFLOP/s a device", with_mean("speed/tflops_per_device", ".3g"), "that the images need, nothing twice"),
        ("MFU", with_mean("speed/mfu", ".1%"), "that over the device's stated peak"),
        ("data wait", wait, "share of the time that training stood still for data"),
        (
            "collectives",
            with_mean("speed/communication_fraction", ".1%"),
            "share of the time in them, the wait for slower processes included",
        ),
        ("slowest rank", with_mean("speed/slowest_rank", ".2f"), "forward time of the slowest process over the median"),
        ("peak memory", f"{memory.highest:.2f} GB" if memory.count else "", "of the process that used most"),
    ]


def _kept(run: Folder) -> list[tuple[Cell, ...]]:
    newest = layout.latest(run.path)
    saved = f"step {run.found.checkpoint:,}" if newest else "none yet"
    where = str(Path(*newest.parts[-2:])) if newest else "a crash before the first one begins again at step 0"
    last = run.readings.last
    money = f"{last['cost/so_far']:,.2f} so far, {last['cost/left']:,.2f} to come" if "cost/left" in last else ""
    again = f"{last['speed/restarts']:,.0f}" if "speed/restarts" in last else ""
    return [
        ("starts again", again, "after the first, whatever ended the one before"),
        ("money", money, "of all starts, at log.price_per_device_hour"),
        ("last checkpoint", saved, where),
        ("commit", str(run.about.get("commit", "")), "of the code that wrote the run last"),
    ]
