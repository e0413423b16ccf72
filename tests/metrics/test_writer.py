import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bigdiff.config.errors import RunError
from bigdiff.metrics.writer import Writer, points


def lines(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_both_outputs_say_the_same_on_the_axis_of_images_seen(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "tb", tmp_path / "metrics.jsonl", 0)
    for step in (1, 2, 3):
        writer.scalars(step, 64 * step, {"train/loss": 1.0 / step})
    writer.image("preview/ema", np.full((4, 6, 3), 128, np.uint8), 192)
    writer.text("config", "seed: 0", 0)
    writer.layout({"loss": ["^train/loss$"]})
    writer.close()
    board = EventAccumulator(str(tmp_path / "tb"))
    board.Reload()
    points = [(event.step, round(event.value, 6)) for event in board.Scalars("train/loss")]
    assert points == [(64, 1.0), (128, 0.5), (192, 0.333333)]
    assert [(line["samples_seen"], line["train/loss"]) for line in lines(tmp_path / "metrics.jsonl")] == [
        (64, 1.0),
        (128, 0.5),
        (192, 1 / 3),
    ]
    assert board.Images("preview/ema")[0].width == 6
    (text,) = board.Tensors("config/text_summary")
    assert text.tensor_proto.string_val == [b"```\nseed: 0\n```"]
    (charts,) = board.Tensors("custom_scalars__config__")
    assert b"^train/loss$" in charts.tensor_proto.string_val[0]


def test_a_resume_leaves_one_line_per_position(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    first = Writer(tmp_path / "tb", file, 0)
    for step in range(1, 6):
        first.scalars(step, 64 * step, {"train/loss": 1.0})
    first.close()
    file.write_text(file.read_text() + '{"samples_seen": 384, "trai')  # killed in the middle of a line
    second = Writer(tmp_path / "tb", file, 192)
    for step in range(4, 7):
        second.scalars(step, 64 * step, {"train/loss": 2.0})
    second.close()
    assert [(line["samples_seen"], line["train/loss"]) for line in lines(file)] == [
        (64, 1.0),
        (128, 1.0),
        (192, 1.0),
        (256, 2.0),
        (320, 2.0),
        (384, 2.0),
    ]
    board = EventAccumulator(str(tmp_path / "tb"))
    board.Reload()
    assert [event.value for event in board.Scalars("train/loss")] == [1.0] * 3 + [2.0] * 3


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    writer = Writer(tmp_path / "tb", tmp_path / "metrics.jsonl", 0)
    with pytest.raises(RunError, match=r"metrics.jsonl cannot be written \(No space left on device\): make room"):
        writer.scalars(1, 64, {"train/loss": 1.0})
    writer.close()


def test_points_of_evaluations_come_in_any_order(tmp_path: Path) -> None:
    for seen, fid in ((128, 20.0), (64, 40.0)):  # the earlier checkpoint was judged later
        points(tmp_path / "tb", seen, {"eval/fid": fid, "eval/clip_score": 0.5})
    board = EventAccumulator(str(tmp_path / "tb"))
    board.Reload()
    assert {event.step: event.value for event in board.Scalars("eval/fid")} == {64: 40.0, 128: 20.0}
    assert {event.step for event in board.Scalars("eval/clip_score")} == {64, 128}
