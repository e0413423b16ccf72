import json
from pathlib import Path

import torch

from bigdiff.config.load import load_stage
from bigdiff.data import manifest
from bigdiff.data.latents import LatentSet
from bigdiff.train import setup


def test_the_run_folder_explains_itself(toy: Path, tmp_path: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"))
    with LatentSet(stage.data.latents) as latents:
        setup.describe(tmp_path, stage, [latents])
    assert load_stage(str(tmp_path / "config.yaml")) == stage
    about = json.loads((tmp_path / "versions.json").read_text())
    assert about["latents"] == {stage.data.latents: manifest.fingerprint(Path(stage.data.latents))}
    assert torch.__version__.startswith(about["versions"]["torch"])
