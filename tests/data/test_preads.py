import ctypes
import errno
import os
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from bigdiff.data import preads as module
from bigdiff.data.preads import SHORT, preads


def test_rows_are_what_the_files_hold(tmp_path: Path) -> None:
    contents = [np.random.default_rng(seed).bytes(5000) for seed in range(3)]
    descriptors = []
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
        descriptors.append(os.open(tmp_path / str(number), os.O_RDONLY))
    target = np.zeros((6, 700), np.uint8)
    files, offsets = [0, 2, 1, 2, -1, 0], [0, 4300, 17, 4500, 0, 6000]
    asked = np.array([descriptors[file] if file >= 0 else -1 for file in files], np.int32)
    got, digests = preads(asked, np.array(offsets, np.int64), target)
    for descriptor in descriptors:
        os.close(descriptor)
    assert got.tolist() == [700, 700, 700, 500, 0, 0]
    for row, (file, offset) in enumerate(zip(files, offsets, strict=True)):
        assert target[row, : got[row]].tobytes() == (contents[file][offset : offset + 700] if file >= 0 else b"")
        assert digests[row] == (xxh3_64_intdigest(target[row].tobytes()) if got[row] == 700 else 0)


def test_an_error_is_its_number(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    got, _ = preads(np.array([folder, 10**6], np.int32), np.zeros(2, np.int64), np.zeros((2, 8), np.uint8))
    os.close(folder)
    assert got.tolist() == [-errno.EISDIR, -errno.EBADF]


@pytest.fixture(scope="module", params=["as built", "without AVX2"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The compiled code, also as processors without AVX2 run it."""
    if request.param == "as built":
        return module.library("bigdiff.data._preads")
    built = tmp_path_factory.mktemp("plain") / "plain.so"
    source = Path(module.__file__).with_name("_preads.c")
    compiler = sysconfig.get_config_var("CC").split()[0]
    subprocess.run(
        [compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-DPLAIN", str(source), "-o", str(built)], check=True
    )
    return ctypes.CDLL(str(built))


def test_the_checksum_is_xxh3(library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.bigdiff_preads.argtypes, library.bigdiff_preads.restype = module._preads.argtypes, None
    monkeypatch.setattr(module, "_preads", library.bigdiff_preads)
    content = np.random.default_rng(0).bytes(70_000)
    (tmp_path / "file").write_bytes(content)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    # around what XXH3 tells apart: short inputs, stripes of 64 bytes, blocks of 1,024
    lengths = [1, SHORT, SHORT + 1, *range(255, 258), *range(1000, 1100), *range(2047, 2050), 4097, 65_842]
    for length in lengths:
        got, digests = preads(np.full(3, descriptor, np.int32), np.array([0, 1, 777]), np.zeros((3, length), np.uint8))
        assert got.tolist() == [length] * 3
        assert digests.tolist() == [xxh3_64_intdigest(content[begin : begin + length]) for begin in (0, 1, 777)]
    os.close(descriptor)
