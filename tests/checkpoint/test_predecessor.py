from pathlib import Path

import pytest

from bigdiff.checkpoint import layout, predecessor
from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage


def stage(runs: Path, *overrides: str) -> Stage:
    return load_stage("512px", [f"runs={runs}", *overrides])


def run_with(runs: Path, *steps: int, config: str = "name: 256px\nsteps: 237000\nold_setting: 1\n") -> Path:
    run = runs / "256px"
    for step in steps:
        layout.checkpoint(run, step).mkdir(parents=True)
        (layout.checkpoint(run, step) / layout.INDEX).write_text("{}")
    if config:
        (run / layout.CONFIG).write_text(config)
    return run


def refusal(chosen: Stage) -> str:
    with pytest.raises(UsageError) as caught:
        predecessor.chosen(chosen)
    return str(caught.value)


def test_the_end_of_a_finished_run_is_chosen(tmp_path: Path) -> None:
    run = run_with(tmp_path, 235_000, 237_000)
    assert predecessor.chosen(stage(tmp_path)) == layout.checkpoint(run, 237_000)


def test_a_run_that_is_not_at_its_end_is_refused_unless_its_step_is_named(tmp_path: Path) -> None:
    run = run_with(tmp_path, 5_000, 10_000)
    sentence = refusal(stage(tmp_path))
    assert sentence == (
        f"init_from=256px: {run} is at step 10000 of 237000; let it finish, or start from there with init_step=10000"
    )
    assert predecessor.chosen(stage(tmp_path, "init_step=5000")) == layout.checkpoint(run, 5_000)
    assert "has no checkpoint of this step, but of 5000, 10000" in refusal(stage(tmp_path, "init_step=7000"))


def test_a_run_without_checkpoints_and_one_without_an_end_are_refused(tmp_path: Path) -> None:
    assert "has no checkpoint; train that stage first" in refusal(stage(tmp_path))
    run_with(tmp_path, 9, config="")
    assert "does not say at which step that run ends" in refusal(stage(tmp_path))
    assert "init_step=9" in refusal(stage(tmp_path))
    for config in ("name: x\n", "steps: many\n", "- steps\n", "steps: [\n"):
        (tmp_path / "256px" / layout.CONFIG).write_text(config)
        assert "does not say at which step" in refusal(stage(tmp_path))


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    run = run_with(tmp_path / "elsewhere", 237_000)
    from_folder = stage(tmp_path, f"init_from={run}")
    assert predecessor.run_of(from_folder) == run
    assert predecessor.chosen(from_folder) == layout.checkpoint(run, 237_000)
    assert predecessor.run_of(stage(tmp_path)) == tmp_path / "256px"
