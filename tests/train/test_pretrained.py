"""A stage that begins with others' UNet: real networks under a real engine, in bf16, through a resume."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from bigdiff.checkpoint import layout, reader
from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.models import components, original
from bigdiff.models.original_settings import attends
from bigdiff.runtime.files import sha256
from bigdiff.train import pretrained

Ranks = Callable[..., list[str]]
RUN = """
import json, sys
from pathlib import Path
from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.watchdog import Watchdog
from bigdiff.runtime.world import enter
from bigdiff.train import loop, setup
world = enter(60)
for options in json.loads(sys.argv[2]):
    if options[0] == "remove":
        Path(options[1]).unlink(missing_ok=True)
        continue
    try:
        stage = load_stage(sys.argv[1], options)
        with setup.building(stage, world, Stop(), Watchdog(world, Path(stage.runs), 60)) as run:
            loop.train(run)
    except UsageError as error:
        print("refused", error)
"""
SIZES = ["model.unet.block_out_channels=[32,64]", "model.unet.norm_num_groups=32"]
STILL = ["batch.micro=4", "optim.lr=1e-12", "optim.warmup_steps=0", "optim.weight_decay=0"]  # stays where it begins
HALF = "engine.precision=bf16"


def published(toy: Path, file: Path) -> dict[str, Tensor]:
    """Write a UNet of the stage's sizes to `file`; gives it by the names of a run's parameters."""
    config = load_stage(str(toy / "stage.yaml"), SIZES).model.unet
    torch.manual_seed(11)
    unet = components.build_unet(config, 4)
    own = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    places = original.unet_places(own, attends(config), config.layers_per_block)
    safetensors.torch.save_file(original.to_original(places, unet.state_dict()), file)
    return {f"unet.{name}": tensor.clone() for name, tensor in unet.state_dict().items()}


@pytest.fixture(scope="module")
def runs(run_ranks: Ranks, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor], str]:
    """The folder of the runs, the weights that they began with, and what was said."""
    folder = tmp_path_factory.mktemp("runs")
    file = folder / "published.safetensors"
    weights = published(toy, file)
    given = [f"init_unet={file}", *STILL]
    jobs = [
        ["name=whole", *given, "steps=1"],
        ["name=half", *given, HALF, "model.text.train=true", "steps=1"],
        ["name=scattered", *given, HALF, "engine.zero_stage=3", "steps=1"],
        ["name=part", *given, HALF, "model.frozen=[unet.down_blocks.*]", "steps=1"],
        ["name=whole", *STILL, "steps=2"],
        ["remove", str(file)],
        ["name=half", *given, HALF, "model.text.train=true", "steps=2"],
        ["name=other", *given, "steps=1"],
    ]
    told = json.dumps([one if one[0] == "remove" else [f"runs={folder}", *SIZES, *one] for one in jobs])
    output, _ = run_ranks(RUN, 2, str(toy / "stage.yaml"), told)
    return folder, weights, output


def raw(folder: Path, name: str, step: int = 1) -> dict[str, Tensor]:
    return reader.read_weights(layout.checkpoint(folder / name, step), "raw")


@pytest.mark.parametrize("name", ["whole", "half", "scattered", "part"])
def test_a_run_begins_with_the_published_weights_unrounded(
    runs: tuple[Path, dict[str, Tensor], str], toy: Path, name: str
) -> None:
    folder, weights, _ = runs
    found = raw(folder, name)
    wanted = weights
    if name == "half":
        text = components.load_text_encoder(str(toy / "text_encoder"))
        wanted = weights | {f"text_encoder.{key}": one for key, one in text.state_dict().items()}
    if name == "part":
        kept = safetensors.torch.load_file(folder / name / "frozen.safetensors")
        assert kept and all("down_blocks" in key for key in kept)
        found = found | kept
    assert found.keys() == wanted.keys()
    for key, one in wanted.items():
        torch.testing.assert_close(found[key], one, rtol=0, atol=1e-9, msg=key)
    average = reader.read_weights(layout.checkpoint(folder / name, 1), "ema")
    assert all(torch.allclose(one, wanted[key], rtol=0, atol=1e-8) for key, one in average.items())


def test_what_it_was_is_recorded(runs: tuple[Path, dict[str, Tensor], str]) -> None:
    folder, _, output = runs
    record = pretrained.read(folder / "whole" / pretrained.FILE)
    assert record.init_unet == record.file == str(folder / "published.safetensors")
    digests = {pretrained.read(folder / name / pretrained.FILE).sha256 for name in ("whole", "half", "scattered")}
    assert digests == {record.sha256} and len(record.sha256) == 64
    assert f"UNet weights from {record.file} (sha256 {record.sha256[:16]}, in pretrained.json)" in output


def test_a_resume_needs_the_record_and_not_the_file(runs: tuple[Path, dict[str, Tensor], str]) -> None:
    folder, weights, output = runs
    resumed = raw(folder, "half", 2)
    assert all(torch.allclose(resumed[key], one, rtol=0, atol=1e-8) for key, one in weights.items())
    refused = [line for line in output.splitlines() if line.startswith("refused")]
    assert len(refused) == 2
    assert "init_unet is '', the run began with" in refused[0]
    assert "there is no such file" in refused[1]


class Alone:
    """A world of one that needs no process group."""

    def first_does(self, work: Callable[[], object]) -> object:
        return work()


def test_an_earlier_start_without_a_checkpoint_binds_the_next(toy: Path, tmp_path: Path) -> None:
    from bigdiff.train import networks

    file, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    published(toy, file)
    options = [f"runs={tmp_path}", *SIZES]

    def settle(*more: str) -> dict[str, Tensor]:
        stage = load_stage(str(toy / "stage.yaml"), [*options, *more])
        return pretrained.settle(stage, Alone(), networks.load(stage).module)  # type: ignore[arg-type]

    assert settle() == {}
    first = settle(f"init_unet={file}")
    assert pretrained.read(tmp_path / "toy" / pretrained.FILE).sha256 == sha256(file)
    again = settle(f"init_unet={file}")
    assert first.keys() == again.keys() and all(torch.equal(first[key], one) for key, one in again.items())
    other.write_bytes(file.read_bytes())
    for more in ((), (f"init_unet={other}",)):
        with pytest.raises(UsageError, match=r"an earlier start began with .*delete .*pretrained\.json"):
            settle(*more)
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({name: one + 1 for name, one in tensors.items()}, file)
    with pytest.raises(UsageError, match="is not what an earlier start of this run began with"):
        settle(f"init_unet={file}")
    record = tmp_path / "toy" / pretrained.FILE
    record.write_text('{"format": 2}')
    with pytest.raises(UsageError, match="its format is 2"):
        settle(f"init_unet={file}")
