from pathlib import Path

import pytest

from bigdiff.config.errors import RunError
from bigdiff.config.load import CONFIGS, load_stage
from bigdiff.quickstart import job, scenes
from bigdiff.quickstart.job import SIZES, Clock, Places


def test_each_seed_has_runs_of_its_own_and_shares_the_shards() -> None:
    first, second = Places.of_seed(0), Places.of_seed(7)
    assert first.images == second.images
    assert first.run(32) == Path("runs/quickstart-32px")
    assert second.run(32) == Path("runs/seed-7/quickstart-32px")


@pytest.mark.parametrize("seed", [0, 7])
def test_the_commands_train_the_stages_where_the_places_say(seed: int) -> None:
    places = Places.of_seed(seed)
    for size in SIZES:
        door, _, name, *overrides = job.train(places, size)
        stage = load_stage(name, overrides)
        assert (CONFIGS.parent / door).is_file()
        assert (stage.resolution, stage.seed) == (size, seed)
        assert Path(stage.runs) / stage.name == places.run(size)
        assert Path(stage.data.latents).parent == places.base
        assert Path(stage.model.vae.source).parent == places.components
    assert load_stage("quickstart-64px").init_from == "quickstart-32px"


def test_the_report_is_of_the_run_that_was_judged() -> None:
    door, _, run = job.report(Places.of_seed(7), 32)
    assert (CONFIGS.parent / door).is_file()
    assert run == "runs/seed-7/quickstart-32px"


def test_a_command_that_fails_ends_the_job(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    job.run(["launch/sample.py", "--help"], said.append)
    assert said == ["$ python launch/sample.py --help"]
    with pytest.raises(RunError, match=r"launch/sample\.py ended with exit code 2"):
        job.run(["launch/sample.py", "--pipeline", "nowhere", "--prompt", "x", "--output", "x.jpg"], said.append)
    assert "must end in .png" in capfd.readouterr().err


def test_phases_are_timed_in_order() -> None:
    said: list[str] = []
    clock = Clock()
    with clock.phase("one", said.append):
        pass
    with clock.phase("two", said.append):
        pass
    assert list(clock.seconds) == ["one", "two"]
    assert said[0] == "\n== one"


def test_the_grid_shows_held_out_combinations() -> None:
    shown = job.held_out_captions(job.SHOWN)
    wanted = scenes.held_out_scenes(job.SHOWN, seed=job.GRID_SEED)
    assert len(shown) == job.SHOWN
    for caption, scene in zip(shown, wanted, strict=True):
        assert scenes.is_held_out(scenes.combination(scene))
        assert scene.things[0].shape in caption
