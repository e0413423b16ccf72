import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.engine import deepspeed

STAGE = {
    "name": "toy",
    "resolution": 64,
    "steps": 6,
    "data": {"latents": "none"},
    "batch": {"total": 8, "micro": 2},
    "model": {"vae": {"source": "none"}, "text": {"encoder": "none", "tokenizer": "none"}},
    "optim": {"lr": 0.01, "warmup_steps": 2},
}

SCRIPT = """
import json, sys, torch
from bigdiff.config.load import load_stage
from bigdiff.engine.deepspeed import Engine
from bigdiff.models.ema import Ema
from bigdiff.runtime.world import enter, leave
stage = load_stage(sys.argv[1], sys.argv[2:])
w = enter(120)
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.SiLU(), torch.nn.Linear(7, 3))
engine = Engine(net, dict(net.named_parameters()), stage, w)
x, y = torch.randn(48, 5), torch.randn(48, 3)
ema = Ema(engine.partition.masters, 0.9)
losses, norms = [], []
def advance(step):
    total = torch.zeros(())
    for k in range(engine.accumulation):
        at = step * 8 + (k * w.size + w.rank) * 2
        inputs = x[at:at + 2].to(torch.bfloat16 if engine.half else torch.float32)
        loss = (engine(inputs).float() - y[at:at + 2]).pow(2).mean()
        engine.backward(loss)
        engine.step(step)
        total += loss.detach() / engine.accumulation
    return float(w.mean(total))
for step in range(6):
    losses.append(advance(step))
    norms.append(float(engine.grad_norm()))
    ema.update(engine.partition.masters, step)
    if step == 2:
        kept = torch.cat(engine.partition.masters).clone(), {n: torch.cat(t) for n, t in engine.moments().items()}
weights = {n: t.flatten().tolist() for n, t in engine.gather(engine.partition.masters).items()}
engine.restore(*kept, 3)
again = [advance(step) for step in range(3, 6)]
averaged = {n: t.flatten().tolist() for n, t in engine.gather(ema.shadow).items()}
leave()
print(json.dumps({"losses": losses, "norms": norms, "weights": weights, "ema": averaged, "again": again}))
"""


def plain(stage: Stage) -> tuple[list[float], list[float], dict[str, list[float]], dict[str, list[float]]]:
    """The same six steps in plain torch on whole batches: losses, gradient norms, weights and a naive EMA."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.SiLU(), torch.nn.Linear(7, 3))
    x, y = torch.randn(48, 5), torch.randn(48, 3)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=stage.optim.weight_decay)
    shadow = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    losses, norms = [], []
    for step in range(6):
        warm = min(1.0, 1e-6 + (1 - 1e-6) * step / 2)
        optimizer.param_groups[0]["lr"] = 0.01 * warm
        loss = (net(x[step * 8 : step * 8 + 8]) - y[step * 8 : step * 8 + 8]).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)))
        optimizer.step()
        losses.append(float(loss.detach()))
        decay = min(0.9, (1 + step) / (10 + step))
        for name, weight in net.named_parameters():
            shadow[name] = decay * shadow[name] + (1 - decay) * weight.detach()
    weights = {name: weight.detach().flatten().tolist() for name, weight in net.named_parameters()}
    return losses, norms, weights, {name: weight.flatten().tolist() for name, weight in shadow.items()}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump(STAGE))
    return file


@pytest.mark.parametrize(("size", "zero_stage"), [(1, 1), (2, 1), (2, 2), (4, 1)])
def test_zero_steps_as_plain_torch_does(
    run_ranks: Callable[..., list[str]], toy: Path, size: int, zero_stage: int
) -> None:
    arguments = [str(toy), f"engine.zero_stage={zero_stage}"]
    told = [json.loads(output.splitlines()[-1]) for output in run_ranks(SCRIPT, size, *arguments)]
    losses, norms, weights, ema = plain(load_stage(str(toy)))
    for one in told:
        assert one["losses"] == pytest.approx(losses, abs=1e-6)
        assert one["norms"] == pytest.approx(norms, abs=1e-5)
        for name in weights:
            assert one["weights"][name] == pytest.approx(weights[name], abs=1e-6)
            assert one["ema"][name] == pytest.approx(ema[name], abs=1e-6)
        assert one["again"] == one["losses"][3:]  # restored in place: bit for bit


def test_bf16_over_fp32_masters_stays_near(run_ranks: Callable[..., list[str]], toy: Path) -> None:
    (output, _) = run_ranks(SCRIPT, 2, str(toy), "engine.precision=bf16")
    told = json.loads(output.splitlines()[-1])
    losses, *_ = plain(load_stage(str(toy)))
    assert told["losses"] == pytest.approx(losses, rel=2e-2)
    assert told["losses"] != pytest.approx(losses, abs=1e-7)  # it really computed in bf16
    assert told["again"] == told["losses"][3:]


def test_configuration_of_stage_one_and_two(toy: Path) -> None:
    stage = load_stage(str(toy))
    one = deepspeed.configuration(stage, 2, half=True)
    assert one["gradient_accumulation_steps"] == 2
    assert one["zero_optimization"]["stage"] == 1
    assert "data_types" not in one  # would switch to the optimizer class with a full gradient buffer
    two = deepspeed.configuration(load_stage(str(toy), ["engine.zero_stage=2"]), 2, half=True)
    assert two["data_types"] == {"grad_accum_dtype": "fp32"}


def test_precision_follows_the_device(toy: Path) -> None:
    stage = load_stage(str(toy))
    assert not deepspeed.bf16(stage, torch.device("cpu"))
    assert deepspeed.bf16(stage, torch.device("cuda", 0))
    assert deepspeed.bf16(load_stage(str(toy), ["engine.precision=bf16"]), torch.device("cpu"))
