"""A real run on its held-out samples; by how many processes is in tests/e2e/test_validation.py."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bigdiff.config.load import load_stage
from bigdiff.runtime.world import World
from bigdiff.train import networks, validating
from bigdiff.train.held import opened
from bigdiff.train.run import Run


def test_a_run_without_held_out_samples_has_nothing_to_say(make_run: Callable[..., Run]) -> None:
    run = make_run()
    assert validating.validated(run) == {} and not validating.due(run)


def test_both_weights_are_validated_where_there_is_an_average(make_run: Callable[..., Run]) -> None:
    run = make_run()
    (raw, masters), (average, tensors) = validating.asked(run)
    assert (raw, average) == ("", "_ema")
    assert masters is run.engine.partition.masters and tensors is run.ema.tensors["ema/0.9"]
    assert [suffix for suffix, _ in validating.asked(make_run("name=bare", "ema.decays=[]"))] == [""]


def test_sums_are_of_the_first_samples(alone: World, make_run: Callable[..., Run], toy: Path, tmp_path: Path) -> None:
    location = shutil.copytree(toy / "latents", tmp_path / "held")
    settings = [f"validation.set={location}", "validation.every=4", "validation.samples=24"]
    found = networks.load(load_stage(str(toy / "stage.yaml"), settings))
    run: Any = make_run()
    with opened(found, alone) as held:
        weights = {name: one.detach() for name, one in found.trained().items()}
        first, again = (validating.summed(run, held, weights) for _ in range(2))
    assert first == again and sum(first.counts) == 24
    assert torch.is_grad_enabled()
