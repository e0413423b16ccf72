import errno
import os
from pathlib import Path

import numpy as np

from bigdiff.data.preads import preads


def test_rows_are_what_the_files_hold(tmp_path: Path) -> None:
    contents = [np.random.default_rng(seed).bytes(5000) for seed in range(3)]
    descriptors = []
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
        descriptors.append(os.open(tmp_path / str(number), os.O_RDONLY))
    target = np.zeros((6, 700), np.uint8)
    files, offsets = [0, 2, 1, 2, -1, 0], [0, 4300, 17, 4500, 0, 6000]
    asked = np.array([descriptors[file] if file >= 0 else -1 for file in files], np.int32)
    got = preads(asked, np.array(offsets, np.int64), target)
    for descriptor in descriptors:
        os.close(descriptor)
    assert got.tolist() == [700, 700, 700, 500, 0, 0]
    for row, (file, offset) in enumerate(zip(files, offsets, strict=True)):
        assert target[row, : got[row]].tobytes() == (contents[file][offset : offset + 700] if file >= 0 else b"")


def test_an_error_is_its_number(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    got = preads(np.array([folder, 10**6], np.int32), np.zeros(2, np.int64), np.zeros((2, 8), np.uint8))
    os.close(folder)
    assert got.tolist() == [-errno.EISDIR, -errno.EBADF]
