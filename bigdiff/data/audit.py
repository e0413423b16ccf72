"""Proof of what a run was trained on: `python -m bigdiff.data.audit RUN`, and for one sample `... RUN --url URL`.

It reads the ledgers of all starts (bigdiff.data.ledger), finds the history that the weights have seen
(bigdiff.data.history), and holds it against the order (bigdiff.data.proof): every position once, and at each the
sample that belongs there. The run's audit folder and its sets are enough.
"""

import argparse
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from bigdiff.config.errors import RunError, UsageError, door
from bigdiff.data import history
from bigdiff.data.lookup import Column
from bigdiff.data.proof import Answer, Report, ask, open_sets, prove


def show(report: Report) -> list[Table]:
    """For a person."""
    facts = Table(title="proven" if report.proven else "NOT PROVEN", show_header=False)
    digests = "not computed again" if report.wrong_digests is None else str(report.wrong_digests)
    rows = {
        "steps": f"{report.steps:,}",
        "positions": f"{report.positions:,}",
        "missing": f"{report.missing:,}",
        "duplicates": f"{report.duplicates:,}",
        "overlaps between ranks": f"{report.overlaps:,}",
        "records with other samples": digests,
        "steps done again after a crash": f"{report.redone_steps:,}",
        "steps that moved no weights": f"{sum(one.end - one.begin for one in report.skipped):,}",
        "substituted": ", ".join(f"{count:,} {reason}" for reason, count in report.substituted.items()) or "0",
        **{f"passes over {one.source}": f"{one.passes:.3f} ({one.samples:,} samples)" for one in report.sources},
        "order": report.fingerprint[:16],
    }
    for name, text in rows.items():
        facts.add_row(name, text)
    starts = Table(title="starts")
    for column in ("time", "processes", "from step", "steps recorded", "of these in the weights", "torn files"):
        starts.add_column(column, justify="right")
    for one in report.starts:
        numbers = (one.size, one.resumed, one.recorded, one.counted, one.torn)
        starts.add_row(_time(one.start), *(f"{number:,}" for number in numbers))
    return [facts, starts]


def places(answer: Answer) -> Table:
    """Where the samples that were asked for stood, for a person."""
    table = Table(title=f"{answer.column} {answer.value}")
    for column in ("source", "shard", "row", "step", "position", "how"):
        table.add_column(column, justify="right")
    for one in answer.found:
        where = (one.source, one.shard, str(one.row))
        stood_in = set(one.sighting.substitute)
        for step, position in zip(one.sighting.steps, one.sighting.positions, strict=True):
            table.add_row(*where, str(step), str(position), "read as a substitute" if position in stood_in else "read")
        for idle in one.sighting.idle:
            table.add_row(*where, str(idle.step), str(idle.position), f"read, moved no weights: {idle.reason}")
        for replaced in one.sighting.replaced:
            table.add_row(*where, str(replaced.step), str(replaced.position), f"not used: {replaced.reason}")
    return table


def _time(start: str) -> str:
    seconds = int(start.partition("-")[0]) / 1e9
    return datetime.fromtimestamp(min(seconds, 2e11), UTC).strftime("%Y-%m-%d %H:%M:%S")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bigdiff.data.audit", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder, trained with data.audit=true")
    asked = parser.add_mutually_exclusive_group()
    for column in get_args(Column):
        asked.add_argument(f"--{column}", metavar=column.upper(), help=f"was the sample with this {column} trained on?")
    parser.add_argument("--steps", type=int, metavar="N", help="prove steps 0 to N-1 (of a checkpoint; default: all)")
    parser.add_argument("--fast", action="store_true", help="do not compute the samples of each step again")
    parser.add_argument(
        "--set", action="append", default=[], metavar="OLD=NEW", help="where a set lies now, if it has moved"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main() -> None:
    """Parse, read, prove or look up, print.

    Raises:
        RunError: when the run is not proven.
    """
    arguments = _arguments()
    if not all("=" in item for item in arguments.set):
        raise UsageError("--set wants OLD=NEW, the set's recorded and its new location")
    moved = dict(item.partition("=")[::2] for item in arguments.set)
    quiet = not sys.stderr.isatty()
    starts = history.read_starts(arguments.run, quiet)
    sought = [(column, getattr(arguments, column)) for column in get_args(Column) if getattr(arguments, column)]
    sets = open_sets(starts[-1].header, moved) if sought or not arguments.fast else None
    report = prove(starts, None if sought else sets, arguments.steps, quiet)
    output: dict[str, Any] = asdict(report)
    console = Console()
    tables = show(report)
    for column, value in sought:
        assert sets is not None
        answer = ask(history.chain(starts, arguments.steps)[0], sets, column, value, quiet)
        output = {"answer": answer.sentence, **asdict(answer), "proven": report.proven, "faults": output["faults"]}
        tables = [places(answer)]
        if not arguments.json:
            console.print(answer.sentence, style="bold", soft_wrap=True)
    if arguments.json:
        console.print_json(json.dumps(output))
    else:
        for table in tables:
            console.print(table)
        for skip in report.skipped if not sought else ():
            console.print(skip.sentence, soft_wrap=True, markup=False)
        for fault in report.faults:
            console.print(f"{fault.kind}: {fault.sentence}", style="red", soft_wrap=True, markup=False)
    if not report.proven:
        raise RunError(f"not proven: {len(report.faults)} faults, the first: {report.faults[0].sentence}")


if __name__ == "__main__":
    door(main)
