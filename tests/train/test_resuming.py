from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from steps import optimizer_step, vectors

from bigdiff.checkpoint import layout
from bigdiff.train import loop, resuming
from bigdiff.train.recovery import Curve, Verdict
from bigdiff.train.run import CURVE, START, Run

MakeRun = Callable[..., Run]


def trained(run: Run, steps: int) -> list[float]:
    """So many steps, saved behind each; gives their losses."""
    losses = []
    for _ in range(steps):
        batches = next(run.batches)
        done = optimizer_step(run, batches)
        losses.append(float(done.loss))
        loop.settle(run, batches, done, Verdict(action="keep", loss=losses[-1], norm=float(done.stepped.norm)))
        loop.save(run)
    run.checkpoints.wait(run.world)
    return losses


def test_before_the_first_checkpoint_there_is_nothing(make_run: MakeRun) -> None:
    run = make_run()
    assert resuming.newest(run.stage, run.world, run.engine, run.ema) is None


def test_what_was_saved_comes_back_bit_for_bit_and_goes_on_the_same(make_run: MakeRun) -> None:
    first = make_run()
    trained(first, 4)
    expected, curve = vectors(first), first.curve
    then = trained(first, 2)
    for folder in layout.folders(first.folder)[:2]:
        folder.rename(folder.with_name(f"away-{folder.name}"))
    second = make_run()
    saved = resuming.newest(second.stage, second.world, second.engine, second.ema)
    assert saved is not None and saved.state.step == 4
    assert resuming.put_back(second.stage, saved, second.engine, second.ema) == []
    assert all(map(torch.equal, vectors(second), expected))
    assert Curve.parse(saved.about[CURVE], second.stage.recovery.window) == curve
    assert saved.about[START] == first.start != second.start
    second.state = saved.state
    for _ in range(4):
        next(second.batches)  # the stream of the test's run begins at 0
    assert trained(second, 2) == then


def test_the_newest_is_taken_and_a_damaged_one_passed_over(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    trained(run, 3)
    newest = layout.checkpoint(run.folder, 3)
    file = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    flip(file)
    saved = resuming.newest(run.stage, run.world, run.engine, run.ema)
    assert saved is not None and saved.state.step == 2
    assert capsys.readouterr().err.startswith(f"warning: checkpoint {newest} is damaged ({file.name} ")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_an_average_that_the_checkpoint_lacks_is_told(make_run: MakeRun) -> None:
    run = make_run()
    trained(run, 2)
    other = make_run("ema.decays=[0.9,0.5]")
    saved = resuming.newest(other.stage, other.world, other.engine, other.ema)
    assert saved is not None
    (sentence,) = resuming.put_back(other.stage, saved, other.engine, other.ema)
    assert sentence == "ema/0.5 is not in the checkpoint and begins anew at the weights of update 2"
    assert torch.equal(other.ema.tensors["ema/0.9"][0], run.ema.tensors["ema/0.9"][0])
    assert torch.equal(other.ema.tensors["ema/0.5"][0], run.engine.partition.masters[0])


def test_warnings_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    resuming.warn("x is y")
    assert capsys.readouterr() == ("", "warning: x is y\n")
