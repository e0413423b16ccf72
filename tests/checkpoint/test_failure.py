import errno
import os
import resource
from pathlib import Path

import pytest

from bigdiff.checkpoint import failure, layout
from bigdiff.config.errors import RunError


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number), "/runs/x/rank-0")


def test_a_full_disk_says_what_is_needed_and_what_there_is(tmp_path: Path) -> None:
    layout.checkpoints(tmp_path).mkdir()
    said = failure.sentence(error(errno.ENOSPC), tmp_path, 30, 1_234_567)
    assert said.startswith(
        f"checkpoint {layout.checkpoint(tmp_path, 30)} could not be saved: /runs/x/rank-0: No space left"
    )
    assert "needs 1,234,567 bytes and " in said and "are free: make room, or keep fewer" in said
    assert said.endswith("there is no whole checkpoint before it")
    assert "\n" not in said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota_is_a_full_disk_and_the_last_whole_one_is_named(tmp_path: Path, number: int) -> None:
    folder = layout.checkpoint(tmp_path, 20)
    folder.mkdir(parents=True)
    (folder / layout.INDEX).touch()
    layout.checkpoint(tmp_path, 25).mkdir()
    said = failure.sentence(error(number), tmp_path, 30, 1)
    assert "make room" in said
    assert said.endswith("the last whole checkpoint is step-00000020")


def test_a_size_limit_is_named(tmp_path: Path) -> None:
    said = failure.sentence(error(errno.EFBIG), tmp_path, 30, 99)
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert f"needs 99 bytes and the process may write {limit:,} (ulimit -f)" in said


def test_other_errors_keep_their_words(tmp_path: Path) -> None:
    assert "Read-only file system" in failure.sentence(error(errno.EROFS), tmp_path, 30, 1)
    assert "rank 3 of 4 had not" in failure.sentence(RunError("rank 3 of 4 had not"), tmp_path, 30, 1)
    assert "ValueError: a fault" in failure.sentence(ValueError("a fault"), tmp_path, 30, 1)


def test_a_disk_that_is_gone_is_no_other_error(tmp_path: Path) -> None:
    said = failure.sentence(error(errno.ENOSPC), tmp_path / "gone", 30, 1)
    assert "an unknown number (No such file or directory) are free" in said
