import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bigdiff.config.errors import UsageError
from bigdiff.data.latents import LatentSet
from bigdiff.data.shards import SPARE_FILES, Opened, Shards, allow_files, broken

SIZES = (5, 3, 7, 2)


@pytest.fixture
def shards(tmp_path: Path, latent_set: Callable[..., Path]) -> Iterator[Shards]:
    with LatentSet(str(latent_set(tmp_path / "a", SIZES))) as opened:
        yield opened.shards


def is_open(descriptor: int) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").exists()


def test_a_shard_is_opened_once_and_stays_until_it_is_unwanted(shards: Shards) -> None:
    with shards.lease({0, 2}) as first, shards.lease({2}) as second:
        assert first[2] is second[2]
        assert len(first[2].offsets) == SIZES[2]
        descriptor = first[2].descriptor
    assert is_open(descriptor)
    shards.keep_only([0, 1])
    assert not is_open(descriptor)
    with shards.lease({0}) as third:
        assert third[0] is first[0]


def test_an_unwanted_shard_closes_when_its_reading_ends(shards: Shards) -> None:
    with shards.lease({3}) as held:
        shards.keep_only([])
        assert is_open(held[3].descriptor)
        assert os.pread(held[3].descriptor, 5, 0) == b"3000."
    assert not is_open(held[3].descriptor)


def test_a_shard_that_is_wanted_again_while_read_stays(shards: Shards) -> None:
    with shards.lease({3}) as held:
        shards.keep_only([])
        shards.keep_only([3])
    assert is_open(held[3].descriptor)


def test_many_threads_share_what_is_open(shards: Shards) -> None:
    seen, start = [], threading.Barrier(8)

    def read() -> None:
        start.wait()
        for _ in range(50):
            with shards.lease({0, 1, 2, 3}) as held:
                seen.append(tuple(held[shard].descriptor for shard in range(4)))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 400 and len(set(seen)) == 1


def test_a_broken_shard_says_why_and_is_not_tried_again(shards: Shards) -> None:
    tar = Path(shards.name(1))
    content = tar.read_bytes()
    tar.unlink()
    with shards.lease({1}) as held:
        assert held[1].descriptor == -1 and held[1].damage
        assert len(held[1].offsets) == SIZES[1]
    tar.write_bytes(content)
    with shards.lease({1}) as again:
        assert again[1] is held[1]


def test_the_limit_of_open_files_is_raised_or_named() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        allow_files(200)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 200 + SPARE_FILES
        if hard != resource.RLIM_INFINITY:
            with pytest.raises(UsageError, match=r"data\.window"):
                allow_files(hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_shard_is_opened_without_pandas_or_threads(tmp_path: Path, latent_set: Callable[..., Path]) -> None:
    """pandas takes 0.3 s of CPU time to import; one of Arrow's threads could abort a process that ends right away."""
    folder = latent_set(tmp_path / "a", SIZES)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from bigdiff.data.latents import LatentSet\n"
        f"with LatentSet({str(folder)!r}) as opened, opened.shards.lease([0]) as held:\n"
        "    assert len(held[0].offsets) and not held[0].damage\n"
        "assert 'pandas' not in sys.modules\n"
        "names = [Path(one, 'comm').read_text() for one in Path('/proc/self/task').iterdir()]\n"
        "assert len([one for one in names if not one.startswith('jemalloc')]) == 1, names\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])


def test_spans_are_of_what_can_be_read_and_end_with_the_tar() -> None:
    offsets, lengths = np.array([0, 10, 90, 100, -1, -(2**63), 50, 20]), np.array([5, 5, 2**62, 5, 5, 5, -1, 5])
    opened = Opened(
        descriptor=7,
        offsets=memoryview(offsets),
        lengths=memoryview(lengths),
        checksums=memoryview(np.zeros(8, np.uint64)),
        dead=bytes([0, 0, 0, 0, 0, 0, 0, 1]),
    )
    found = opened.spans(np.array([1, 2, 3, 4, 5, 6, 7]), 100)
    assert (found.descriptors.tolist(), found.offsets.tolist(), found.lengths.tolist()) == ([7, 7], [10, 90], [5, 10])
    assert len(broken(8, "absent").spans(np.arange(8), 100)) == 0
