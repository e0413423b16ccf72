"""The commands between images and pictures, run in this process: encode_latents, export, sample."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
Call = Callable[..., int]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    def run(door: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [door, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / door), run_name="__main__")
        return int(ended.value.code or 0)

    return run


def test_prompts_become_a_grid(call: Call, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = tmp_path / "grid.png"
    common = ("launch/sample.py", "--pipeline", pipeline, "--output", grid, "--steps", 3, "--scheduler", "dpm++")
    assert call(*common, "--prompt", "a", "--prompt", "b", "--dry-run") == 0
    assert not grid.exists()
    assert call(*common, "--prompt", "a red circle", "--prompt", "b", "--negative", "blue", "--guidance", 4) == 0
    assert "2 pictures" in capsys.readouterr().out
    with Image.open(grid) as picture:
        settings = json.loads(picture.text["settings"])  # type: ignore[attr-defined]
    assert settings["prompts"] == ["a red circle", "b"]
    assert (settings["scheduler"], settings["guidance"], settings["negative_prompt"]) == ("dpm++", 4.0, "blue")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--prompts", "none.txt", "--output", "x.png"), "cannot read the prompts in none.txt"),
        (("--prompt", "a", "--output", "x.jpg"), "must end in .png"),
        (("--prompt", "a"), "say where the pictures go"),
        (("--prompt", "a", "--folder", "x", "--seeds", "1,,2"), "must be whole numbers with commas"),
        (("--prompt", "a", "--folder", "x"), "is not a pipeline"),
        (("--prompt", "a", "--folder", "x", "--image", "none.png"), "--image none.png cannot be read"),
        (("--prompt", "a", "--folder", "x", "--upscale", "1"), "--upscale 1 must be above 1"),
        (("--count", "2", "--folder", "x", "--upscale", "2"), "--upscale is for models with text"),
        (("--prompt", "a", "--folder", "x", "--clip-guidance", "9"), "--clip-guidance needs CLIP's weights"),
        (("--prompt", "a", "--folder", "x", "--strength", "0.5"), "no effect without --image"),
        (("--prompt", "a", "--output", "x.png", "--scheduler", "best"), "unknown"),
        (("--prompt", "a", "--output", "x.png"), "is not a pipeline"),
    ],
)
def test_sample_refuses_with_one_sentence(
    call: Call, tmp_path: Path, arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("launch/sample.py", "--pipeline", tmp_path, *arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1


def test_a_run_becomes_a_pipeline(
    call: Call, trained: Callable[..., object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pipeline"
    assert call("launch/export.py", "--run", tmp_path / "toy", "--output", out) == 2
    trained(tmp_path)
    assert call("launch/export.py", "--run", tmp_path / "toy", "--output", out, "--dry-run") == 0
    assert not out.exists()
    assert call("launch/export.py", "--run", tmp_path / "toy", "--output", out, "--weights", "raw") == 0
    assert (out / "model_index.json").is_file()
    assert "step-00000007" in capsys.readouterr().out
    file = tmp_path / "toy.safetensors"
    single = ("launch/export.py", "--run", tmp_path / "toy", "--layout", "original", "--output", file)
    assert call(*single, "--dry-run") == 0
    assert "float32, original layout) to" in capsys.readouterr().out
    assert call(*single) == 2  # of 4 groups
    assert "the original code has 32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give --vae, --tokenizer, --resolution and --output"),
        (("--stage", "512px", "--vae", "x"), "one or the other"),
        (("--stage", "no-such-stage"), "unknown stage"),
        (("--stage", "512px", "resolutoin=3"), "resolutoin"),
    ],
)
def test_encode_refuses_with_one_sentence(
    call: Call, tmp_path: Path, arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("data_prep/encode_latents.py", "--images", tmp_path, *arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1


def test_encode_by_stage_and_by_names_agree(
    call: Call, toy: Path, image_set: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = image_set(3, 2)
    staged = ("data_prep/encode_latents.py", "--images", images, "--least-psnr", 0, "--stage", toy / "stage.yaml")
    latents = f"data.latents={tmp_path / 'a'}"
    assert call(*staged, "--dry-run", latents) == 0
    assert "would encode 2 of 2 shards, 5 images" in capsys.readouterr().out
    assert not (tmp_path / "a").exists()
    assert call(*staged, latents) == 0
    names = ("--vae", toy / "vae", "--tokenizer", toy / "tokenizer", "--resolution", 8, "--text-length", 12)
    rest = ("--images", images, "--least-psnr", 0, "--workers", 1, "--output", tmp_path / "b")
    assert call("data_prep/encode_latents.py", *names, *rest) == 0
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
