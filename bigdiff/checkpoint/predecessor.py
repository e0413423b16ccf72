"""Which checkpoint of another run a stage starts from. Without torch: asked before a node is used."""

from pathlib import Path

import yaml

from bigdiff.checkpoint import layout
from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Stage


def run_of(stage: Stage) -> Path:
    """The folder of the run that `stage` starts from: `init_from`, when that is a folder, or of this name in `runs`."""
    named = Path(stage.init_from)
    return named if named.is_dir() else layout.run_folder(stage.runs, stage.init_from)


def chosen(stage: Stage) -> Path:
    """The checkpoint that `stage` starts from: that of `init_step`, or the last one of a run that is at its end.

    Raises:
        UsageError: when there is none, or the run is not at its end: a half-trained base is a silent error.
    """
    run = run_of(stage)
    saved = layout.saved(run)
    if not saved:
        raise UsageError(f"init_from={stage.init_from}: {run} has no checkpoint; train that stage first")
    steps = [layout.step_of(folder) for folder in saved]
    if stage.init_step:
        if stage.init_step not in steps:
            there = ", ".join(map(str, sorted(steps)))
            raise UsageError(f"init_step={stage.init_step}: {run} has no checkpoint of this step, but of {there}")
        return saved[steps.index(stage.init_step)]
    end = _end(run, steps[0])
    if steps[0] < end:
        raise UsageError(
            f"init_from={stage.init_from}: {run} is at step {steps[0]} of {end}; let it finish, or start from there "
            f"with init_step={steps[0]}"
        )
    return saved[0]


def _end(run: Path, newest: int) -> int:
    """The steps that a run was to have, by its resolved config; other settings in it may be of an older version."""
    file = run / layout.CONFIG
    try:
        steps = yaml.safe_load(file.read_text())["steps"]
        if not isinstance(steps, int):
            raise TypeError("steps is no whole number")
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file} does not say at which step that run ends ({error}); name the checkpoint with init_step={newest}"
        ) from error
    return steps
