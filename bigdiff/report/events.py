"""What happened to the run: its starts and what ended each, crashes, steps left out or taken back, damage."""

from collections import Counter, deque
from typing import Any, Final

from bigdiff.cluster.starts import Start
from bigdiff.config.errors import UsageError
from bigdiff.prep.page import Cell, Markup, heading, note, section, table
from bigdiff.report.folder import Folder
from bigdiff.report.headline import moment
from bigdiff.report.records import lines

INCIDENTS: Final = "recovery.jsonl"  # a line for each incident
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
        return [note("There is no record of starts: on SLURM alone one is kept.")]
    rows: list[list[Cell]] = [
        [moment(one.time), one.nodes, one.step, _lasted(one), one.ended or "not told: it runs, or was killed"]
        for one in found[-SHOWN:]
    ]
    title = f"{len(found):,} {'start' if len(found) == 1 else 'starts'}"
    return [heading(title), _cut(len(found)), table(("begun", "nodes", "from step", "lasted", "ended"), rows)]


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


def _lasted(start: Start) -> str:
    if not start.seconds:
        return ""
    return f"{start.seconds:,.0f} s" if start.seconds < 7200 else f"{start.seconds / 3600:,.1f} h"


def _cut(count: int) -> Markup:
    return note(f"The newest {SHOWN} are shown." if count > SHOWN else "")
