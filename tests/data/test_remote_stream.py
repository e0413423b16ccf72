"""The whole stream over HTTP: what ranks read through one cache is what a folder gives, whatever breaks on the way."""

import json
import tarfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigdiff.config.errors import RunError
from bigdiff.data import manifest
from bigdiff.data.cache import Cache
from bigdiff.data.course import Course, Picks
from bigdiff.data.damage import Quarantine
from bigdiff.data.latents import LatentReader, LatentSet
from bigdiff.data.mixture import Source
from bigdiff.data.storage import Remote
from bigdiff.data.stream import Ahead, Slice, batches
from bigdiff.runtime.files import sha256

SIZES = (9, 5, 7, 11, 8, 8)
STEPS, TOTAL = 12, 12
Make = Callable[..., Path]
Read = tuple[list[np.ndarray], int]


def read(locations: list[str], cache: Cache | None) -> list[Read]:
    """Each rank's moments over STEPS steps, and how many samples it had to substitute; the ranks take turns."""
    with ExitStack() as stack:
        ranks, told = [], []
        for rank, location in enumerate(locations):
            one = stack.enter_context(LatentSet(location, None, cache))
            source = Source(name="set", sizes=one.manifest.sizes)
            course = Course(sources=(source,), seed=5, window=2, lanes=2, total=TOTAL)
            size = len(locations)
            part = Slice(total=TOTAL, micro=TOTAL // size, rank=rank, size=size)
            told.append(Quarantine(warn=lambda line: None))
            stream = batches(LatentReader([one]), course, part, 0, Ahead(), told[-1])
            stack.callback(stream.close)
            ranks.append(stream)
        found = [[] for _ in ranks]  # type: list[list[np.ndarray]]
        for _ in range(STEPS):
            for stream, mine in zip(ranks, found, strict=True):
                mine += [batch.moments.numpy().copy() for batch in next(stream)]
        return [(mine, quarantine.damaged) for mine, quarantine in zip(found, told, strict=True)]


def assert_same(found: list[Read], expected: list[Read]) -> None:
    for (mine, damaged), (theirs, _) in zip(found, expected, strict=True):
        assert damaged == 0
        assert all(np.array_equal(one, other) for one, other in zip(mine, theirs, strict=True))


@pytest.fixture
def folder(tmp_path: Path, latent_set: Make) -> Path:
    made = latent_set(tmp_path / "set", SIZES)
    content = json.loads((made / manifest.NAME).read_text())
    for shard in content["shards"]:  # as all writers of the house do
        shard["index_sha256"] = manifest.digest((made / f"{shard['name']}.parquet").read_bytes())
    (made / manifest.NAME).write_text(json.dumps(content))
    return made


@pytest.mark.parametrize("size", [1, 3])
def test_ranks_of_a_node_fetch_each_file_once_and_read_what_a_folder_gives(
    serve: Any, folder: Path, tmp_path: Path, size: int
) -> None:
    served = serve(folder, latency=0.005)
    cache = Cache(folder=str(tmp_path / "cache"), bytes=10**6)
    assert_same(read([served.location] * size, cache), read([str(folder)] * size, None))
    asked = served.counts()
    assert {count for path, count in asked.items() if path.endswith(".tar")} == {1}
    assert {count for path, count in asked.items() if path.endswith(".parquet")} <= set(range(1, size + 1))
    before = sum(served.counts("bytes").values())
    assert_same(read([served.location] * size, cache), read([str(folder)] * size, None))
    tars = sum((folder / f"{number:05d}.tar").stat().st_size for number in range(len(SIZES)))
    assert sum(served.counts("bytes").values()) - before < tars / 4  # the manifest is asked for again, and no tar


def test_nothing_is_asked_for_of_what_is_fetched(serve: Any, folder: Path, tmp_path: Path) -> None:
    cache = Cache(folder=str(tmp_path / "cache"), bytes=10**9)
    picks = Picks(bucket="", sources=np.array([0, 1, 0]), shards=np.array([0, 0, 1]), rows=np.array([1, 2, 3]))
    with LatentSet(serve(folder).location, None, cache) as there, LatentSet(str(folder)) as here:
        assert not LatentReader([there]).on_disk
        both = LatentReader([there, here])
        with both.spans(picks) as spans, here.shards.lease([0]) as held:
            assert spans.descriptors.tolist() == [held[0].descriptor]
        assert both.on_disk and not list((tmp_path / "cache").glob("*.tar"))


def test_faults_on_the_way_are_no_damage(serve: Any, folder: Path, tmp_path: Path) -> None:
    planted = {f"/{number:05d}.{kind}": ["wrong"] for number in range(len(SIZES)) for kind in ("tar", "parquet")}
    served = serve(folder, faults=0.1, seed=3, planted=planted)
    cache = Cache(folder=str(tmp_path / "cache"), bytes=10**6)
    assert_same(read([served.location] * 2, cache), read([str(folder)] * 2, None))
    assert served.counts("faults")["wrong"] >= 2 * len(SIZES)


def test_a_copy_that_the_nodes_disk_spoiled_is_fetched_again(serve: Any, folder: Path, tmp_path: Path) -> None:
    served = serve(folder)
    cache = Cache(folder=str(tmp_path / "cache"), bytes=10**6)
    ranks = [served.location] * 2  # of which one finds the other's new copies beside those that it has open
    read(ranks, cache)
    copies = list((tmp_path / "cache").glob("*.tar"))
    assert len(copies) == len(SIZES)
    for copy in copies:
        spoil(copy)
    for small in (tmp_path / "cache").glob("*.small"):
        small.write_bytes(b"x" + small.read_bytes()[1:])
    assert_same(read(ranks, cache), read([str(folder)] * 2, None))
    assert {count for path, count in served.counts().items() if path.endswith(".tar")} == {2}


def spoil(tar: Path) -> None:
    """Change a byte of each member, as a disk would: in the file that others have open."""
    with tarfile.open(tar) as archive:
        places = [member.offset_data for member in archive]
    with tar.open("r+b") as stream:
        for place in places:
            stream.seek(place)
            byte = stream.read(1)[0]
            stream.seek(place)
            stream.write(bytes([byte ^ 1]))


def test_all_threads_wait_for_what_one_of_them_finds_out_of_a_copy(
    serve: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = Remote.spoiled

    def slowly(self: Remote, shard: manifest.Shard, descriptor: int) -> bool:
        time.sleep(0.2)  # as a large tar takes
        return spoiled(self, shard, descriptor)

    served = serve(folder)
    cache = Cache(folder=str(tmp_path / "cache"), bytes=10**6)
    read([served.location], cache)
    for copy in (tmp_path / "cache").glob("*.tar"):
        spoil(copy)
    monkeypatch.setattr(Remote, "spoiled", slowly)
    assert_same(read([served.location], cache), read([str(folder)], None))
    assert {count for path, count in served.counts().items() if path.endswith(".tar")} == {2}


def test_bad_samples_of_a_sound_copy_are_replaced_as_in_a_folder(serve: Any, folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / manifest.NAME).read_text())
    for shard in content["shards"][::2]:  # written so, and counted so: of the tar, but not of its samples
        spoil(folder / f"{shard['name']}.tar")
        shard["sha256"] = sha256(folder / f"{shard['name']}.tar")
    (folder / manifest.NAME).write_text(json.dumps(content))
    served = serve(folder)
    cache = Cache(folder=str(tmp_path / "cache"), bytes=10**6)
    found, expected = read([served.location], cache), read([str(folder)], None)
    assert found[0][1] > 0 and expected[0][1] > 0
    assert all(np.array_equal(one, other) for one, other in zip(found[0][0], expected[0][0], strict=True))
    assert {count for path, count in served.counts().items() if path.endswith(".tar")} == {1}


def test_an_index_that_is_not_the_manifests_is_damage_of_its_shard(serve: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "00003.parquet").write_bytes((folder / "00004.parquet").read_bytes())
    served = serve(folder)
    cache = Cache(folder=str(tmp_path / "cache"), bytes=10**6)
    (remote, damaged), (local, too) = read([served.location], cache)[0], read([str(folder)], None)[0]
    assert damaged > 0 and too > 0  # the counts include what was read ahead
    assert all(np.array_equal(one, other) for one, other in zip(remote, local, strict=True))


def test_a_server_that_goes_away_ends_the_run_with_the_shards_name(serve: Any, folder: Path, tmp_path: Path) -> None:
    served = serve(folder, planted={"/00002.tar": ["500!"], "/00001.tar": ["500!"]})
    cache = Cache(folder=str(tmp_path / "cache"), bytes=10**6, patience_seconds=0.5)
    with pytest.raises(RunError, match=r"0000[12]\.tar"):
        read([served.location], cache)
