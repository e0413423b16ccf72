"""What a save that failed says to a person: the file, why, what is left, and the mend."""

import errno
import resource
import shutil
from pathlib import Path

from bigdiff.checkpoint import layout
from bigdiff.config.errors import RunError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def sentence(error: BaseException, run: Path, step: int, need: int) -> str:
    """One sentence; `need` is how many bytes this rank was to write."""
    newest = layout.latest(run)
    before = f"the last whole checkpoint is {newest.name}" if newest else "there is no whole checkpoint before it"
    return f"checkpoint {layout.checkpoint(run, step)} could not be saved: {_reason(error, run, need)}; {before}"


def _reason(error: BaseException, run: Path, need: int) -> str:
    if isinstance(error, RunError):
        return str(error)
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in _FULL:
        return (
            f"{where}{error.strerror}; this rank's file needs {need:,} bytes and {_free(run)} are free: make room, "
            f"or keep fewer with checkpoint.keep and checkpoint.keep_every, and start again"
        )
    if error.errno == errno.EFBIG:
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        return (
            f"{where}{error.strerror}; this rank's file needs {need:,} bytes and the process may write {limit:,} "
            f"(ulimit -f): raise the limit, and start again"
        )
    return f"{where}{error.strerror or error}; start again when it is mended"


def _free(run: Path) -> str:
    try:
        return f"{shutil.disk_usage(layout.checkpoints(run)).free:,}"
    except OSError as error:
        return f"an unknown number ({error.strerror})"
