"""What is done about a step, and what is written of it; with real ranks and planted samples in tests/e2e."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from steps import optimizer_step, vectors

from bigdiff.checkpoint.state import TrainState, Window
from bigdiff.config.errors import LastingError, RunError
from bigdiff.config.schema import Autoencoder
from bigdiff.train import incidents, loop
from bigdiff.train.recovery import Curve, Verdict
from bigdiff.train.run import Run
from bigdiff.train.step import Done
from bigdiff.train.task import Losses, Micro

MakeRun = Callable[..., Run]
NAN = Verdict(action="skip", reason="non-finite loss", detail="loss nan, gradient norm nan")
SPIKE = Verdict(action="roll back", reason="loss spike", detail="loss 9")


def lines(run: Run) -> list[dict[str, Any]]:
    """What recovery.jsonl holds; strict JSON, which knows no NaN."""
    text = (run.folder / incidents.FILE).read_text()
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def stepped(run: Run, spoiled: dict[int, float]) -> tuple[list[Micro], Done]:
    """The run's next step, in which the losses of the samples at these positions are scaled."""
    run.task.spoiled = spoiled
    batches = next(run.batches)
    return batches, optimizer_step(run, batches)


def trained(run: Run, steps: int) -> None:
    """So many steps, as the loop makes them."""
    for _ in range(steps):
        batches, done = stepped(run, {})
        loop.settle(run, batches, done, incidents.judge(run, float(done.loss), float(done.stepped.norm)))


