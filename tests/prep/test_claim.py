import errno
from pathlib import Path

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
