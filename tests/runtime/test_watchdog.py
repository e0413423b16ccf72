"""Real ranks that hang, stop, die and fail. Some cases run at the same time: they mostly wait."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bigdiff.runtime.watchdog import FAILED, FIRST, collective_timeout, lost_peer, stack_file

# forks ranks from one process that has imported torch; each case is a group of its own
SCRIPT = """
import ctypes, json, os, signal, socket, sys, time, torch
from pathlib import Path
from bigdiff.runtime import watchdog
from bigdiff.runtime.watchdog import Watchdog
from bigdiff.runtime.world import enter, leave

watchdog.MARGIN = 3
LIMIT, BEAT, SIZE = 4, 0.4, 3

def rank(case, number, folder, port):
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(SIZE), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    fault, _, who = case.partition("-")
    world = enter(60)
    with Watchdog(world, folder, LIMIT, BEAT) as watch:
        for step in range(5):
            watch.at(step, "data")
            time.sleep(0.2)
            if step == 3 and who in (str(number), "all"):
                at_fault(fault, watch, folder)
            watch.at(step, "forward and backward")
            world.ask(torch.tensor(1.0), torch.tensor(1.0), stop=False, failed=False).agreed()
        watch.at(5, "end")
        world.barrier()
    leave()

def at_fault(fault, watch, folder):
    (folder / f"fault-{os.getpid()}").write_text(str(time.monotonic()))
    if fault == "sleep":
        time.sleep(1000)
    if fault == "lock":  # a call into C that keeps the interpreter to itself
        ctypes.PyDLL(None).sleep(1000)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "raise":
        raise OSError("no space is left")
    if fault == "slow":  # longer than the limit, but not in one phase
        for _ in range(6):
            time.sleep(1)
            watch.at(3, "checkpoint")

def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

children = {}
for case in sys.argv[2:]:
    folder, port = Path(sys.argv[1]) / case, free_port()
    folder.mkdir()
    for number in range(SIZE):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            errors = os.open(folder / f"errors-{number}", os.O_WRONLY | os.O_CREAT)
            os.dup2(errors, 2)
            code = 1
            try:
                rank(case, number, folder, port)
                code = 0
            except BaseException as error:
                print("raised:", error, file=sys.stderr)
            sys.stderr.flush()
            os._exit(code)
        children[child] = case, number
print(json.dumps({pid: place for pid, place in children.items()}), flush=True)
for _ in range(len(children)):
    pid, status = os.wait()
    print(json.dumps([*children[pid], os.waitstatus_to_exitcode(status), time.monotonic()]), flush=True)
