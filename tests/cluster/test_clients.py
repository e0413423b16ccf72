"""SLURM's client programs: scripts in their place for what they say, the real ones for what they refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigdiff.cluster.clients import environment, hostnames, refused, scontrol, sinfo, squeue, state
from bigdiff.config.errors import RunError

Slurm = Any  # of tests/cluster/conftest.py
SCRIPT = "#!/bin/bash\n#SBATCH --nodes={nodes} --ntasks-per-node=1\n{more}\ntrue\n"


def test_a_jobs_state_is_slurms_word(put_program: Callable[[str, str], None]) -> None:
    put_program("scontrol", 'test "$*" = "show job -o 17" && echo "JobId=17 JobState=RUNNING Reason=None"')
    assert state("17") == "RUNNING"
    put_program("scontrol", "echo JobId=17")
    assert state("17") == "UNKNOWN"


def test_an_order_may_be_carried_out_in_silence(put_program: Callable[[str, str], None]) -> None:
    put_program("scontrol", "exit 0")
    assert scontrol("requeue", "17", silent=True) == ""
    put_program("scontrol", "exit 1")
    with pytest.raises(RunError, match="scontrol requeue 17 failed"):
        scontrol("requeue", "17", silent=True)


def test_a_node_list_is_spelt_out(slurm: Slurm) -> None:
    assert hostnames("gpu[01-03],login") == ("gpu01", "gpu02", "gpu03", "login")


@pytest.mark.parametrize(
    ("nodes", "more", "words"),
    [
        (4, "", ""),
        (4, "#SBATCH --gpus-per-node=2", ""),
        (2, "#SBATCH --dependency=afterok:1", ""),  # of jobs that SLURM has forgotten, or that are still to come
        (5, "", "Requested node configuration is not available"),
        (1, "#SBATCH --gpus-per-node=3", "Requested node configuration is not available"),
        (1, "#SBATCH --partition=none", "invalid partition specified: none"),
        (1, "#SBATCH --constraint=a100", "Invalid feature specification"),
        (1, "#SBATCH --exclude=gpu7", "Invalid node name specified"),
    ],
)
def test_what_slurm_would_not_take_is_said_in_its_words_and_not_submitted(
    slurm: Slurm, tmp_path: Path, nodes: int, more: str, words: str
) -> None:
    text = SCRIPT.format(nodes=nodes, more=more)
    (tmp_path / "script").write_text(text)
    for why in (refused(text), refused(tmp_path / "script")):
        assert words in why and bool(why) == bool(words) and not why.startswith("allocation")
    assert slurm.run("squeue", "-h") == ""


def test_variables_of_a_job_that_asks_do_not_reach_the_question(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "none")
    assert refused(SCRIPT.format(nodes=1, more="")) == ""


def test_clients_without_their_controller_are_an_error(put_program: Callable[[str, str], None]) -> None:
    for name in ("squeue", "sinfo"):
        put_program(name, "echo gone >&2; exit 1")
    with pytest.raises(RunError, match="squeue does not answer: gone"):
        squeue()
    with pytest.raises(RunError, match="sinfo does not answer: gone"):
        sinfo()


def test_a_new_jobs_client_knows_nothing_of_this_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NTASKS", "SUBMITIT_EXECUTOR", "RANK", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "SRUN_DEBUG"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/ours")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = environment()
    assert found["SLURM_CONF"] == "/etc/ours" and found["HF_HUB_OFFLINE"] == "1" and "PATH" in found
    assert not any(name.startswith(("SUBMITIT_", "SRUN_")) for name in found)
    assert not {"SLURM_NTASKS", "RANK", "MASTER_PORT", "CUDA_VISIBLE_DEVICES"} & found.keys()
