"""The writer behind the training: what a save returns on, what it waits for, and how a failure becomes a sentence."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigdiff.checkpoint import layout, reader

if TYPE_CHECKING:
    from conftest import Forker

# `slow(seconds)` makes the system's fsync of a share late on this rank: a slow disk
BEGIN = """
import os, resource, signal, threading
from bigdiff.checkpoint import layout
from bigdiff.config.errors import RunError
run, world = Path(sys.argv[1]), enter(60)
toy = Toy(run, "flat", world)
fsync = os.fsync
def slow(seconds):
    def late(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".safetensors"):
            time.sleep(seconds)
        fsync(descriptor)
    os.fsync = late
def there(step):
    return layout.checkpoint(run, step).is_dir()
def waited(writer):
    try:
        writer.wait(world)
    except RunError as error:
        return str(error)
    return ""
"""
LOAD = """
run = Path(sys.argv[1])
toy, told = Toy(run, "flat", enter(60)), []
saved = toy.load(told)
say(step=saved.state.step, wrong=toy.wrong(saved), told=told)
"""


def steps(run: Path) -> list[int]:
    return [layout.step_of(folder) for folder in layout.saved(run)]


def only_checkpoints(run: Path) -> bool:
    return all(path.name.startswith("step-") for path in layout.checkpoints(run).iterdir())


def loaded(forker: "Forker", run: Path, size: int = 2) -> int:
    first, *_ = [lines[0] for lines in forker.run(LOAD, size, run)]
    assert (first["wrong"], first["told"]) == ("", [])
    return int(first["step"])


def test_a_save_returns_at_once_and_holds_the_state_of_that_moment(forker: "Forker", tmp_path: Path) -> None:
    script = """
writer = toy.writer(keep=5)
slow(0.5)
writer.save(toy.content(1))
first = writer.stall_seconds()
toy.content(99)  # the training goes on: weights and moments change in place
early = there(1)
writer.save(toy.content(2))  # waits for the one before
second = writer.stall_seconds()
late = there(1)
failed = waited(writer)
say(first=first, early=early, second=second, late=late, failed=failed, done=there(2), rest=writer.stall_seconds())
"""
    told = [lines[0] for lines in forker.run(BEGIN + script, 2, tmp_path)]
    for one in told:
        assert one["first"] < 0.3 and not one["early"]
        assert 0.1 < one["second"] < 30
        assert (one["failed"], one["done"], one["rest"]) == ("", True, 0)
    assert told[0]["late"]  # rank 0 waited for its commit
    assert steps(tmp_path) == [2, 1] and only_checkpoints(tmp_path)
    assert loaded(forker, tmp_path) == 2
    assert reader.damaged(layout.checkpoint(tmp_path, 1)) == ""


def test_a_rank_waits_for_no_other_within_its_save(forker: "Forker", tmp_path: Path) -> None:
    script = """
writer = toy.writer(keep=5)
if not world.first:
    slow(1.0)
stalls = []
writer.save(toy.content(1))
stall = writer.stall_seconds()
early = there(1)
failed = waited(writer)
say(stall=stall, early=early, failed=failed)
"""
    for (one,) in forker.run(BEGIN + script, 3, tmp_path):
        assert one["stall"] < 0.5 and not one["early"] and one["failed"] == ""
    assert loaded(forker, tmp_path) == 1


def test_what_retention_lets_go_is_gone_when_wait_returns(forker: "Forker", tmp_path: Path) -> None:
    script = """
writer = toy.writer(every=2, keep=1, keep_every=4, keep_best=True)
for step, loss in ((2, 0.5), (4, 0.4), (6, 0.1), (8, 0.3), (10, 0.2), (11, None)):
    writer.save(toy.content(step, loss))
writer.wait(world)
writer.wait(world)  # again: nothing to do
say(steps=[layout.step_of(folder) for folder in layout.saved(run)])
"""
    assert forker.run(BEGIN + script, 2, tmp_path) == [[{"steps": [11, 8, 6, 4]}]] * 2
    assert only_checkpoints(tmp_path)


def test_the_same_step_again_replaces(forker: "Forker", tmp_path: Path) -> None:
    """One that was damaged, and passed over on the way, or was made by an earlier life that lived on."""
    script = """
writer = toy.writer(keep=5)
for _ in range(2):
    writer.save(toy.content(3))
    failed = waited(writer)
say(failed=failed)
"""
    for _ in range(2):
        assert forker.run(BEGIN + script, 2, tmp_path) == [[{"failed": ""}]] * 2
        assert steps(tmp_path) == [3] and only_checkpoints(tmp_path)
        assert loaded(forker, tmp_path) == 3
        share = layout.checkpoint(tmp_path, 3) / layout.shard(0, 2)
        os.truncate(share, 10)


def failing(forker: "Forker", run: Path, script: str, size: int = 2) -> list[dict[str, Any]]:
    """A good save at step 1, then `script` before one at step 2, on all ranks; the sentence is the same everywhere."""
    whole = f"""
