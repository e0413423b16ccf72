"""What an earlier start of a job left behind, and must not be taken for this start's."""

import os

import submitit


def forget_earlier() -> None:
    """Remove what an earlier start of a SLURM job left as its result: it would be taken for this one's end."""
    if os.environ["SUBMITIT_EXECUTOR"] == "slurm":
        submitit.JobEnvironment().paths.result_pickle.unlink(missing_ok=True)
