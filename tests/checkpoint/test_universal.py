"""DeepSpeed's own checkpoints as the oracle: saved beside ours, converted by its ds_to_universal, compared bit for bit.

Two ranks train under ZeRO-1, 2 and 3. What they own is saved by DeepSpeed and by us; the converted files hold every
parameter whole. Then one and three ranks load ours, and other ones the universal checkpoint, and must own the same.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from bigdiff.checkpoint import layout, reader

if TYPE_CHECKING:
    from conftest import Forker

STAGE = {
    "name": "toy",
    "resolution": 64,
    "steps": 9,
    "data": {"latents": "none"},
    "batch": {"total": 12, "micro": 2},
    "model": {"vae": {"source": "none"}, "text": {"encoder": "none", "tokenizer": "none"}},
    "optim": {"lr": 0.01, "warmup_steps": 2},
}
PRECISION = {1: "fp32", 2: "bf16", 3: "bf16"}
STEPS = 5
PRELUDE = """
import contextlib, torch
from bigdiff.checkpoint import reader
from bigdiff.checkpoint.content import Content
from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.checkpoint.writer import CheckpointWriter
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Checkpoint
from bigdiff.engine import deepspeed as engine_module
folder, stages, world = Path(sys.argv[1]), sys.argv[2:], enter(120)
configured = engine_module.configuration
def network(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.SiLU(), torch.nn.Linear(7, 3))
def engine(setting, seed, universal=False):
    zero, precision = setting.split("-")
    stage = load_stage(str(folder / "stage.yaml"), [f"engine.zero_stage={zero}", f"engine.precision={precision}"])
    extra = {"checkpoint": {"load_universal": True}} if universal else {}
    engine_module.configuration = lambda *given: configured(*given) | extra
    net = network(seed)
    return engine_module.Engine(net, dict(net.named_parameters()), stage, world)
"""
SAVE = """
for setting in stages:
    made = engine(setting, 0)
    random = torch.Generator().manual_seed(world.rank)
    kind = torch.bfloat16 if made.half else torch.float32
    for step in range(5):
        for _ in range(made.accumulation):
            output = made(torch.randn(2, 5, generator=random).to(kind)).float()
            made.backward((output - torch.randn(2, 3, generator=random)).pow(2).mean())
            made.step(step)
    run = folder / setting
    made._engine.save_checkpoint(str(run / "theirs"), tag="step5", save_latest=False)
    content = Content(partition=made.partition, tensors=made.moments(), state=TrainState(step=5, samples_seen=60),
                      identity=Identity(seed=0, manifest="m", total=12, order="o"), about={})
    writer = CheckpointWriter(run, world, made.partition, list(content.tensors), Checkpoint())
    writer.save(content)
    writer.wait(world)
"""
CONVERT = """
import runpy
setting = sys.argv[1]
sys.argv = ["ds_to_universal", "--input_folder", f"{setting}/theirs/step5", "--output_folder",
            f"{setting}/theirs/universal", "--num_extract_workers", "1", "--num_merge_workers", "1",
            "--inject_missing_state"]
runpy.run_module("deepspeed.checkpoint.ds_to_universal", run_name="__main__")
"""
LOAD = """
def whole(made, tensors):
    return {name: tensor.flatten().tolist() for name, tensor in made.gather(tensors).items()}
def held(made):
    tensors = {"master": made.partition.masters, **made.moments()}
    return {name: whole(made, parts) for name, parts in tensors.items()}
found = {}
for setting in stages:
    ours = engine(setting, 1)
    names = reader.Names(needed=("master", "exp_avg", "exp_avg_sq"))
    saved = reader.load(folder / setting, world, ours.partition, names, sys.stderr.write)
    moments = {name: saved.vectors[name] for name in ("exp_avg", "exp_avg_sq")}
    ours.restore(saved.vectors["master"], moments, saved.state.updates)
    theirs = engine(setting, 2, universal=True)
    theirs._engine.load_checkpoint(str(folder / setting / "theirs"), tag="universal")
    found[setting] = [held(ours), held(theirs)]
say(found=found)
"""


@pytest.fixture(scope="module")
def settings(engines: "Forker", tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of two ranks by ZeRO stage and precision, saved by both sides, converted."""
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "stage.yaml").write_text(yaml.safe_dump(STAGE))
    found = {f"{zero}-{precision}": folder / f"{zero}-{precision}" for zero, precision in PRECISION.items()}
    engines.run(PRELUDE + SAVE, 2, folder, *found)
    converting = [engines.start(CONVERT, 1, run)[0] for run in found.values()]
    assert [one.ended(120) for one in converting] == [0] * 3, converting[0].err.read_text()[-3000:]
    return found


def universal(run: Path, name: str, file: str) -> torch.Tensor:
    held = torch.load(run / "theirs" / "universal" / "zero" / name / f"{file}.pt", weights_only=True)
    tensor: torch.Tensor = held["param"] if isinstance(held, dict) else held
    return tensor


def test_every_parameter_is_what_deepspeed_saved(settings: dict[str, Path]) -> None:
    for setting, run in settings.items():
        for file, which in (("fp32", "raw"), ("exp_avg", "exp_avg"), ("exp_avg_sq", "exp_avg_sq")):
            ours = reader.read_weights(layout.checkpoint(run, STEPS), which)
            assert len(ours) == 6
            for name, weight in ours.items():
                theirs = universal(run, name, file).float().reshape(weight.shape)
                assert torch.equal(weight, theirs), (setting, file, name)
                assert bool(weight.any())


@pytest.mark.parametrize("size", [1, 3])
def test_other_numbers_of_ranks_load_what_the_universal_one_gives(
    engines: "Forker", settings: dict[str, Path], size: int
) -> None:
    folder = next(iter(settings.values())).parent
    some = list(settings) if size == 1 else ["1-fp32", "3-bf16"]
    for ((told,),) in [[lines] for lines in engines.run(PRELUDE + LOAD, size, folder, *some)]:
        found: dict[str, Any] = told["found"]
        for setting, (ours, theirs) in found.items():
            assert ours.keys() == theirs.keys() == {"master", "exp_avg", "exp_avg_sq"}
            for vector, weights in ours.items():
                assert weights == theirs[vector], (setting, vector)
                file = "fp32" if vector == "master" else vector
                for name, values in weights.items():
                    assert values == universal(settings[setting], name, file).float().flatten().tolist()
