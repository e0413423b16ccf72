"""Four nodes of a process each, which differ in one thing at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Data
from bigdiff.train.preflight import RECORD, fit_memory

SCRIPT = """
import json, os, sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
os.environ["SLURMD_NODENAME"] = f"n{int(os.environ['RANK']) + 1}"
from bigdiff.config.load import load_stage
from bigdiff.config.cluster import Preflight
from bigdiff.runtime import rates
from bigdiff.runtime.world import enter, leave
from bigdiff.train import preflight
from bigdiff.train.preflight import Check

toy, base = map(Path, sys.argv[1:])
rates.SECONDS, preflight.SEEN_SECONDS = 0.05, 1.0
world = enter(60)
third = world.rank == 2
told = {}


def case(name, stage=str(toy / "stage.yaml"), logs="shared", endured=(), slow=0.0):
    said = []
    check = Check(limits=Preflight(slow=slow, clock_seconds=60.0), endured=endured)
    try:
        preflight.run(load_stage(stage), check, base / logs, world, said.append)
        told[name] = ["sound", *said]
    except Exception as error:
        told[name] = [type(error).__name__, str(error), *getattr(error, "nodes", ())]


case("sound")
case("apart", logs="elsewhere" if third else "shared")
case("all apart", logs=f"own-{world.rank}")
(base / "file").touch()
case("unwritable", logs="file/logs" if third else "shared")
case("no data there", stage=str(toy / ("lacking.yaml" if third else "stage.yaml")))
case("no data", stage=str(toy / "lacking.yaml"))
case("no memory", stage=str(toy / "greedy.yaml"))

whole = metadata.version
if third:  # a node with an environment of its own
    (base / "own" / "submitit-0.0.1.dist-info").mkdir(parents=True)
    (base / "own" / "submitit-0.0.1.dist-info" / "METADATA").write_text("Name: submitit\\nVersion: 0.0.1\\n")
    sys.path.insert(0, str(base / "own"))
case("another environment")
sys.path[:] = [one for one in sys.path if one != str(base / "own")]

sound = rates.matmul
if third:  # a device that fails, and one that is slow
    def broken(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\\nmore")
    rates.matmul = broken
case("broken device")
rates.matmul = (lambda device: (1e6, sound(device)[1])) if third else (lambda device: (1e11, sound(device)[1]))
rates.copy = lambda device: 1e9
rates.links = lambda world, rounds: 1e9
case("slow device", slow=0.7)
case("slow device that is endured", slow=0.7, endured=("n3",))
world.barrier()
leave()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(
    run_ranks: Callable[..., list[str]], toy: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, list[Any]]]:
    text = (toy / "stage.yaml").read_text()
    (toy / "lacking.yaml").write_text(text.replace(f"{toy}/latents", f"{toy}/nowhere"))
    (toy / "greedy.yaml").write_text(text.replace("data: {", "data: {memory_gb: 1.0e+9, "))
    outputs = run_ranks(SCRIPT, 4, str(toy), str(tmp_path_factory.mktemp("base")))
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def test_all_processes_come_to_the_same_end(told: list[dict[str, list[Any]]]) -> None:
    assert all(one == told[0] for one in told[1:])


def test_a_sound_cluster_is_a_line(told: list[dict[str, list[Any]]]) -> None:
    state, line = told[0]["sound"]
    assert state == "sound"
    assert line.startswith("preflight of 4 processes on 4 nodes in ")
    for word in ("multiply", "TFLOP/s", "copy", "all-reduce", "exchange", "GB/s", "clocks within"):
        assert word in line


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("apart", "node n3: rank 2 does not see what other nodes write to the run's folder"),
        ("unwritable", "node n3: rank 2 cannot write to "),
        ("no data there", "nowhere has no manifest.json: it is not a finished shard set"),
        ("another environment", "node n3: submitit is 0.0.1, others "),
        ("broken device", "node n3: rank 2 fails on cpu: CUDA error: an illegal memory access was encountered"),
        ("slow device", "node n3: rank 2 multiplies at 0.00 of the median"),
    ],
)
def test_the_node_that_differs_is_named(told: list[dict[str, list[Any]]], case: str, words: str) -> None:
    kind, sentence, *nodes = told[0][case]
    assert (kind, nodes) == ("NodeError", ["n3"])
    assert words in sentence and "\n" not in sentence


def test_what_is_wrong_everywhere_is_no_nodes_fault(told: list[dict[str, list[Any]]]) -> None:
    assert told[0]["no data"][0] == "UsageError" and "nowhere has no manifest.json" in told[0]["no data"][1]
    assert told[0]["no memory"][0] == "UsageError"
    assert told[0]["no memory"][1].startswith(
        "data.memory_gb=1e+09 for each of 1 processes is 1e+09 GB, and the node has"
    )
    kind, sentence = told[0]["all apart"]
    assert kind == "RunError" and sentence.startswith("the preflight fails on all nodes, so it is none of a node's; ")


def test_a_slow_node_is_put_up_with_where_there_is_no_other(told: list[dict[str, list[Any]]]) -> None:
    assert told[0]["slow device that is endured"][0] == "sound"


def test_what_all_processes_of_a_node_keep_must_fit_its_memory() -> None:
    fit_memory(Data(memory_gb=8.0), 8, 64e9)
    fit_memory(Data(), 8, 0.0)
    with pytest.raises(
        UsageError, match=r"data\.memory_gb=8 for each of 8 processes is 64 GB, .* has 63\.9 GB of memory"
    ):
        fit_memory(Data(memory_gb=8.0), 8, 63.9e9)


def test_alone_there_are_no_peers(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bigdiff.config.load import load_stage
    from bigdiff.runtime.world import enter, leave
    from bigdiff.train import preflight

    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    said: list[str] = []
    world = enter(10)
    try:
        stage = load_stage(str(toy / "stage.yaml"))
        preflight.run(stage, preflight.Check(), tmp_path / "logs", world, said.append)
    finally:
        leave()
    (line,) = said
    assert line.startswith("preflight of 1 processes on 1 node in ") and "all-reduce" not in line
    record = json.loads((tmp_path / "logs" / RECORD).read_text())
    assert record["faults"] == [] and len(record["readings"]) == 1 and record["readings"][0]["matmul"] > 1e8
    assert [file.name for file in (tmp_path / "logs").iterdir()] == [RECORD]
    assert capsys.readouterr().err == ""
