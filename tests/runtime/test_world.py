import json
from collections.abc import Callable

import pytest

from bigdiff.config.errors import RunError
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


def test_two_processes_agree(run_ranks: Callable[..., list[str]]) -> None:
    told = [json.loads(output.splitlines()[-1]) for output in run_ranks(SCRIPT, 2)]
    assert [one["rank"] for one in told] == [0, 1]
    assert [one["first"] for one in told] == [True, False]
    for one in told:
        assert one["size"] == 2
        assert one["mean"] == [0.5, 1.0]
        assert one["largest"] == [1.0]
        assert one["first_does"] == "done by 0"
        assert one["complaint"] == "0 cannot"
        assert one["gather"] == [{"rank": 0}, {"rank": 1}]
        assert one["first_says"] == "from 0"


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
