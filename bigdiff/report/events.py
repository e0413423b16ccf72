"""What happened to the run: its starts and what ended each, crashes, steps left out or taken back, damage."""

from collections import Counter, deque
from typing import Any, Final

from bigdiff.config.errors import RunError, UsageError
from bigdiff.metrics.readings import lines
from bigdiff.prep.page import Cell, Markup, heading, note, section, table
from bigdiff.report.folder import Folder
from bigdiff.report.headline import moment
from bigdiff.runtime import records

INCIDENTS: Final = "recovery.jsonl"  # a line for each incident
USAGE: Final = "usage.json"  # an entry for each start, on SLURM or not
SHOWN: Final = 50  # of a kind, the newest
_NAMED: Final = 3  # samples of an incident
_DONE: Final = {"skip": "left out", "roll back": "rolled back", "end": "ended the run"}


def written(run: Folder) -> Markup:
    """The section of the page.

    Raises:
        UsageError: when the record of incidents is damaged.
    """
    return section("Events", [*_starts(run), *_crashes(run), *_incidents(run), *_damage(run)])


def _starts(run: Folder) -> list[Markup]:
    found = run.starts
    if not found:
        return _usage(run)
    rows: list[list[Cell]] = [
        [moment(one.time), one.nodes, one.step, _hours(one.seconds), one.ended or "not told: it runs, or was killed"]
        for one in found[-SHOWN:]
    ]
    title = f"{len(found):,} {'start' if len(found) == 1 else 'starts'}"
    return [heading(title), _cut(len(found)), table(("begun", "nodes", "from step", "lasted", "ended"), rows)]


def _usage(run: Folder) -> list[Markup]:
    """Starts without SLURM: when, and how long each trained, not what ended it."""
    try:
        rows: list[list[Cell]] = records.read(run.path / USAGE, _used, "starts")
    except RunError as error:
        raise UsageError(str(error)) from error
    except KeyError as error:
        raise UsageError(f"{run.path / USAGE} has a start without {error}: remove it") from error
    if not rows:
        return [note("There is no record of starts.")]
    title = f"{len(rows):,} {'start' if len(rows) == 1 else 'starts'}"
    said = note("What ended each is recorded on SLURM alone.")
    return [heading(title), said, _cut(len(rows)), table(("begun", "devices", "trained for"), rows[-SHOWN:])]


def _used(one: dict[str, Any]) -> list[Cell]:
    lasted = _hours(one["seconds"]) or "not told: it is the newest"
    return [moment(one["time"]), f"{one['devices']} x {one['device']}", lasted]


def _crashes(run: Folder) -> list[Markup]:
    found = run.found.crashes
    if not found:
        return [note("There is no record of a crash.")]
    rows: list[list[Cell]] = [
        [moment(one.time), one.nodes, one.step, one.status, one.why, ", ".join(one.blamed)] for one in found[-SHOWN:]
    ]
    head = ("when", "nodes", "newest checkpoint", "exit status", "why", "nodes blamed")
    return [heading(f"{len(found):,} {'crash' if len(found) == 1 else 'crashes'}"), _cut(len(found)), table(head, rows)]


def _incidents(run: Folder) -> list[Markup]:
    file = run.path / INCIDENTS
    kinds: Counter[str] = Counter()
    newest: deque[list[Cell]] = deque(maxlen=SHOWN)
    for number, line in enumerate(lines(file), 1):
        try:
            kinds[line["action"]] += 1
            newest.append(_incident(line))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{file} line {number} is no incident ({error!r}): delete the line") from error
    if not kinds:
        return [note("No step was left out or rolled back.")]
    total = sum(kinds.values())
    title = f"{total:,} incidents: {', '.join(f'{count} {_DONE.get(kind, kind)}' for kind, count in kinds.items())}"
    head = ("when", "at step", "steps without effect", "what", "why", "samples in it")
    return [heading(title), _cut(total), table(head, list(newest))]


def _incident(line: dict[str, Any]) -> list[Cell]:
    begin, end = line["window"]
    keys = [str(one["key"]) for one in line["samples"]]
    named = ", ".join(keys[:_NAMED]) + (f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")
    action = str(line["action"])
    why = f"{line['reason']}: {line['detail']}"
    return [moment(line["time"]), int(line["step"]), f"{begin:,} to {end - 1:,}", _DONE.get(action, action), why, named]


def _damage(run: Folder) -> list[Markup]:
    parts = []
    for tag, what in (
        ("data/damaged", "Damaged samples that were substituted"),
        ("data/tombstoned", "Taken-down samples"),
    ):
        curve = run.readings.curve(tag)
        if curve.count and curve.highest > 0:
            since = run.readings.last.get(tag, 0)
            parts.append(note(f"{what}: {since:,.0f} since the newest start, at most {curve.highest:,.0f} in one."))
    return parts or [note("No damaged or taken-down sample was met.")] if run.readings.count else []


def _hours(seconds: float) -> str:
    if not seconds:
        return ""
    return f"{seconds:,.0f} s" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _cut(count: int) -> Markup:
    return note(f"The newest {SHOWN} are shown." if count > SHOWN else "")
