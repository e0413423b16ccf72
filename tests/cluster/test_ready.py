from pathlib import Path

import pytest

from bigdiff.cluster.ready import has_data, reached, startable
from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return load_stage("512px", [f"runs={tmp_path / 'runs'}"])


def test_the_reached_step_is_the_newest_whole_checkpoints(stage: Stage) -> None:
    assert reached(stage) == 0
    folder = Path(stage.runs) / stage.name / "checkpoints"
    for name, whole in {"step-00000005": True, "step-00000010": True, "step-00000015": False}.items():
        (folder / name).mkdir(parents=True)
        if whole:
            (folder / name / "index.json").write_text("{}")
    assert reached(stage) == 10


def test_a_stage_that_was_begun_needs_no_predecessor(stage: Stage) -> None:
    with pytest.raises(UsageError, match=r"init_from=256px: .* has no checkpoint"):
        startable(stage)
    begun = Path(stage.runs) / stage.name / "checkpoints" / "step-00000005"
    begun.mkdir(parents=True)
    (begun / "index.json").write_text("{}")
    startable(stage)


def test_others_weights_must_be_there_before_the_first_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "sd.safetensors"
    stage = load_stage("256px", [f"runs={tmp_path / 'runs'}", f"init_unet={file}"])
    with pytest.raises(UsageError, match=r"init_unet=.*sd\.safetensors is not there"):
        startable(stage)
    file.write_bytes(b"")
    startable(stage)
    startable(load_stage("256px", ["init_unet=org/model:unet"]))  # which the hub may have


def test_a_set_must_be_there_and_be_made_for_the_stage(toy: Path) -> None:
    file = str(toy / "stage.yaml")
    has_data(load_stage(file))
    has_data(load_stage(file, ["data.latents=s3://bucket/set", "data.cache=/scratch", "data.cache_gb=1"]))
    absent = load_stage(file, ["data.latents=sets//nowhere/"])
    with pytest.raises(UsageError, match=r"nowhere has no manifest"):
        has_data(absent)
    has_data(absent, frozenset({"sets/nowhere"}))
    with pytest.raises(UsageError, match="has latent_channels 2, stage toy needs 4: encode a set for this stage"):
        has_data(load_stage(file, ["model.unet.latent_channels=4"]))
