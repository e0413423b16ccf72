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
    eleven = made(tmp_path, 11, whole=False)
    for prefix in (layout.WRITING, layout.REPLACED, layout.REMOVING):
        made(tmp_path, 12).rename(layout.aside(layout.checkpoint(tmp_path, 12), prefix, "ab12-1"))
    assert layout.saved(tmp_path) == [ten, two]
    assert layout.folders(tmp_path) == [eleven, ten, two]
    assert layout.latest(tmp_path) == ten


@pytest.mark.parametrize("step", [7, 123_456_789])
def test_another_name_leads_back(tmp_path: Path, step: int) -> None:
    folder = layout.checkpoint(tmp_path, step)
    names = {layout.aside(folder, prefix, "12345678") for prefix in (layout.WRITING, layout.REMOVING)}
    assert len(names) == 2
    assert {layout.restored(name) for name in names} == {folder}


def test_files_sort_by_rank_and_a_record_is_not_a_share() -> None:
    names = [layout.shard(rank, 256) for rank in range(256)]
    assert names == sorted(names)
    assert Path(layout.record(3, 256)).stem == Path(layout.shard(3, 256)).stem
