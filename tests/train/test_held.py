import shutil
from pathlib import Path

import pytest
import torch

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.runtime.world import World
from bigdiff.train import networks
from bigdiff.train.held import held_out, opened

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def stage_of(toy: Path, folder: Path, *more: str) -> Stage:
    location = shutil.copytree(toy / "latents", folder / "held", dirs_exist_ok=True)
    settings = [f"validation.set={location}", "validation.every=4", "validation.samples=16", *more]
    return load_stage(str(toy / "stage.yaml"), settings)


def test_nothing_is_drawn_but_by_sample(toy: Path, tmp_path: Path) -> None:
    drawn = [
        "diffusion.offset_noise=0.1",
        "data.memory_gb=1",
        "diffusion.timesteps=logit_normal",
        "diffusion.logit_std=1",
        "seed=7",
    ]
    found = held_out(stage_of(toy, tmp_path, *drawn))
    assert (found.seed, found.text_dropout, found.steps) == (0, 0.0, 2)
    assert (found.data.flip, found.data.crop, found.data.latents) == (0.0, "center", str(tmp_path / "held"))
    assert (found.diffusion.offset_noise, found.diffusion.timesteps) == (0.0, "uniform")
    assert found.diffusion.timestep_draws == "sobol" and found.data.memory_gb == 0.0


def losses(stage: Stage) -> tuple[list[float], list[int]]:
    torch.manual_seed(0)
    found = networks.load(stage)
    with opened(found, WORLD) as held, torch.no_grad():
        weights = {name: one.detach() for name, one in found.trained().items()}
        batches = held.batches()
        told = [held.losses(weights, batch) for _ in range(held.stage.steps) for batch in next(batches)]
        batches.close()
    losses, timesteps = (torch.cat(parts).tolist() for parts in zip(*told, strict=True))
    return losses, timesteps


def test_all_runs_see_the_same_samples_noise_and_timesteps(toy: Path, tmp_path: Path) -> None:
    whole, timesteps = losses(stage_of(toy, tmp_path, "batch.micro=8"))
    assert len(whole) == 16 and len(set(whole)) == 16
    assert sorted(number * 16 // 1000 for number in timesteps) == list(range(16))  # one in each sixteenth
    torch.manual_seed(5)
    again, _ = losses(stage_of(toy, tmp_path, "batch.micro=2", "data.window=1"))
    assert again == pytest.approx(whole, rel=1e-5)
    larger, _ = losses(stage_of(toy, tmp_path, "batch.total=16", "batch.micro=4"))
    assert larger == pytest.approx(whole, rel=1e-5)


def test_a_set_that_does_not_do_is_refused(toy: Path, tmp_path: Path) -> None:
    found = networks.load(stage_of(toy, tmp_path, "validation.samples=104"))
    with pytest.raises(UsageError, match=r"validation\.samples=104 is more than the 96 of"), opened(found, WORLD):
        pass
    manifest = tmp_path / "held" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"resolution": 8', '"resolution": 16'))
    found = networks.load(load_stage(str(toy / "stage.yaml"), [f"validation.set={tmp_path / 'held'}",
                          "validation.every=4", "validation.samples=16"]))  # fmt: skip
    with pytest.raises(UsageError, match=r"does not fit the stage: .*resolution"), opened(found, WORLD):
        pass
