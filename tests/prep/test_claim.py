import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data import manifest
from bigdiff.data.manifest import Manifest, Shard
from bigdiff.prep import claim
from bigdiff.prep.layout import Layout

FROM = {"inputs": {"a": "1"}, "settings": {"pack": {"resolution": 8}}, "takedown": {}, "versions": {"bigdiff": "0"}}
MADE = Manifest(kind="images", shards=(Shard(name="00000", samples=3, bytes=1, sha256="0"),), lineage=FROM)


def publish(layout: Layout) -> Manifest:
    manifest.write(layout.output, MADE)
    return MADE


def test_a_job_is_done_once_and_its_work_folder_goes(tmp_path: Path) -> None:
    layout, done = Layout(tmp_path / "set"), []

    def job() -> Manifest:
        assert layout.settings.exists()
        done.append(1)
        return publish(layout)

    first = claim.carry_out(layout, FROM, job)
    second = claim.carry_out(layout, FROM, job)
    assert (first.was_finished, second.was_finished, len(done)) == (False, True, 1)
    assert not layout.work.exists()


def test_a_finished_set_of_other_settings_is_refused_but_other_versions_are_not(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "set")
    claim.carry_out(layout, FROM, lambda: publish(layout))
    newer = {**FROM, "versions": {"bigdiff": "1"}}
    assert claim.carry_out(layout, newer, lambda: publish(layout)).was_finished
    for other, sentence in (
        ({**FROM, "settings": {"pack": {"resolution": 9}}}, "pack.resolution=8, now it is 9"),
        ({**FROM, "takedown": {"entries": 2}}, "takedown.entries=absent, now it is 2"),
    ):
        with pytest.raises(UsageError, match=sentence):
            claim.carry_out(layout, other, lambda: publish(layout))


def test_an_unfinished_set_goes_on_only_with_the_same_versions(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "set")

    def fails() -> Manifest:
        raise RunError("a part failed")

    with pytest.raises(RunError, match="a part failed"):
        claim.carry_out(layout, FROM, fails)
    with pytest.raises(UsageError, match=r"versions\.bigdiff=0, now it is 1"):
        claim.carry_out(layout, {**FROM, "versions": {"bigdiff": "1"}}, lambda: publish(layout))
    assert not claim.carry_out(layout, FROM, lambda: publish(layout)).was_finished


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    def fills() -> Manifest:
        raise OSError(errno.ENOSPC, "No space left on device", "00000.tar")

    with pytest.raises(RunError, match=r"No space left on device \(00000.tar\): mend that"):
        claim.carry_out(Layout(tmp_path / "set"), FROM, fills)


def test_what_the_plan_alone_depends_on_may_change_until_the_set_is_finished(tmp_path: Path) -> None:
    def settings(at_least: float, distance: int, resolution: int = 8) -> dict[str, Any]:
        sections = {
            "pack": {"resolution": resolution, "samples_per_shard": 3},
            "score": {"scorers": [{"kind": "sharpness", "at_least": at_least}], "batch": 4},
            "dedup": {"near_distance": distance},
        }
        return {**FROM, "settings": sections, "scorers": {"sharpness": "f"}}

    layout = Layout(tmp_path / "set")

    def fails() -> Manifest:
        for file in (
            layout.plan,
            layout.samples / "a.parquet",
            layout.shards / "00000.json",
            layout.output / "00000.tar",
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        raise RunError("nothing is left")

    with pytest.raises(RunError):
        claim.carry_out(layout, settings(9.0, 4), fails)
    for same in (settings(9.0, 4), settings(3.0, 2)):
        with pytest.raises(RunError, match="stop here"):
            claim.carry_out(layout, same, _stops)
        assert (layout.samples / "a.parquet").exists()
        assert layout.plan.exists() == (same == settings(9.0, 4))
    assert not (layout.output / "00000.tar").exists()
    assert not layout.shards.exists()
    with pytest.raises(UsageError, match=r"pack\.resolution=8, now it is 9"):
        claim.carry_out(layout, settings(3.0, 2, resolution=9), fails)
    with pytest.raises(UsageError, match=r"scorers\.sharpness=f, now it is g"):
        claim.carry_out(layout, {**settings(3.0, 2), "scorers": {"sharpness": "g"}}, fails)
    finished = {**settings(3.0, 2), "takedown": {"entries": 1}}

    def job() -> Manifest:
        manifest.write(layout.output, replace(MADE, lineage=finished))
        return MADE

    assert not claim.carry_out(layout, finished, job).was_finished
    with pytest.raises(UsageError, match=r"dedup\.near_distance=2, now it is 3"):
        claim.carry_out(layout, {**settings(3.0, 3), "takedown": {"entries": 1}}, job)


def _stops() -> Manifest:
    raise RunError("stop here")
