import json
import math
import socket
from collections.abc import Callable

import pytest
import torch

from bigdiff.config.errors import RunError, UsageError
from bigdiff.runtime import world

SCRIPT = """
import json, torch
from bigdiff.config.errors import UsageError
from bigdiff.runtime.world import enter, leave
w = enter(60)
told = {
    "rank": w.rank, "size": w.size, "first": w.first,
    "mean": w.mean(torch.tensor([float(w.rank), 1.0])).tolist(),
    "largest": w.largest(torch.tensor([float(w.rank)])).tolist(),
    "total": w.total(torch.tensor([[1.0 + w.rank], [2.0**-40]], dtype=torch.float64)).tolist(),
    "every": w.every(torch.tensor([float(w.rank), 5.0])).tolist(),
    "gather": w.gather({"rank": w.rank}),
    "first_says": w.first_says(f"from {w.rank}"),
    "first_does": w.first_does(lambda: f"done by {w.rank}"),
}
def unable():
    raise UsageError(f"{w.rank} cannot")
try:
    w.first_does(unable)
except UsageError as error:
    told["complaint"] = str(error)
w.barrier()
leave()
print(json.dumps(told))
"""
AGREE = """
import json, torch
from dataclasses import asdict
from bigdiff.runtime.world import enter, leave
w = enter(60)
first, none = torch.tensor(0.1), torch.tensor(float("nan"))
own = torch.tensor(float(w.rank))
asked = [
    w.ask(own, first, stop=w.rank == w.size - 1, failed=False),
    w.ask(none if w.rank == 0 else own, none, stop=False, failed=w.rank == 0),
]
w.barrier()  # other collectives go on between
own += 7  # what was told is told
last, first = asked[1].agreed(), asked[0].agreed()
leave()
print(json.dumps([asdict(first), asdict(last)]))
"""


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost"])
def test_two_processes_agree(run_ranks: Callable[..., list[str]], address: str) -> None:
    script = f"import os; os.environ['MASTER_ADDR'] = '{address}'" + SCRIPT
    told = [json.loads(output.splitlines()[-1]) for output in run_ranks(script, 2)]
    assert [one["rank"] for one in told] == [0, 1]
    assert [one["first"] for one in told] == [True, False]
    for one in told:
        assert one["size"] == 2
        assert one["mean"] == [0.5, 1.0]
        assert one["largest"] == [1.0]
        assert one["total"] == [[3.0], [2.0**-39]]
        assert one["every"] == [[0.0, 5.0], [1.0, 5.0]]
        assert one["first_does"] == "done by 0"
        assert one["complaint"] == "0 cannot"
        assert one["gather"] == [{"rank": 0}, {"rank": 1}]
        assert one["first_says"] == "from 0"


@pytest.mark.parametrize("size", [1, 3])
def test_what_a_step_was_is_known_alike_by_all(run_ranks: Callable[..., list[str]], size: int) -> None:
    told = [json.loads(output.splitlines()[-1]) for output in run_ranks(AGREE, size)]
    norm = float(torch.tensor(0.1))  # the same fp32 number, whatever the number of ranks
    for first, second in told:
        assert first == {"stop": True, "failed": False, "broken": 0, "loss": (size - 1) / 2, "norm": norm}
        assert (second["stop"], second["failed"], second["broken"]) == (False, True, 1)
        assert math.isnan(second["loss"]) and math.isnan(second["norm"])


def test_a_world_of_one_needs_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    for _ in range(2):  # entering again after leaving works
        alone = world.enter(10)
        assert (alone.rank, alone.size, alone.first) == (0, 1, True)
        assert alone.gather("x") == ["x"]
        world.leave()


def test_half_an_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RunError, match="WORLD_SIZE"):
        world.enter(10)


LACKING = """
import json, os, sys, torch
from bigdiff.runtime import world
rank = int(os.environ["RANK"])
os.environ["SLURMD_NODENAME"] = f"n{rank // 2 + 1}"
told = []
for port, broken in zip(sys.argv[1:], ([], [3], [0, 1, 2, 3]), strict=True):
    # without a GPU here, processes are said to have one
    world._device = lambda local_rank, gpu: (torch.device("cpu"), "no CUDA device is seen" if rank in broken else "")
    os.environ["MASTER_PORT"] = port
    try:
        world.enter(60, gpu=True).barrier()
        world.leave()
        told.append("met")
    except Exception as error:
        told.append(f"{type(error).__name__}: {error}")
print(json.dumps(told))
"""


def test_a_node_without_its_gpus_is_known_to_all_before_the_group_is_made(
    run_ranks: Callable[..., list[str]], free_port: Callable[[], int]
) -> None:
    ports = [str(free_port()) for _ in range(3)]
    told = [json.loads(output.splitlines()[-1]) for output in run_ranks(LACKING, 4, *ports)]
    assert told == [told[0]] * 4
    assert told[0][:2] == ["met", "NodeError: node n2: no CUDA device is seen"]
    assert told[0][2].startswith("UsageError: no CUDA device is seen on node n1, nor a working one on any other: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpus_that_a_cluster_promises_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="gpus_per_node must be 0 to train on CPUs"):
        world.enter(10, gpu=True)


def test_a_node_is_called_as_slurm_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "gpu07")
    assert world.host() == "gpu07"
    monkeypatch.delenv("SLURMD_NODENAME")
    assert world.host() == socket.gethostname()
