"""The terms on held-out pictures of real autoencoder runs: the same for any processes, of both weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from bigdiff.checkpoint import layout
from bigdiff.report import page

MODEL = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "mid_attention": False}
MODEL |= {"latent_channels": 4, "perceptual_weight": 0, "disc_start": 2, "disc_channels": 8, "disc_layers": 2}
OPTIM = {"lr": 1e-3, "weight_decay": 0.0, "warmup_steps": 0, "grad_clip": 0.0}
KINDS = {"plain": [], "zero3": ["engine.zero_stage=3", "ema.decays=[]", "model.frozen=[vae.encoder.*]"]}


def test_any_processes_find_the_same(
    image_set: Callable[..., Path], tmp_path: Path, train_all: Callable[..., list[str]]
) -> None:
    trained, held = image_set(20, 20), image_set(18, 18, name="held")
    stage = {"name": "tiny", "runs": str(tmp_path), "resolution": 16, "steps": 5, "text_dropout": 0.0, "optim": OPTIM}
    stage |= {"data": {"images": str(trained), "window": 2, "crop": "random"}, "batch": {"total": 12, "micro": 2}}
    stage |= {"model": {"autoencoder": MODEL}, "ema": {"decays": [0.5]}, "log": {"every": 1}}
    stage |= {"validation": {"set": str(held), "every": 2, "samples": 36}}
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(stage))
    for size in (1, 2, 3):
        jobs = [[str(tmp_path / "stage.yaml"), f"name={kind}-{size}", *more] for kind, more in KINDS.items()]
        assert train_all(jobs, size) == []
    for kind in KINDS:
        alone = validations(tmp_path / f"{kind}-1")
        assert list(alone) == [2, 4, 5]  # and at the end
        terms = [f"{begun}{term}" for term in ("l1", "psnr", "kl") for begun in ("", "error_")] + ["loss", "error"]
        suffixes = ("",) if kind == "zero3" else ("", "_ema")
        assert alone[5].keys() == {f"validation/{term}{suffix}" for term in terms for suffix in suffixes}
        if len(suffixes) == 2:
            assert alone[5]["validation/loss"] != alone[5]["validation/loss_ema"]
        for size in (2, 3):
            several = validations(tmp_path / f"{kind}-{size}")
            assert list(several) == list(alone)
            for step, values in alone.items():
                assert several[step] == pytest.approx(values, rel=1e-4)
    html = page.rendered(tmp_path / "plain-2")
    assert "validation psnr" in html and "There is no validation" not in html


def validations(run: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (run / layout.METRICS).read_text().splitlines()]
    found = {line["step"]: {key: one for key, one in line.items() if key.startswith("validation/")} for line in lines}
    return {step: one for step, one in found.items() if one}
