"""The defaults, which no GPU has measured yet: all off, but that no dropped caption is encoded."""

from pathlib import Path

from bigdiff.config.load import dump, load, load_stage
from bigdiff.config.schema import Stage
from bigdiff.config.speed import Speed


def test_every_switch_is_off_until_it_is_asked_for() -> None:
    assert Speed() == Speed(
        channels_last=False,
        attention="auto",
        norm="plain",
        transformer="plain",
        compile="none",
        cudnn_benchmark=False,
        text_encoder="kept",
    )
    assert load_stage("512px").speed == Speed()
    # not off, which YAML 1.1 reads as false
    assert load_stage("512px", ["speed.compile=none"]).speed == Speed()


def test_a_resolved_config_is_read_back(tmp_path: Path) -> None:
    stage = load_stage("512px", ["speed={channels_last: true, attention: flash, compile: whole}"])
    file = tmp_path / "config.yaml"
    for one in (stage, load_stage("512px")):
        file.write_text(dump(one))
        assert load(Stage, [file]) == one
