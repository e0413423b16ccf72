"""What a run's folder holds, read once for all parts of the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bigdiff.checkpoint import layout
from bigdiff.cluster import status
from bigdiff.cluster.starts import Start, starts
from bigdiff.cluster.status import Found, Queued, Standing
from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.load import restore
from bigdiff.config.schema import Stage
from bigdiff.report import readings
from bigdiff.report.readings import Readings
from bigdiff.report.records import content

VERSIONS: Final = "versions.json"  # versions, commit, and the data's manifest hashes, written at each start


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """A run, as its folder tells."""

    path: Path
    stage: Stage
    config: str  # the text of config.yaml
    found: Found
    standing: Standing
    doubt: str  # why its state may be another; "" where that is known
    readings: Readings
    starts: tuple[Start, ...]  # all, the oldest first
    about: Mapping[str, Any]  # versions.json, {} without

    @property
    def seen(self) -> int:
        """Images that it was trained on so far, by its last reading or its newest checkpoint."""
        logged = int(self.readings.last.get(readings.SEEN, 0))
        return max(logged, self.found.checkpoint * self.stage.batch.total)


def read(run: Path) -> Folder:
    """Everything but pictures, incidents and results, which are read where they are shown.

    Raises:
        UsageError: when it is no run's folder, or a file in it is damaged.
    """
    if not run.is_dir():
        raise UsageError(f"--run {run} is not a folder: name that of a run, such as runs/quickstart-64px")
    file = run / layout.CONFIG
    try:
        config = file.read_text()
    except FileNotFoundError:
        raise UsageError(f"--run {run} holds no {layout.CONFIG}: it is no run, or has not begun to train") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error}): start the run again, which writes it") from error
    stage = restore(Stage, config, str(file))
    found_readings = readings.read(run / layout.METRICS)  # before the rest, which asks for its last line alone
    try:
        found, begun = status.find(run), tuple(starts(run / "logs"))
    except RunError as error:  # to this command a damaged record is unusable input
        raise UsageError(str(error)) from error
    queued, doubt = _queued(found, stage)
    return Folder(
        path=run,
        stage=stage,
        config=config,
        found=found,
        doubt=doubt,
        standing=status.stand(stage, found, queued),
        readings=found_readings,
        starts=begun,
        about=content(run / VERSIONS),
    )


def _queued(found: Found, stage: Stage) -> tuple[Queued | None, str]:
    """What SLURM has of the run's job, and what is in doubt where it does not answer, which the page says."""
    if not found.on_slurm or found.checkpoint >= stage.steps:
        return None, ""
    try:
        return status.queue([found.job]).get(found.job), ""
    except RunError as error:
        return None, f"by its folder alone, for {str(error).partition(chr(10))[0]}"
