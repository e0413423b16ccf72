from pathlib import Path

import pytest

from bigdiff.cluster.earlier import forget_earlier


@pytest.mark.parametrize(("executor", "left"), [("slurm", []), ("local", ["4711_3_result.pkl"])])
def test_a_start_on_slurm_forgets_the_result_of_its_own_process_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, left: list[str]
) -> None:
    for name in ("4711_2_result.pkl", "4711_3_result.pkl"):
        (tmp_path / name).touch()
    given = {"SUBMITIT_EXECUTOR": executor, "SUBMITIT_FOLDER": str(tmp_path), "SUBMITIT_LOCAL_JOB_ID": "4711"}
    given |= {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "3", "SUBMITIT_LOCAL_GLOBALID": "3"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        forget_earlier()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["4711_2_result.pkl", *left]
