import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["validation.every=50"], "no effect without validation.set"),
        (["validation.samples=2048"], "no effect without validation.set"),
        (["validation.set=x"], "validation.every=0 must be a positive multiple of log.every=50"),
        (["validation.set=x", "validation.every=75"], "validation.every=75 must be a positive multiple of log.every"),
        (
            ["validation.set=x", "validation.every=50"],
            "validation.samples=0 must be a positive multiple of batch.total",
        ),
        (["validation.set=x", "validation.every=50", "validation.samples=100"], "multiple of batch.total=2048"),
        (
            ["validation.set=y", "data.latents=y", "validation.every=50", "validation.samples=2048"],
            "is trained on, too",
        ),
    ],
)
def test_validation_that_cannot_be_is_refused(settings: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        load_stage("512px", settings)
    assert sentence in str(error.value)


def test_a_stage_may_have_a_held_out_set() -> None:
    stage = load_stage("512px", ["validation.set=x", "validation.every=100", "validation.samples=4096"])
    assert (stage.validation.set, stage.validation.every, stage.validation.samples) == ("x", 100, 4096)
