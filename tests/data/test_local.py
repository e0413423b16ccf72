"""A set in a folder: what is there, and what is wrong with it."""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.data.local import Local
from bigdiff.data.manifest import Shard
from bigdiff.data.transfer import Absent, Corrupt

SIZE = 1 << 20
Made = Callable[..., list[Shard]]


def test_what_is_there_and_what_is_not(plain_set: Made, tmp_path: Path) -> None:
    shards = plain_set(SIZE, SIZE)
    with closing(Local(tmp_path / "set")) as storage:
        descriptor = storage.open(shards[0])
        assert os.pread(descriptor, SIZE + 1, 0) == (tmp_path / "set/00000.tar").read_bytes()
        os.close(descriptor)
        assert storage.read("00000.parquet").startswith(b"index ")
        os.truncate(tmp_path / "set/00001.tar", SIZE - 1)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(Corrupt, match=f"{SIZE - 1} bytes, the manifest says {SIZE}"):
            storage.open(shards[1])
        (tmp_path / "set/00001.tar").unlink()
        with pytest.raises(Absent):
            storage.open(shards[1])
        with pytest.raises(Absent):
            storage.read("manifest.json")
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", ".hidden", ""])
def test_a_name_cannot_lead_out_of_the_set(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no name of a file"):
        Local(tmp_path).read(name)