"""
# waves of few processes: with all at once a rank's start takes longer than the silence that it is allowed
WAVES = (
    ("none-0", "sleep-1", "stop-2", "kill-1"),
    ("sleep-0", "stop-0", "kill-0", "raise-2"),
    ("raise-0", "raise-all", "lock-1", "slow-all"),
)


class Outcome:
    """What became of one case."""

    def __init__(self, folder: Path, codes: dict[int, int], ended: dict[int, float]) -> None:
        self.folder, self.codes = folder, codes
        self.errors = [(folder / f"errors-{rank}").read_text() for rank in range(3)]
        faults = [float(file.read_text()) for file in folder.glob("fault-*")]
        self.seconds = max(ended.values()) - max(faults, default=0)  # from the fault to the end of all

    @property
    def said(self) -> list[tuple[int, str]]:
        return [
            (rank, line)
            for rank, text in enumerate(self.errors)
            for line in text.splitlines()
            if line.startswith("failed: ")
        ]


def wave(folder: Path, cases: tuple[str, ...]) -> dict[str, Outcome]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), *cases], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    codes: dict[str, dict[int, int]] = {case: {} for case in cases}
    ended: dict[str, dict[int, float]] = {case: {} for case in cases}
    try:
        children = json.loads(process.stdout.readline())
        stopped = {tuple(place): int(pid) for pid, place in children.items() if place in (["stop-2", 2], ["stop-0", 0])}
        for number in range(len(children)):
            if number == len(children) - len(stopped):  # only those that cannot end by themselves are left
                for pid in stopped.values():
                    os.kill(pid, signal.SIGKILL)
            case, rank, code, when = json.loads(process.stdout.readline())
            codes[case][rank], ended[case][rank] = code, when
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {case: Outcome(folder / case, codes[case], ended[case]) for case in cases}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("ranks")
    return {case: outcome for cases in WAVES for case, outcome in wave(folder, cases).items()}


def test_a_run_that_moves_is_left_alone(outcomes: dict[str, Outcome]) -> None:
    for case in ("none-0", "slow-all"):
        assert outcomes[case].codes == {0: 0, 1: 0, 2: 0}, outcomes[case].errors
        assert outcomes[case].said == []
        assert not (outcomes[case].folder / "logs").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_is_named_by_rank_0_with_the_stacks_of_all(outcomes: dict[str, Outcome], rank: int) -> None:
    outcome = outcomes[f"sleep-{rank}"]
    assert outcome.codes == {0: FAILED, 1: FAILED, 2: FAILED}
    ((speaker, sentence),) = outcome.said
    assert speaker == 0
    assert f"failed: rank {rank} (" in sentence
    assert "hangs in data of step 3" in sentence
    assert "while others wait in forward and backward of step 3" in sentence
    for number in range(3):
        stack = stack_file(outcome.folder, number).read_text()
        assert f"rank {number} (" in stack and "step 3, " in stack
        assert ("at_fault" in stack) is (number == rank)
        assert ("in agreed" in stack) is (number != rank)


@pytest.mark.parametrize(
    ("case", "speakers"), [("stop-2", {0}), ("stop-0", {1, 2}), ("kill-1", {0}), ("kill-0", {1, 2})]
)
def test_a_rank_that_is_stopped_or_killed_is_named_by_the_living(
    outcomes: dict[str, Outcome], case: str, speakers: set[int]
) -> None:
    outcome, lost = outcomes[case], int(case[-1])
    living = {0, 1, 2} - {lost}
    assert outcome.codes == {rank: FAILED if rank in living else -signal.SIGKILL for rank in range(3)}
    # rank 0 takes the store with it, so that the others cannot agree on who speaks
    assert {rank for rank, _ in outcome.said} == speakers
    for _, sentence in outcome.said:
        if lost:
            assert f"failed: rank {lost} (" in sentence and "does not answer (killed, stopped or cut off)" in sentence
            assert "last heard of in data of step" in sentence
        else:
            assert (
                "rank 0 does not answer" in sentence or "the process of rank 0, which keeps the store, has" in sentence
            )
    for rank in living:
        assert f"rank {rank} (" in stack_file(outcome.folder, rank).read_text()


def test_a_killed_rank_ends_the_run_sooner_than_a_hung_one(outcomes: dict[str, Outcome]) -> None:
    hung = min(outcomes[case].seconds for case in ("sleep-0", "sleep-1"))
    for case in ("kill-1", "kill-0", "raise-2", "raise-0"):
        assert outcomes[case].seconds < hung


@pytest.mark.parametrize("rank", [0, 2])
def test_an_error_on_one_rank_is_told_to_the_others(outcomes: dict[str, Outcome], rank: int) -> None:
    outcome = outcomes[f"raise-{rank}"]
    assert outcome.codes == {0: 1, 1: 1, 2: 1}
    assert "raised: no space is left" in outcome.errors[rank]
    lowest = 1 if rank == 0 else 0
    assert [speaker for speaker, _ in outcome.said] == [lowest]
    assert f"rank {rank} (" in outcome.said[0][1]
    assert "failed at step 3 (data): no space is left" in outcome.said[0][1]


def test_an_error_that_all_have_is_said_by_each_alone(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["raise-all"]
    assert outcome.codes == {0: 1, 1: 1, 2: 1}
    assert outcome.said == []
    assert all("raised: no space is left" in errors for errors in outcome.errors)
    assert outcome.seconds < min(outcomes[case].seconds for case in ("sleep-0", "sleep-1"))


def test_a_rank_that_keeps_the_interpreter_to_itself_is_silent(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["lock-1"]
    assert outcome.codes[0] == outcome.codes[2] == FAILED
    assert "rank 1 (" in outcome.said[0][1] and "does not answer" in outcome.said[0][1]
    assert outcome.codes[1] == FAILED  # by the interpreter's own timer
    assert "at_fault" in outcome.errors[1]


def test_collectives_give_up_behind_the_watchdog() -> None:
    assert collective_timeout(600) > FIRST * 600


def test_a_failed_collective_is_told_from_other_errors() -> None:
    gloo = RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:4242")
    assert lost_peer(gloo)
    wrapped = ValueError("in the engine")
    wrapped.__cause__ = gloo
    assert lost_peer(wrapped)
    assert not lost_peer(RuntimeError("CUDA out of memory"))
    assert not lost_peer(None)
