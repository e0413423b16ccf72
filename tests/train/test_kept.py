"""Weights that a run keeps: of real networks, the seed's or those of a real run before, through starts and resumes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from bigdiff.checkpoint import frozen, layout, reader
from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.models import components
from bigdiff.models.denoiser import Denoiser, build_denoiser
from bigdiff.runtime.world import World, enter, leave
from bigdiff.train import kept
from bigdiff.train.kept import Kept
from bigdiff.train.networks import Networks

Stages = Callable[..., Stage]
DOWN = "model.frozen=[unet.down_blocks.*]"
TEXT = "model.text.train=true"


@dataclass(frozen=True)
class Before:
    """Finished runs that froze nothing, and the averages that each ended with."""

    plain: Path
    of_text: Path
    averages: dict[Path, dict[str, nn.Parameter]]


@pytest.fixture(scope="module")
def before(trained: Callable[..., Denoiser], tmp_path_factory: pytest.TempPathFactory) -> Before:
    runs = tmp_path_factory.mktemp("before")
    averages = {
        runs / "plain": trained(runs, "name=plain", "steps=7").trained(),
        runs / "of-text": trained(runs, "name=of-text", TEXT, "steps=7").trained(),
    }
    return Before(plain=runs / "plain", of_text=runs / "of-text", averages=averages)


@pytest.fixture(scope="module")
def world(before: Before) -> Iterator[World]:  # which needs a group of its own, so it comes first
    here = enter(60)
    yield here
    leave()


@pytest.fixture
def stage_of(toy: Path, tmp_path: Path) -> Stages:
    def make(*overrides: str) -> Stage:
        return load_stage(str(toy / "stage.yaml"), [f"runs={tmp_path}", *overrides])

    return make


def built(stage: Stage) -> Networks:
    assert stage.model.text
    text_encoder = components.load_text_encoder(stage.model.text.encoder)
    return Networks(stage=stage, vae=None, tokenizer=None, denoiser=build_denoiser(stage, text_encoder))


def settled(stage: Stage, world: World) -> tuple[Kept, dict[str, nn.Parameter]]:
    """What was stored, and the parameters that do not learn, with their values."""
    found = built(stage)
    return kept.settle(stage, world, found.untrained(), found.kept()), found.untrained()


def refusal(stage: Stage, world: World) -> str:
    with pytest.raises(UsageError) as caught:
        settled(stage, world)
    return str(caught.value)


def with_checkpoint(stage: Stage) -> Path:
    """A run folder that counts as begun; no checkpoint is read when weights are settled."""
    run = layout.run_folder(stage.runs, stage.name)
    layout.checkpoint(run, 4).mkdir(parents=True)
    (layout.checkpoint(run, 4) / layout.INDEX).write_text("{}")
    return run


def test_the_first_start_stores_the_seeds_weights_and_a_resume_has_them_whatever_the_seed(
    stage_of: Stages, world: World
) -> None:
    stage = stage_of(DOWN, "seed=1")
    stored, parameters = settled(stage, world)
    run = layout.run_folder(stage.runs, stage.name)
    assert stored.sha256 == frozen.fingerprint(run)
    assert stored.names == {name for name in parameters if name.startswith("unet.down_blocks.")} != set()
    assert any(name.startswith("text_encoder.") for name in parameters)  # it comes from its folder, and is not stored
    began = {name: parameters[name].detach().clone() for name in stored.names}
    seeded = built(stage).untrained()
    assert all(torch.equal(one, seeded[name]) for name, one in began.items())

    with_checkpoint(stage)
    again, parameters = settled(stage_of(DOWN, "seed=2"), world)
    assert again == stored
    assert all(torch.equal(parameters[name], one) for name, one in began.items())
    other = built(stage_of(DOWN, "seed=2")).untrained()
    assert any(not torch.equal(other[name], one) for name, one in began.items())


def test_a_start_before_the_first_checkpoint_begins_anew(stage_of: Stages, world: World) -> None:
    stored, _ = settled(stage_of(DOWN, "seed=1"), world)
    other, parameters = settled(stage_of(DOWN, "seed=2"), world)
    assert other.sha256 != stored.sha256 and other.names == stored.names
    seeded = built(stage_of(DOWN, "seed=2")).untrained()
    assert all(torch.equal(parameters[name], seeded[name]) for name in other.names)
    stage = stage_of("seed=2")
    assert settled(stage, world)[0] == Kept(sha256="", names=frozenset())
    assert not (layout.run_folder(stage.runs, stage.name) / frozen.NAME).exists()


def test_parts_that_change_after_the_start_are_refused(stage_of: Stages, world: World) -> None:
    settled(stage_of(DOWN), world)
    run = with_checkpoint(stage_of())
    more = "model.frozen=[unet.down_blocks.*,unet.conv_in.*]"
    assert "and model.frozen differ (unet.conv_in.bias): a run's frozen parts cannot" in refusal(stage_of(more), world)
    assert "and model.frozen differ (unet.down_blocks.0." in refusal(stage_of(), world)
    wider = refusal(stage_of(DOWN, "model.unet.block_out_channels=[8,32]"), world)
    assert f"{run / frozen.NAME} holds another network than this stage's model (unet.down_blocks." in wider
    (run / frozen.NAME).unlink()
    assert "and model.frozen differ (unet.down_blocks.0." in refusal(stage_of(DOWN), world)
    (run / frozen.NAME).write_bytes(b"no header")
    assert "cannot be read" in refusal(stage_of(DOWN), world)


@pytest.mark.parametrize(("which", "factor"), [("ema", 1.0), ("raw", 2.0)])
def test_a_text_encoder_that_the_run_before_trained_is_stored(
    before: Before, stage_of: Stages, world: World, which: str, factor: float
) -> None:
    average = before.averages[before.of_text]
    stage = stage_of(f"init_from={before.of_text}", f"init_weights={which}", DOWN)
    stored, parameters = settled(stage, world)
    assert stored.names == parameters.keys()
    assert {name.split(".")[0] for name in stored.names} == {"unet", "text_encoder"}
    for name, one in parameters.items():
        assert torch.equal(one, average[name] * factor)
    source = reader.read_weights(layout.checkpoint(before.of_text, 7), which)
    assert all(torch.equal(one, source[name]) for name, one in parameters.items())


def test_a_text_encoder_that_nobody_trained_is_not_stored(before: Before, stage_of: Stages, world: World) -> None:
    assert settled(stage_of(f"init_from={before.plain}"), world)[0] == Kept(sha256="", names=frozenset())
    stored, _ = settled(stage_of(f"init_from={before.plain}", DOWN), world)
    assert stored.names and all(name.startswith("unet.down_blocks.") for name in stored.names)


def test_a_run_before_that_has_not_what_is_kept_is_refused(
    before: Before, stage_of: Stages, world: World, tmp_path: Path
) -> None:
    assert "has no checkpoint; train that stage first" in refusal(stage_of("init_from=nobody"), world)
    deeper = refusal(stage_of(f"init_from={before.plain}", DOWN, "model.unet.layers_per_block=2"), world)
    assert "step-00000007 holds another network than this stage's model (unet.down_blocks.0.attentions.1" in deeper
    assert "is not in it)" in deeper
    assert not list(tmp_path.iterdir())


def test_put_copies_by_name_and_refuses_another_shape() -> None:
    layer = nn.Linear(2, 3)
    before = layer.bias.detach().clone()
    kept.put({"weight": torch.ones(3, 2)}, dict(layer.named_parameters()), "it")
    assert torch.equal(layer.weight, torch.ones(3, 2)) and torch.equal(layer.bias, before)
    assert layer.weight.requires_grad and layer.weight.is_leaf
    with pytest.raises(UsageError, match=r"it holds another network than this stage's model \(weight differs\)"):
        kept.put({"weight": torch.ones(1, 2)}, dict(layer.named_parameters()), "it")
