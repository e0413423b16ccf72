"""Questions to SLURM through its client programs, which wait for minutes for a controller that is gone: not here."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bigdiff.config.errors import RunError

_PREFIX: Final = re.compile(r"^(sbatch: error: )?(allocation failure: )?")
# what SLURM, submitit and bigdiff.cluster.rendezvous set for one job alone: sbatch would take it for the next one's
_PREFIXES: Final = ("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_")
_NAMES: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")


def state(job: str) -> str:
    """SLURM's state of a job: RUNNING, COMPLETING, CANCELLED, PENDING, ...

    Raises:
        RunError: when SLURM's `scontrol` does not answer.
    """
    return shown(job, "JobState") or "UNKNOWN"


def shown(job: str, field: str) -> str:
    """What SLURM shows of a job in one of its fields; "" where it has none.

    Raises:
        RunError: as `state`.
    """
    found = re.search(rf"\b{field}=(\S+)", scontrol("show", "job", "-o", job))
    return found.group(1) if found else ""


def squeue(*options: str) -> list[str]:
    """The lines that SLURM's `squeue` prints; none of the jobs that it has forgotten, as it does after minutes.

    Raises:
        RunError: when it does not answer.
    """
    told = subprocess.run(["squeue", "--noheader", *options], capture_output=True, text=True, timeout=60, check=False)
    if told.returncode and "Invalid job id" not in told.stderr:
        raise RunError(f"squeue does not answer: {told.stderr.strip()}; the same command again continues")
    return told.stdout.splitlines()


def scontrol(*arguments: str, silent: bool = False) -> str:
    """What SLURM's `scontrol` prints for `arguments`.

    Raises:
        RunError: when it is missing, fails, does not answer in a minute, or says nothing and may not be `silent`.
    """
    program = shutil.which("scontrol")
    if program is None:
        raise RunError("scontrol not found on this node: SLURM's client programs must be in PATH of the job")
    try:
        # a client waits for minutes for a controller that is gone
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise RunError(f"scontrol {' '.join(arguments)} failed: {error}") from error
    if not done.stdout.strip() and not silent:
        raise RunError(f"scontrol {' '.join(arguments)} gave no answer")
    return done.stdout


def hostnames(nodes: str) -> tuple[str, ...]:
    """The hosts of a SLURM node list such as `gpu[01-04]`, one by one; at least one.

    Raises:
        RunError: as `scontrol`.
    """
    return tuple(scontrol("show", "hostnames", nodes).split())


def environment() -> dict[str, str]:
    """This process's environment without what its own job has set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_PREFIXES) and key not in _NAMES}
    return kept | {key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ}


def refused(script: str | Path, *options: str) -> str:
    """Why SLURM would not take the job of an sbatch script, given as its text or its file; "" where it would.

    The script's own conditions on other jobs do not count. Nodes that are down do: SLURM says the same of them as of
    nodes that it does not have.
    """
    words = ["sbatch", "--test-only", "--dependency=singleton", *options]
    file, text = ([str(script)], None) if isinstance(script, Path) else ([], script)
    told = subprocess.run(
        [*words, *file], input=text, capture_output=True, text=True, timeout=60, check=False, env=environment()
    )
    said = [_PREFIX.sub("", line.strip()) for line in told.stderr.strip().splitlines()]
    return "; ".join(said) if told.returncode else ""


def sinfo(*options: str) -> list[str]:
    """The lines that SLURM's `sinfo` prints.

    Raises:
        RunError: when it does not answer.
    """
    told = subprocess.run(["sinfo", "--noheader", *options], capture_output=True, text=True, timeout=60, check=False)
    if told.returncode:
        raise RunError(f"sinfo does not answer: {told.stderr.strip()}")
    return told.stdout.splitlines()


def scancel(jobs: Iterable[str]) -> None:
    """End `jobs`; of those that SLURM has forgotten there is nothing to end."""
    words = sorted(jobs)
    if words:
        subprocess.run(["scancel", *words], capture_output=True, timeout=60, check=False)
