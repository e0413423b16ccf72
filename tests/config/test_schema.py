import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.schema import accumulation, single_file

STAGE = load_stage("512px")


@pytest.mark.parametrize("world", [1, 2, 8, 64, 256, 512])
def test_the_global_batch_is_the_same_on_every_world(world: int) -> None:
    assert accumulation(STAGE, world) * world * STAGE.batch.micro == STAGE.batch.total


@pytest.mark.parametrize("world", [3, 24, 1024])
def test_a_world_that_does_not_divide_the_batch_is_refused(world: int) -> None:
    with pytest.raises(UsageError, match=r"batch\.total=2048 of stage 512px does not divide"):
        accumulation(STAGE, world)


def test_a_person_is_told_what_a_stage_begins_with() -> None:
    assert STAGE.beginning == "256px"
    assert load_stage("256px").beginning == "random weights"
    assert load_stage("256px", ["init_unet=org/model:unet"]).beginning == "org/model:unet"


@pytest.mark.parametrize(
    ("source", "single"), [("a/b.safetensors", True), ("b.ckpt", True), ("a/folder:unet", False), ("org/model", False)]
)
def test_a_single_file_is_known_by_its_name(source: str, single: bool) -> None:
    assert single_file(source) is single
