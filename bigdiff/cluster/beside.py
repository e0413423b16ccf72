"""A task at a checkpoint to its job: by launch/slurm.py, and by the stage's job while it trains.

A process of its own, outside of the job: what SLURM sets there speaks of that job's size, and sbatch would take it for
the new one's.
"""

import pickle
import sys
from pathlib import Path

from bigdiff.cluster import status, submit, task
from bigdiff.config.cluster import Cluster
from bigdiff.config.errors import door
from bigdiff.config.recipe import Task


def main() -> None:
    """Submit what standard input holds, and print what became of it."""
    work, folder, cluster = pickle.load(sys.stdin.buffer)  # of the process that started this one, of the same version
    sys.stdout.write(submitted(work, folder, cluster) + "\n")


def submitted(work: Task, folder: Path, cluster: Cluster) -> str:
    """Submit a task whose logs are in `folder`, unless it is done, waits or runs; a line for a person.

    Raises:
        UsageError, RunError: as submit.of_task and submit.slurm.
    """
    if task.done(work):
        return f"{work.name} is finished: {work.makes} is there"
    number, state = status.waiting(folder)
    if number:
        return f"{work.name} is job {number} already, {state}"
    number = submit.slurm(submit.of_task(work, folder, cluster), cluster)
    return f"{work.name} submitted as job {number}, makes {work.makes}; logs in {folder / 'logs'}"


if __name__ == "__main__":
    door(main)