writer = toy.writer(keep=5, wait_seconds=1)
writer.save(toy.content(1))
writer.wait(world)
{script}
writer.save(toy.content(2))
sentence = waited(writer)
began = time.monotonic()
writer.save(toy.content(3))  # after a failure it does nothing
writer.close()
say(failed=writer.failed, sentence=sentence, late=time.monotonic() - began, thread=threading.active_count())
"""
    told = [lines[0] for lines in forker.run(BEGIN + whole, size, run)]
    assert len({one["sentence"] for one in told}) == 1
    assert steps(run) == [1]
    assert loaded(forker, run) == 1
    assert all(one["late"] < 1 for one in told)
    return told


def test_a_rank_that_does_not_come_is_named_after_the_time_limit(forker: "Forker", tmp_path: Path) -> None:
    told = failing(forker, tmp_path, "if world.rank == 2:\n    slow(4.0)\n", 3)
    sentence = told[0]["sentence"]
    assert re.search(
        r"step-00000002 could not be saved: rank 2 of 3 had not written to .* within 1 s of rank 0", sentence
    )
    assert "(checkpoint.wait_seconds)" in sentence and "the last whole checkpoint is step-00000001" in sentence
    assert [bool(one["failed"]) for one in told] == [True, False, False]


def test_a_file_size_limit_on_one_rank_ends_all_with_a_sentence(forker: "Forker", tmp_path: Path) -> None:
    limit = "if world.rank == 1:\n    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
    told = failing(forker, tmp_path, limit + "errors = os.dup2(os.open('/dev/null', os.O_WRONLY), 2)")
    sentence = told[0]["sentence"]
    need = (layout.checkpoint(tmp_path, 1) / layout.shard(1, 2)).stat().st_size
    assert (
        f"File too large; this rank's file needs {need:,} bytes and the process may write 1,000 (ulimit -f)" in sentence
    )
    assert [bool(one["failed"]) for one in told] == [False, True]
    leftover = next(layout.checkpoints(tmp_path).glob("writing-*"))
    assert not (leftover / layout.shard(1, 2)).exists()  # what could not be whole does not fill the disk


def test_an_unforeseen_error_in_the_thread_does_not_stay_in_it(forker: "Forker", tmp_path: Path) -> None:
    fault = "if world.first:\n    def fault(*_):\n        raise ValueError('a fault')\n    os.posix_fadvise = fault\n"
    told = failing(forker, tmp_path, fault)
    assert "step-00000002 could not be saved: ValueError: a fault" in told[0]["sentence"]
    assert [bool(one["failed"]) for one in told] == [True, False]


def test_several_failures_are_one_sentence(forker: "Forker", tmp_path: Path) -> None:
    fault = "def fault(*_):\n    raise ValueError('a fault')\nos.posix_fadvise = fault\n"
    assert failing(forker, tmp_path, fault)[0]["sentence"].endswith("(and 1 other ranks failed)")


def test_closing_ends_soon_and_commits_what_all_have_written(forker: "Forker", tmp_path: Path) -> None:
    script = """
writer = toy.writer(keep=5, wait_seconds=60)
writer.save(toy.content(1))
writer.close()
first = there(1)
world.barrier()
if world.rank == 1:
    slow(20.0)
writer.save(toy.content(2))
if world.rank == 1:
    say(first=first)
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
began = time.monotonic()
writer.close()
say(first=first, seconds=time.monotonic() - began, failed=writer.failed)
"""
    first, second = forker.start(BEGIN + script, 2, tmp_path)
    assert (first.ended(), second.ended()) == (0, -9)
    (told,) = first.told()
    assert told["first"] and told["failed"] == ""
    assert told["seconds"] < 10
    assert steps(tmp_path) == [1]


def test_a_full_disk_ends_the_run_with_a_sentence_and_the_last_checkpoint_whole(
    forker: "Forker", mounted: Callable[..., Path]
) -> None:
    disk = mounted("size=1500k")
    script = """
toy = Toy(run, "flat", world, {"a": (20_000,)})
writer = toy.writer(keep=9, wait_seconds=5)
step, failed = 0, False
while not failed:  # as the training does: what failed on any rank is agreed on at a step's end
    step += 1
    writer.save(toy.content(step))
    time.sleep(0.05)
    failed = any(world.gather(writer.failed))
say(step=step, sentence=waited(writer), found=layout.step_of(layout.latest(run)))
writer.close()
"""
    run = disk / "toy"
    told = [lines[0] for lines in forker.run(BEGIN + script, 2, run)]
    assert told[0] == told[1]
    sentence, found = told[0]["sentence"], told[0]["found"]
    assert re.search(
        r"could not be saved: (.*rank-0000[01]-of-00002.*: )?No space left on device; this rank's file needs", sentence
    )
    assert f"the last whole checkpoint is step-{found:08d}" in sentence
    assert reader.damaged(layout.checkpoint(run, found)) == ""
    # room is made, and the next life clears what lies about
    subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
    again = "writer = Toy(run, 'flat', world, {'a': (20_000,)}).writer(keep=9)\nsay(begun=True)\n"
    forker.run(BEGIN + again, 2, run)
    assert only_checkpoints(run)
    assert steps(run) == list(range(found, 0, -1))


def test_a_save_waits_while_the_disk_hangs_and_a_signal_still_reaches_the_process(
    forker: "Forker", tmp_path: Path
) -> None:
    script = """
writer = toy.writer(keep=5)
heard = []
signal.signal(signal.SIGUSR2, lambda *_: heard.append(time.monotonic()))
slow(1.5)
writer.save(toy.content(1))
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR2)).start()
began = time.monotonic()
writer.save(toy.content(2))
ended = time.monotonic()
writer.wait(world)
say(heard=heard[0] - began, saved=ended - began)
"""
    ((told,),) = forker.run(BEGIN + script, 1, tmp_path)
    assert told["heard"] < 1.0 < told["saved"]
    assert steps(tmp_path) == [2, 1]
