from pathlib import Path

import pytest

from bigdiff.checkpoint import layout


def made(run: Path, step: int, whole: bool = True) -> Path:
    folder = layout.checkpoint(run, step)
    folder.mkdir(parents=True)
    if whole:
        (folder / layout.INDEX).write_text("{}")
    return folder


def test_names_round_trip(tmp_path: Path) -> None:
    assert layout.step_of(layout.checkpoint(tmp_path, 123_456_789)) == 123_456_789
    assert layout.run_folder("runs", "512px") == Path("runs/512px")


def test_newest_first_and_only_whole_ones(tmp_path: Path) -> None:
    assert layout.latest(tmp_path) is None
    two, ten = made(tmp_path, 2), made(tmp_path, 10)
    made(tmp_path, 11, whole=False)
    (layout.checkpoints(tmp_path) / "writing-step-00000012-1").mkdir()
    assert layout.saved(tmp_path) == [ten, two]
    assert layout.latest(tmp_path) == ten


@pytest.mark.parametrize(("keep", "left"), [(1, 1), (2, 2), (5, 3)])
def test_retention_keeps_the_newest(tmp_path: Path, keep: int, left: int) -> None:
    folders = [made(tmp_path, step) for step in (30, 20, 10)]
    assert layout.superseded(folders, keep) == folders[left:]


def test_shards_sort_by_rank() -> None:
    names = [layout.shard(rank, 256) for rank in range(256)]
    assert names == sorted(names)
