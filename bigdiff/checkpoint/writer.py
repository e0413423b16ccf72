"""Checkpoints written behind the training's back.

`save` copies this rank's vectors to host memory and returns. A thread writes them to a file in a folder of another
name, brings it to the disk, compares it and leaves a record beside it. Rank 0's thread waits for all records, writes
the index and renames the folder: that is the commit. No rank waits for another in `save` itself. What a rank could not
do stands in `failed`, for all to agree on at the step's end, and `wait` raises it.
"""

import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from bigdiff.checkpoint import failure, index, layout, probe, retention, vectors
from bigdiff.checkpoint.commit import LATE, SOON, Attempt, GivenUp, commit, records
from bigdiff.checkpoint.content import MASTER, Content
from bigdiff.checkpoint.host import HostCopy
from bigdiff.config.errors import RunError
from bigdiff.config.schema import Checkpoint
from bigdiff.engine.partition import Partition
from bigdiff.runtime.files import write_json
from bigdiff.runtime.world import World

NICE = 10  # the thread gives way to the training on a busy processor
GRACE = 2.0  # seconds, and its own writing time, that rank 0 gives the others when the run ends without `wait`


class CheckpointWriter:
    """The writer of one life of a run, made by all ranks together; `names` are the vectors beside the masters.

    `mark` is the life's, where it was begun (bigdiff.checkpoint.probe) before there was a partition.

    Raises:
        UsageError: on all ranks, when one of them cannot write to the run's folder.
    """

    def __init__(
        self, run: Path, world: World, partition: Partition, names: Sequence[str], rules: Checkpoint, mark: str = ""
    ) -> None:
        self.failed = ""  # what went wrong in this rank's thread
        self._run, self._rank, self._size, self._rules = run, world.rank, world.size, rules
        self._mark = mark or probe.begin(run, world)
        tables = world.gather(index.table(partition.pieces).tobytes())
        everyone = [np.frombuffer(one, np.int64).reshape(-1, 3) for one in tables]
        self._pieces = index.packed(everyone) if world.first else b""  # it alone writes them
        self._host = HostCopy(partition, world.device, [MASTER, *names])
        self._thread: threading.Thread | None = None
        self._attempts, self._last = 0, 0  # saves of this life, and the step of the newest
        self._waited, self._copied = 0.0, 0.0  # seconds of stall since last asked: of the process, of its device
        self._patience = math.inf  # for the other ranks, in times of rank 0's own writing; below 0: none, all is over

    def save(self, content: Content) -> None:
        """Save `content`; returns when this rank's vectors may change again.

        Waits while the save before is still being written. After a failure it does nothing: `wait` has to be called.
        """
        began = time.monotonic()
        self._join()
        if not self.failed and self._patience > 0:
            self._host.take({MASTER: content.partition.masters, **content.tensors})
            self._attempts, self._last = self._attempts + 1, content.state.step
            final, mark = layout.checkpoint(self._run, self._last), f"{self._mark}-{self._attempts}"
            attempt = Attempt(
                final=final,
                aside=layout.aside(final, layout.WRITING, mark),
                content=replace(content, tensors=dict.fromkeys(content.tensors, ())),
                mark=mark,
            )
            self._thread = threading.Thread(target=self._write, args=(attempt,), name=final.name, daemon=True)
            self._thread.start()
        self._waited += time.monotonic() - began

    def stall_seconds(self) -> float:
        """Seconds for which saves held up this rank, or its device, since this was last asked."""
        seconds, self._waited, self._copied = self._waited + self._copied, 0.0, 0.0
        return seconds

    def wait(self, world: World) -> None:
        """Return when the newest save is committed and all ranks see it; collective.

        Raises:
            RunError: on all ranks, when a rank failed: why, and what is left.
        """
        deadline, pause = math.inf, SOON
        while True:
            busy, unseen = self._thread is not None and self._thread.is_alive(), not self._seen()
            if unseen and time.monotonic() > deadline:
                self.failed = self.failed or self._unseen()
            flags = torch.tensor([bool(self.failed), busy, unseen], dtype=torch.float32)
            failed, pending, hidden = world.largest(flags).tolist()
            if failed:
                break
            if not pending and not hidden:
                return
            if not pending:  # written; a shared file system shows it a little later
                deadline = min(deadline, time.monotonic() + self._rules.wait_seconds)
            time.sleep(pause)
            pause = min(1.5 * pause, LATE)
        self._patience = -1.0
        self._join()
        told = [sentence for sentence in world.gather(self.failed) if sentence]
        raise RunError(told[0] + (f" (and {len(told) - 1} other ranks failed)" if len(told) > 1 else ""))

    def close(self) -> None:
        """End the thread: this rank's file is written, and rank 0 waits a moment for the others'.

        What a run that ends in order has behind it with `wait`; here for one that does not.
        """
        self._patience = min(self._patience, 1.0)
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _seen(self) -> bool:
        return not self._attempts or (layout.checkpoint(self._run, self._last) / layout.INDEX).is_file()

    def _unseen(self) -> str:
        return (
            f"rank {self._rank} does not see {layout.checkpoint(self._run, self._last)} {self._rules.wait_seconds} s "
            f"after it was written: is {self._run} a folder that all nodes share?"
        )

    def _write(self, attempt: Attempt) -> None:
        """The thread; nothing that happens in it stays in it."""
        need, began = 0, time.monotonic()
        try:
            if sys.platform == "linux":  # where a thread has a priority of its own
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
            copies, seconds = self._host.ready()
            self._copied += seconds
            need = vectors.size(copies)
            self._share(attempt, copies)
            if self._rank == 0:
                self._commit(attempt, time.monotonic() - began)
        except GivenUp:
            return
        except BaseException as error:  # noqa: BLE001 (whatever it is, the run has to end with it)
            if not isinstance(error, OSError | RunError):
                traceback.print_exc()
            self.failed = failure.sentence(error, self._run, attempt.content.state.step, need)
            sys.stderr.write(f"warning: rank {self._rank}: {self.failed}\n")

    def _share(self, attempt: Attempt, copies: dict[str, torch.Tensor]) -> None:
        attempt.aside.mkdir(exist_ok=True)
        path = attempt.aside / layout.shard(self._rank, self._size)
        try:
            file = vectors.write(path, copies)
            write_json(attempt.aside / layout.record(self._rank, self._size), asdict(file))
        except BaseException:
            path.unlink(missing_ok=True)  # what does not fit on the disk must not fill it
            raise

    def _commit(self, attempt: Attempt, took: float) -> None:
        written = time.monotonic()

        def ending() -> float:
            return written + self._patience * (GRACE + took)

        files = records(attempt.aside, self._size, self._rules.wait_seconds, ending)
        commit(attempt, files, self._pieces)
        retention.apply(self._run, self._rules, attempt.content.state.step, attempt.mark)
