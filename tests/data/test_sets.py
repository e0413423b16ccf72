from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bigdiff.config.errors import UsageError
from bigdiff.data.course import Picks
from bigdiff.data.latents import LatentSet
from bigdiff.data.manifest import NAME
from bigdiff.data.sets import ShardSet, Sources

Make = Callable[..., Path]


def files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_lease_gives_each_pick_its_shard_and_row(tmp_path: Path, latent_set: Make) -> None:
    folders = [latent_set(tmp_path / name, (4, 6)) for name in "ab"]
    before = files()
    with LatentSet(str(folders[0])) as one, LatentSet(str(folders[1])) as two:
        sources = Sources([one, two])
        picks = Picks(
            bucket="", sources=np.array([1, 0, 1, 1]), shards=np.array([0, 1, 0, 1]), rows=np.array([3, 5, 0, 2])
        )
        with sources.leased(picks) as samples:
            assert [row for _, row in samples] == [3, 5, 0, 2]
            assert [len(shard.offsets) for shard, _ in samples] == [4, 6, 4, 6]
            assert samples[0][0] is samples[2][0] and samples[1][0] is not samples[3][0]
        assert [sources.tar(picks, index)[-11:] for index in range(4)] == [
            "b/00000.tar",
            "a/00001.tar",
            "b/00000.tar",
            "b/00001.tar",
        ]
        sources.want([(0, 1)])
        with sources.leased(picks) as again:
            assert again[1][0] is samples[1][0] and again[0][0] is not samples[0][0]
    assert files() == before


def test_a_lease_that_fails_holds_nothing(tmp_path: Path, latent_set: Make) -> None:
    folders = [latent_set(tmp_path / name, (4, 6)) for name in "ab"]
    file = folders[1] / "00001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["safetensors_xxh3"]), file)
    with LatentSet(str(folders[0])) as one, LatentSet(str(folders[1])) as two:
        sources, before = Sources([one, two]), files()
        with (
            pytest.raises(UsageError, match="safetensors_xxh3"),
            sources.leased(_picks([(0, 0, 1), (1, 0, 2), (1, 1, 3)])),
        ):
            raise AssertionError("it was leased")
        sources.want([])
        assert files() <= before  # what earlier tests left may be closed meanwhile


def test_spans_are_where_the_members_lie_sorted(tmp_path: Path, latent_set: Make) -> None:
    folders = [latent_set(tmp_path / name, (4, 6)) for name in "ab"]
    with LatentSet(str(folders[0])) as one, LatentSet(str(folders[1])) as two:
        sources = Sources([one, two])
        drawn = [(1, 0, 3), (0, 1, 5), (1, 0, 0), (1, 1, 2), (0, 1, 1)]  # source, shard, row
        with sources.spans(_picks(drawn)) as spans, sources.leased(_picks(sorted(drawn))) as samples:
            expected = [(shard.descriptor, shard.offsets[row], shard.lengths[row]) for shard, row in samples]
            columns = (spans.descriptors, spans.offsets, spans.lengths)
            assert list(zip(*[column.tolist() for column in columns], strict=True)) == expected
        assert sources.on_disk


def _picks(drawn: list[tuple[int, int, int]]) -> Picks:
    sources, shards, rows = np.array(drawn, np.int64).T
    return Picks(bucket="", sources=sources, shards=shards, rows=rows)


@pytest.mark.parametrize("content", [None, b"{", b'{"format": 7}'])
def test_a_set_that_cannot_be_opened_leaves_nothing_open(
    tmp_path: Path, latent_set: Make, content: bytes | None
) -> None:
    folder = latent_set(tmp_path / "a", (4,))
    (folder / NAME).unlink()
    if content is not None:
        (folder / NAME).write_bytes(content)
    before = files()
    with pytest.raises(UsageError, match=NAME):
        ShardSet(str(folder), "latents", None)
    assert files() == before
