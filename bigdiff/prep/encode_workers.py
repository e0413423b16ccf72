"""Who encodes the shards that are left: this process, a process for each GPU, or on CPU several of one thread each.

Two cores run two processes of one thread more steadily than one process of two.
"""

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

import torch

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data.manifest import Manifest, Shard
from bigdiff.prep.encoder import Encoder, load
from bigdiff.prep.latent_settings import Settings
from bigdiff.prep.latent_shard import Record, write_shard
from bigdiff.runtime.files import write_json
from bigdiff.runtime.workers import Spread

WORK: Final = "_work"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A set to be made: its settings as recorded, its shards, and those that are finished."""

    images: Path
    output: Path
    source: Manifest
    recorded: dict[str, Any]
    finished: dict[str, Record]

    @property
    def todo(self) -> tuple[Shard, ...]:
        """Image shards without a finished latent shard."""
        return tuple(shard for shard in self.source.shards if shard.name not in self.finished)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One shard for another process: it loads the networks itself, once."""

    images: Path
    output: Path
    name: str
    bucket: str
    ending: str  # of the image shards' indexes
    settings: Settings


def on_devices(plan: Plan, settings: Settings, devices: Spread) -> dict[str, Record]:
    """Encode the shards that are left, a process on each of the `devices`, which begins the next when it has done one.

    Raises:
        UsageError: as `write_shard`, or when a process cannot load the networks.
        RunError: as `write_shard`, or when a process was killed.
    """
    tasks = [
        Task(
            images=plan.images,
            output=plan.output,
            name=shard.name,
            bucket=shard.bucket,
            ending=plan.source.index,
            settings=settings,
        )
        for shard in plan.todo
    ]
    return {record.name: record for record in devices.each(encode_one, tasks, plan.output.name)}


def encode_one(task: Task) -> Record:
    """One shard, on this process's device."""
    encoder = replace(_loaded(task.settings), bucket=task.bucket)
    with one_thread(encoder.device):
        return _written(task.images, task.output, task.name, encoder, lambda _: None, task.ending)


@cache
def _loaded(settings: Settings) -> Encoder:
    return load(settings)


def run(plan: Plan, encoder: Encoder, workers: int, advance: Callable[[int], None]) -> dict[str, Record]:
    """Encode the shards that are left: in this process on a GPU or for one worker, else in processes of one thread."""
    names = [shard.name for shard in plan.todo]
    if encoder.device.type == "cuda" or workers == 1 or len(names) <= 1:
        with one_thread(encoder.device):
            return {name: _one(plan, encoder, name, advance) for name in names}
    return _in_processes(plan, encoder, [names[worker::workers] for worker in range(min(workers, len(names)))], advance)


@contextlib.contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """One torch thread on CPU, so that every number of workers gives the same bytes."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one(plan: Plan, encoder: Encoder, name: str, advance: Callable[[int], None]) -> Record:
    bucket = next(shard.bucket for shard in plan.source.shards if shard.name == name)
    chosen = replace(encoder, bucket=bucket)
    return _written(plan.images, plan.output, name, chosen, advance, plan.source.index)


def _written(
    images: Path, output: Path, name: str, encoder: Encoder, advance: Callable[[int], None], ending: str
) -> Record:
    record = write_shard(images, output, name, encoder, advance, ending)
    write_json(output / WORK / f"{name}.json", asdict(record))
    return record


def _in_processes(
    plan: Plan, encoder: Encoder, shares: Sequence[list[str]], advance: Callable[[int], None]
) -> dict[str, Record]:
    # fork: the loaded networks and imports (seconds of them) are inherited; torch has run one-threaded until here
    context = multiprocessing.get_context("fork")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its thread pool does not survive a fork
    records: dict[str, Record] = {}
    ends: dict[Connection, Any] = {}
    try:
        for share in shares:
            receive, send = context.Pipe(duplex=False)
            worker = context.Process(target=_work, args=(plan, encoder, share, send, os.getpid()), daemon=True)
            worker.start()
            send.close()  # so that a dead worker is the end of its pipe
            ends[receive] = worker
        left = dict(ends)
        while left:
            for end in wait(list(left)):
                assert isinstance(end, Connection)
                try:
                    kind, value = end.recv()
                except EOFError:
                    _joined(left.pop(end))
                    continue
                if kind == "images":
                    advance(value)
                elif kind == "shard":
                    records[value.name] = value
                else:
                    raise {"usage": UsageError, "run": RunError}[kind](value)
    finally:
        for worker in ends.values():
            worker.terminate()
            worker.join()
    return records


def _joined(worker: Any) -> None:  # noqa: ANN401 (multiprocessing's process type depends on the start method)
    worker.join()
    if worker.exitcode:
        raise RunError(f"a worker ended with code {worker.exitcode}; the same command again continues")


def _work(plan: Plan, encoder: Encoder, names: list[str], send: Connection, parent: int) -> None:
    torch.set_num_threads(1)

    def tell(count: int) -> None:
        if os.getppid() != parent:
            os._exit(1)  # the command was killed: do not go on writing behind its back
        send.send(("images", count))

    try:
        for name in names:
            send.send(("shard", _one(plan, encoder, name, tell)))
    except UsageError as error:
        send.send(("usage", str(error)))
    except RunError as error:
        send.send(("run", str(error)))
    except KeyboardInterrupt:
        os._exit(130)  # the command itself reports it
    except Exception:  # noqa: BLE001 (the border of a process: whatever it was is reported in full)
        send.send(("run", f"a worker failed:\n{traceback.format_exc()}"))
