import hashlib
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bigdiff.checkpoint import vectors
from bigdiff.checkpoint.index import Damage
from bigdiff.checkpoint.vectors import Ranges
from bigdiff.config.errors import RunError

HELD = {"master": torch.arange(1000.0), "ema/0.9": -torch.arange(1000.0), "none": torch.zeros(0)}


def ranges(*triples: tuple[int, int, int]) -> Ranges:
    places, offsets, lengths = (np.array(column, np.int64) for column in zip(*triples, strict=True))
    return Ranges(places=places, offsets=offsets, lengths=lengths)


@pytest.mark.parametrize("chunk", [64, 1 << 24])
def test_written_in_one_pass_as_safetensors_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(vectors, "CHUNK", chunk)
    path = tmp_path / "file"
    written = vectors.write(path, HELD)
    content = path.read_bytes()
    assert (written.name, written.bytes) == ("file", len(content)) == ("file", vectors.size(HELD))
    assert written.sha256 == hashlib.sha256(content).hexdigest()
    with safe_open(path, framework="pt") as held:
        assert set(held.keys()) == set(HELD)
        assert all(torch.equal(held.get_tensor(name), vector) for name, vector in HELD.items())
    with pytest.raises(FileExistsError):
        vectors.write(path, HELD)


def test_ranges_go_to_their_places(tmp_path: Path) -> None:
    vectors.write(tmp_path / "file", HELD)
    targets = {name: torch.full((10,), 7.0) for name in ("ema/0.9", "master")}
    vectors.fetch(tmp_path / "file", targets, ranges((0, 998, 2), (5, 10, 1), (9, 0, 1)))
    assert targets["master"].tolist() == [998, 999, 7, 7, 7, 10, 7, 7, 7, 0]
    assert targets["ema/0.9"].tolist() == [-998, -999, 7, 7, 7, -10, 7, 7, 7, 0]


def test_half_precision_is_read_as_fp32_and_files_of_safetensors_are_read(tmp_path: Path) -> None:
    half = {"power/0.05": torch.linspace(-1, 1, 50).half()}
    vectors.write(tmp_path / "ours", half)
    save_file(half, tmp_path / "theirs", {"format": "pt"})
    for name in ("ours", "theirs"):
        target = torch.zeros(4)
        vectors.fetch(tmp_path / name, {"power/0.05": target}, ranges((1, 7, 3)))
        assert torch.equal(target[1:], half["power/0.05"][7:10].float())


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors.write(tmp_path / "file", HELD)
    preadv, read = os.preadv, []
    monkeypatch.setattr(os, "preadv", lambda *call: read.append(preadv(*call)) or read[-1])
    vectors.fetch(tmp_path / "file", {"master": torch.zeros(10)}, ranges((0, 5, 2), (2, 900, 3)))
    assert read[-2:] == [8, 12]
    assert sum(read) < 500  # the header and these


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "it has no header"),
        (b"\xff" * 100, "it has no header"),
        ((50).to_bytes(8, "little") + b"{", "it has no header"),
        ((2).to_bytes(8, "little") + b"[]", "no file of vectors"),
        ((2).to_bytes(8, "little") + b"{}", "has no vector master"),
    ],
)
def test_what_is_no_file_of_vectors_is_damage(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(Damage, match=f"file .*{word}"):
        vectors.fetch(tmp_path / "file", {"master": torch.zeros(1)}, ranges((0, 0, 1)))


def test_a_cut_file_is_damage_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(Damage, match="file cannot be read"):
        vectors.fetch(path, {}, ranges((0, 0, 1)))
    vectors.write(path, HELD)
    with pytest.raises(Damage, match="shorter than its pieces"):
        vectors.fetch(path, {"master": torch.zeros(1)}, ranges((0, 1000, 1)))
    os.truncate(path, path.stat().st_size // 4)
    with pytest.raises(Damage, match="it was cut meanwhile"):
        vectors.fetch(path, {"master": torch.zeros(2000)}, ranges((0, 0, 1000)))


def test_a_disk_that_gives_back_something_else_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def unsound(descriptor: int) -> None:
        fsync(descriptor)
        if os.fstat(descriptor).st_size > 4096:
            os.pwrite(descriptor, b"\x01", 4100)

    monkeypatch.setattr(os, "fsync", unsound)
    with pytest.raises(RunError, match="file does not hold what was written to it"):
        vectors.write(tmp_path / "file", HELD)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_grow_is_an_error_of_the_system(tmp_path: Path) -> None:
    with largest_file(5000), pytest.raises(OSError, match="File too large"):
        vectors.write(tmp_path / "file", HELD)
