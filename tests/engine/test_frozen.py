"""Frozen modules stay out of ZeRO-3 and in use."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bigdiff.engine.frozen import moved, set_apart


class Parent(nn.Module):
    """A trained and a frozen child, and a container with one of each."""

    def __init__(self) -> None:
        super().__init__()
        self.trained, self.frozen = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        self.activation = nn.SiLU()
        self.many = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.frozen.requires_grad_(False)
        self.many[1].requires_grad_(False)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        output = self.activation(self.frozen(self.trained(given)))
        for one in self.many:
            output = one(output)
        return output


def test_what_does_not_learn_becomes_an_attribute() -> None:
    parent = Parent()
    frozen, given = parent.frozen, torch.ones(1, 2)
    before = parent(given)
    trained = [one for one in parent.parameters() if one.requires_grad]
    assert set_apart(parent, trained) == [frozen]
    assert parent.frozen is frozen
    assert torch.equal(parent(given), before)
    assert [name for name, _ in parent.named_children()] == ["trained", "activation", "many"]
    # a container finds its members by number, so its frozen one stays
    assert {id(one) for one in trained} < {id(one) for one in parent.parameters()}
    moved([frozen], torch.device("cpu"), torch.float64)
    assert {one.dtype for one in parent.frozen.parameters()} == {torch.float64}


RANKS = """
import sys, torch
from bigdiff.config.load import load_stage
from bigdiff.engine.deepspeed import Engine
from bigdiff.models import components
from bigdiff.models.denoiser import Denoiser
from bigdiff.runtime.world import enter, leave
w = enter(120)
def train(*settings):
    stage = load_stage(sys.argv[1], [*settings, "engine.gradient_checkpointing=true"])
    torch.manual_seed(0)
    unet = components.build_unet(stage.model.unet, stage.latent_size)
    unet.enable_gradient_checkpointing()
    denoiser = Denoiser(unet, components.load_text_encoder(stage.model.text.encoder), False)
    # frozen, too: a module, a member of a container, and one of a module's two parameters
    unet.mid_block.requires_grad_(False)
    unet.down_blocks[0].resnets[0].requires_grad_(False)
    unet.conv_in.bias.requires_grad_(False)
    tokens = torch.arange(24).reshape(2, 12)
    text = denoiser.text_encoder
    before = {name: one.detach().clone() for name, one in denoiser.named_parameters() if not one.requires_grad}
    states = denoiser.states(tokens)
    engine = Engine(denoiser, denoiser.trained(), stage, w)
    x = torch.randn(6, 2, 2, 4, 4, generator=torch.Generator().manual_seed(w.rank))
    losses = []
    for step in range(3):
        for number in range(engine.accumulation):
            prediction = engine(x[2 * step + number], torch.tensor([7, 700]), tokens)
            loss = (prediction - 1).square().mean()
            engine.backward(loss)
            stepped = engine.step(step)
        losses.append(float(w.mean(loss)))
    assert stepped.norm.isfinite()
    assert denoiser.text_encoder is text and torch.equal(denoiser.states(tokens), states)
    assert all(torch.equal(one, before["text_encoder." + name]) for name, one in text.named_parameters())
    names = {name for name, _ in denoiser.named_parameters()}
    if "engine.zero_stage=3" in settings:
        assert not any(name.startswith(("text_encoder", "unet.mid_block")) for name in names)
        with __import__("deepspeed").zero.GatheredParameters([unet.conv_in.bias]):
            assert torch.equal(unet.conv_in.bias, before["unet.conv_in.bias"])
    return losses, engine.gather(engine.partition.masters), engine.partition.layout
one, three = train("engine.zero_stage=1"), train("engine.zero_stage=3")
assert one[2] == three[2]
assert not any(name.startswith(("text_encoder", "unet.mid_block")) for name in one[1])
worst = max(float((one[1][name] - three[1][name]).abs().max()) for name in one[1])
apart = max(abs(a - b) for a, b in zip(one[0], three[0], strict=True))
assert len(set(one[0])) == 3
print(worst, apart)
leave()
"""


def test_the_real_network_with_a_frozen_text_encoder_and_frozen_parts(
    run_ranks: Callable[..., list[str]], toy: Path
) -> None:
    for output in run_ranks(RANKS, 2, str(toy / "stage.yaml")):
        worst, apart = (float(value) for value in output.splitlines()[-1].split())
        assert apart == pytest.approx(0, abs=1e-6)
        # Adam divides tiny gradients by their own size: rounding moves single weights by up to the rate
        assert worst == pytest.approx(0, abs=2e-4)