def key(run: Run, position: int) -> str:
    picks = run.course.locate(position // 8, position % 8, position % 8 + 1)
    shard, row = int(picks.shards[0]), int(picks.rows[0])
    return str(pq.read_table(f"{run.sets[0].location}/{shard:05d}.parquet")["key"][row].as_py())


def test_judged_by_the_mean_of_all_ranks_and_a_curve_of_this_regime(make_run: MakeRun) -> None:
    run = make_run("recovery.window=20")
    run.curve = Curve(losses=(0.0,) * 20, norms=(0.0,) * 20)
    assert incidents.judge(run, 1.1, 1.0).action == "keep"
    assert incidents.judge(run, 50.0, 1.0).reason == "loss spike"
    model = replace(run.stage.model, autoencoder=Autoencoder(disc_start=1))
    run.stage = replace(run.stage, model=model)
    run.state = TrainState(step=1, samples_seen=8)  # the discriminator's first step
    assert incidents.judge(run, 50.0, 1.0).action == "keep"
    assert run.curve == Curve()


def test_a_step_that_moved_nothing_is_left_out(make_run: MakeRun) -> None:
    run = make_run("recovery.budget=0.1")
    trained(run, 3)
    before, curve = vectors(run), run.curve
    batches, done = stepped(run, {8 * 3 + 6: math.nan, 8 * 3 + 1: math.inf})
    verdict = incidents.judge(run, float(done.loss), float(done.stepped.norm))
    assert verdict == NAN
    loop.settle(run, batches, done, verdict)
    assert all(map(torch.equal, vectors(run), before))
    assert run.curve == curve
    window = Window(begin=3, end=4, reason="non-finite loss")
    assert run.state == TrainState(step=4, samples_seen=32, skipped=(window,)) and run.state.updates == 3
    (line,) = lines(run)
    assert {name: line[name] for name in ("step", "action", "reason", "window", "start")} == {
        "step": 3,
        "action": "skip",
        "reason": "non-finite loss",
        "window": [3, 4],
        "start": run.start,
    }
    assert [(one["position"], one["key"], one["loss"]) for one in line["samples"]] == [
        (25, key(run, 25), "inf"),
        (30, key(run, 30), "nan"),
    ]
    (said,) = run.say.told  # type: ignore[attr-defined]
    assert said.startswith("step 3: non-finite loss (loss nan, gradient norm nan); it moved no weights; samples ")
    assert f"{key(run, 25)}, {key(run, 30)}" in said


def test_more_than_the_budget_ends_the_run_and_is_written_down_first(make_run: MakeRun) -> None:
    run = make_run("recovery.budget=0.05")  # one of the 20 steps
    for step in (0, 1):
        batches, done = stepped(run, {8 * step: math.nan})
        if step == 0:
            incidents.leave_out(run, batches, done, NAN)
    with pytest.raises(RunError, match=r"step 1: non-finite loss \(.*; 2 of the stage's 20 steps moved no weights"):
        incidents.leave_out(run, batches, done, NAN)
    assert [line["action"] for line in lines(run)] == ["skip", "end"]
    assert run.state.step == 1


def test_going_back_takes_all_from_the_checkpoint_and_goes_on_with_the_data(make_run: MakeRun) -> None:
    run = make_run("recovery.budget=0.5")
    trained(run, 3)
    loop.save(run)
    saved, curve = vectors(run), run.curve
    trained(run, 4)
    batches, done = stepped(run, {8 * 7 + 2: 1e4})
    run.losses.append(1.0)
    incidents.go_back(run, batches, done, SPIKE)
    assert all(map(torch.equal, vectors(run), saved))
    assert run.curve == curve and run.losses == []
    window = Window(begin=3, end=8, reason="loss spike")
    assert run.state == TrainState(step=8, samples_seen=64, skipped=(window,)) and run.state.updates == 3
    assert int(next(run.batches)[0].positions[0]) == 64
    (line,) = lines(run)
    assert (line["action"], line["step"], line["window"]) == ("roll back", 7, [3, 8])
    assert (line["samples"][0]["position"], line["samples"][0]["key"]) == (58, key(run, 58))
    assert "back to the weights of step 3, and on with the data" in run.say.told[-1]  # type: ignore[attr-defined]


def test_without_a_checkpoint_there_is_no_way_back(make_run: MakeRun) -> None:
    run = make_run()
    batches, done = stepped(run, {})
    with pytest.raises(
        LastingError, match=r"there is no checkpoint to go back to: set checkpoint\.every or optim\.lr lower"
    ):
        incidents.go_back(run, batches, done, SPIKE)
    assert [line["action"] for line in lines(run)] == ["end"]


@pytest.mark.parametrize(
    ("reason", "spoiled", "positions"),
    [
        ("non-finite loss", {2: math.nan, 7: -math.inf}, [2, 7]),
        ("non-finite gradient", {}, list(range(8))),  # no sample can be told from the others
        ("loss spike", {1: 1e8, 4: 1e4, 6: 1e6, 3: 1e2}, [1, 6, 4, 3]),  # the largest first
    ],
)
def test_suspects(make_run: MakeRun, reason: str, spoiled: dict[int, float], positions: list[int]) -> None:
    run = make_run()
    batches, done = stepped(run, spoiled)
    found = incidents.suspects(run, batches, done, replace(NAN, reason=reason))
    assert [one["position"] for one in found] == positions
    assert [one["key"] for one in found] == [key(run, position) for position in positions]
    assert {one["rank"] for one in found} == {0}


def test_a_total_that_overflows_alone_blames_its_whole_micro_batch(make_run: MakeRun) -> None:
    run = make_run()
    batches, done = stepped(run, {})
    broken = Losses(total=torch.tensor(math.inf), per_sample=done.losses[1].per_sample)
    found = incidents.suspects(run, batches, replace(done, losses=(done.losses[0], broken)), NAN)
    assert [one["position"] for one in found] == [4, 5, 6, 7]


def test_no_more_samples_are_named_than_a_person_reads(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    batches, done = stepped(run, dict.fromkeys(range(8), math.nan))
    monkeypatch.setattr(incidents, "NAMED", 5)
    assert [one["position"] for one in incidents.suspects(run, batches, done, NAN)] == [0, 1, 2, 3, 4]
    incidents.leave_out(run, batches, done, NAN)
    assert f"{key(run, 3)}, ..., see recovery.jsonl" in run.say.told[-1]  # type: ignore[attr-defined]
