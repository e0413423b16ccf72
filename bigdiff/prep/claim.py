"""One job's hold on its output folder, and what the set in it is made from: a resume with anything else is refused."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data import manifest
from bigdiff.data.manifest import Manifest
from bigdiff.prep.layout import Layout
from bigdiff.runtime.files import remove_leftovers, write_json

LOCK_SECONDS: Final = 10.0  # a killed job's processes are gone by then
_COMPARED_WITH: Final = ("evaluation_pictures", "evaluation_captions")  # inputs of the plan alone


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a job made, or found made."""

    manifest: Manifest
    report: Path
    was_finished: bool


def carry_out(layout: Layout, made_from: dict[str, Any], job: Callable[[], Manifest]) -> Outcome:
    """Do `job`, which fills the folder and publishes the set last, unless that is done; continue it when it was begun.

    Raises:
        UsageError: when the folder holds something else, or was made with other settings or of other input.
        RunError: when the disk fails, besides what `job` raises.
    """
    if (layout.output / manifest.NAME).exists():
        finished = manifest.read(layout.output, "images")
        agree(layout.output, finished.lineage, {key: made_from[key] for key in made_from if key != "versions"})
        if layout.work.exists():
            with lock(layout):
                shutil.rmtree(layout.work)
        return Outcome(manifest=finished, report=layout.report, was_finished=True)
    try:
        layout.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {layout.output} cannot be made ({error.strerror}): name another folder") from error
    try:
        with lock(layout):
            begin(layout, made_from)
            finished = job()
            shutil.rmtree(layout.work)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise RunError(f"{error.strerror}{where}: mend that, and the same command continues") from error
    return Outcome(manifest=finished, report=layout.report, was_finished=False)


def begin(layout: Layout, made_from: dict[str, Any]) -> None:
    """Write down what the set is made from, or agree with what is written; clear up after a killed writer.

    What the plan alone depends on may change while the set is unfinished: a threshold that leaves nothing must not cost
    the download. The plan and what was packed by it are then made again.

    Raises:
        UsageError: when the folder holds something else, or was begun with something else.
    """
    if layout.settings.exists():
        before = json.loads(layout.settings.read_text())
        agree(layout.output, _lasting(before), _lasting(made_from))
        if before != made_from:
            _forget_plan(layout)
            write_json(layout.settings, made_from)  # last: killed before, the next start does it again
    else:
        foreign = sorted(path.name for path in layout.output.iterdir() if path != layout.work)
        if foreign:
            raise UsageError(
                f"--output {layout.output} holds {foreign[0]!r} and is no set begun here: name an empty folder"
            )
        write_json(layout.settings, made_from)
    written = (layout.output, layout.report.parent, layout.work)
    for folder in (
        *written,
        layout.samples,
        layout.pictures,
        layout.rejected,
        layout.scores,
        layout.embeddings,
        layout.shards,
    ):
        remove_leftovers(folder)


def _lasting(made_from: dict[str, Any]) -> dict[str, Any]:
    """Without what the plan alone depends on; the scorers' fingerprints stay."""
    kept = {key: value for key, value in made_from.items() if key != "takedown"}
    inputs = {name: value for name, value in made_from["inputs"].items() if name not in _COMPARED_WITH}
    sections = {name: dict(values) for name, values in made_from["settings"].items() if name != "dedup"}
    sections.get("score", {}).pop("scorers", None)
    sections.get("pack", {}).pop("samples_per_shard", None)
    return {**kept, "inputs": inputs, "settings": sections}


def _forget_plan(layout: Layout) -> None:
    layout.plan.unlink(missing_ok=True)
    shutil.rmtree(layout.shards, ignore_errors=True)
    for file in (layout.dropped, layout.decided, *layout.output.glob("*.tar"), *layout.output.glob("*.parquet")):
        file.unlink(missing_ok=True)


def agree(output: Path, made: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compare what a set was made from with what it would be made from now, by the keys of `wanted`.

    Raises:
        UsageError: naming the first setting or input that differs.
    """
    before, now = _flat({key: made.get(key, {}) for key in wanted}), _flat(wanted)
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise UsageError(
                f"{output} was made with {key}={before.get(key, 'absent')}, now it is {now.get(key, 'absent')}: "
                "go back to that, name another --output, or delete the folder"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}".removeprefix("settings.")] = value
    return leaves


@contextmanager
def lock(layout: Layout) -> Iterator[None]:
    """Hold the folder: two jobs in it would damage each other. The kernel lets go when this process ends.

    Raises:
        UsageError: when another holds it.
    """
    held = os.open(layout.work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise UsageError(f"another job is working in {layout.output}: wait for it or end it") from None
                time.sleep(0.1)
        yield
    finally:
        os.close(held)
