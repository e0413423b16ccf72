"""The evaluation door as a user types it, with a small pipeline and small networks."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import random_inception as random_inception
from networks import tiny_clip as tiny_clip
from PIL import Image
from safetensors.torch import load_file, save_file

from bigdiff.config.evaluation import BLOCK

ROOT = Path(__file__).resolve().parents[2]
DOOR = ROOT / "launch" / "evaluate.py"
MANY = 5 * BLOCK
Call = Callable[..., int]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [str(DOOR), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(DOOR), run_name="__main__")
        return int(ended.value.code or 0)

    return run


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "real").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "real" / f"{number}.png")
    (tmp_path / "prompts.txt").write_text("".join(f"picture {number}\n" for number in range(MANY)))
    return tmp_path


def words(place: Path, pipeline: Path, clip: str, output: str = "out") -> list[object]:
    return [
        *("--pipeline", pipeline, "--prompts", place / "prompts.txt", "--steps", 2, "--output", place / output),
        *("--clip", clip, "--cmmd-clip", clip, "--real", place / "real", "--cache", place / "cache"),
    ]


def test_a_sweep_is_a_table_and_is_not_done_twice(
    call: Call, place: Path, pipeline: Path, tiny_clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*words(place, pipeline, tiny_clip), "--images", 8, "--guidance", "1,4"]
    assert call(*asked, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "would judge 8 pictures at each guidance of 1, 4" in said and not (place / "out").exists()
    assert call(*asked) == 0
    said = capsys.readouterr().out
    assert "| guidance | images | clip_score | clip_cosine | cmmd |" in said
    assert [line.split("|")[1].strip() for line in said.splitlines() if line.startswith("| ")][1:] == ["1", "4"]
    points = json.loads((place / "out" / "results.json").read_bytes())["points"]
    assert [point["guidance"] for point in points] == [1.0, 4.0]
    assert call(*asked, "--dry-run") == 0
    assert "done: guidance-1, guidance-4" in capsys.readouterr().out


def test_a_killed_evaluation_goes_on(call: Call, place: Path, pipeline: Path, tiny_clip: str) -> None:
    command = [sys.executable, str(DOOR), *map(str, words(place, pipeline, tiny_clip))]
    blocks = place / "out" / "guidance-3" / "blocks"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True) as begun:
        until = time.monotonic() + 300
        while not list(blocks.glob("*.safetensors")):
            assert begun.poll() is None and time.monotonic() < until, begun.stderr and begun.stderr.read()[-2000:]
            time.sleep(0.02)
        os.killpg(begun.pid, signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in blocks.glob("*.safetensors")}
    assert 0 < len(before) < MANY / BLOCK
    assert not (place / "out" / "results.json").exists()
    assert call(*words(place, pipeline, tiny_clip)) == 0
    after = {path: path.stat().st_mtime_ns for path in blocks.glob("*.safetensors")}
    assert len(after) == MANY / BLOCK and before.items() <= after.items()
    assert call(*words(place, pipeline, tiny_clip, "undisturbed")) == 0
    first, second = (
        json.loads((place / name / "results.json").read_bytes())["points"] for name in ("out", "undisturbed")
    )
    assert first == second


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (("--scheduler", "best"), "scheduler 'best' is unknown: take one of ddim"),
        (("--steps", "1001"), "steps=1001 are more than the 1000 timesteps"),
        (("--guidance", "3,x"), "--guidance '3,x' must be numbers"),
        (("--images", "99999"), "--images 99,999 is more than the 320 of --prompts"),
        (("--clip", "absent.pt"), "--clip: there is no weights file absent.pt; download open_clip_model.safetensors"),
        (("--inception", "absent.pth"), "--inception: there is no weights file absent.pth; download pt_inception"),
        (("--prompts", "absent.txt"), "cannot read the prompts in absent.txt"),
        (("--pipeline", "absent"), "absent is not a pipeline: it has no model_index.json"),
        (("--real", "absent"), "absent is no folder: name one of pictures"),
        (("--few-images",), "--few-images has no effect here"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    call: Call,
    place: Path,
    pipeline: Path,
    tiny_clip: str,
    changed: tuple[str, ...],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(*words(place, pipeline, tiny_clip), *changed) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and sentence in said
    assert not (place / "out" / "results.json").exists()


def test_prompts_with_an_empty_line_are_refused(
    call: Call, place: Path, pipeline: Path, tiny_clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "prompts.txt").write_text("one\n\ntwo\n")
    assert call(*words(place, pipeline, tiny_clip)) == 2
    assert "prompts.txt line 2 is empty" in capsys.readouterr().err


def test_fewer_pictures_than_features_are_refused(
    call: Call, place: Path, pipeline: Path, tiny_clip: str, random_inception: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*words(place, pipeline, tiny_clip), "--inception", random_inception]
    assert call(*asked) == 2
    said = capsys.readouterr().err
    assert "prompts.txt are 320 pictures, whose covariance of 2,048 features is singular" in said
    assert "--few-images" in said


def test_pictures_that_are_not_finite_are_refused(
    call: Call, place: Path, pipeline: Path, tiny_clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(pipeline, place / "broken"))
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["decoder.conv_out.bias"] = torch.full_like(state["decoder.conv_out.bias"], float("nan"))
    save_file(state, weights)
    assert call(*words(place, broken, tiny_clip), "--images", 2) == 2
    said = capsys.readouterr().err
    assert f"--pipeline {broken}: picture 0 has values that are not finite" in said


def test_an_output_of_something_else_is_refused(
    call: Call, place: Path, pipeline: Path, tiny_clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*words(place, pipeline, tiny_clip), "--images", 2]
    assert call(*asked) == 0
    for changed, what in (
        (("--seed", 1), "drawing.seed (0; here 1)"),
        (("--clip-prefix", "A photo depicts "), "networks.clip_cosine (clip 1"),
    ):
        assert call(*asked, *changed) == 2
        assert f"holds an evaluation with another {what}" in capsys.readouterr().err
    (place / "full").mkdir()
    (place / "full" / "letter.txt").write_text("dear")
    assert call(*asked, "--output", place / "full") == 2
    assert "is not empty, and no evaluation" in capsys.readouterr().err
