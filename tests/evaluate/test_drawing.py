"""What is drawn for prompts, seeds and lines, and what lies in the folder after a stop, or drawn otherwise."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigdiff.config.drawing import Drawing
from bigdiff.config.errors import UsageError
from bigdiff.evaluate import drawing, sampling
from bigdiff.evaluate.sampling import Sampling
from bigdiff.runtime.files import sha256

PROMPTS = ("a red circle", "a blue square")


def two(pipeline: Path, **changed: Any) -> Drawing:
    return replace(Drawing(pipeline=pipeline, prompt=PROMPTS, steps=2, batch=2), **changed)


def read(file: Path) -> tuple[np.ndarray, dict[str, Any]]:
    with Image.open(file) as picture:
        return np.asarray(picture).astype(int), json.loads(picture.text["settings"])  # type: ignore[attr-defined]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_prompt_is_drawn_with_each_seed_as_with_that_seed_alone(pipeline: Path, tmp_path: Path) -> None:
    drawing.run(two(pipeline, seeds=(5, 3), folder=tmp_path / "all", batch=3), print)
    assert names(tmp_path / "all") == ["00000.png", "00001.png", "00002.png", "00003.png"]
    loaded = sampling.load(pipeline)
    for column, seed in enumerate((5, 3)):
        alone = sampling.sample(loaded, PROMPTS, Sampling(steps=2, seed=seed))
        for place, expected in enumerate(alone):
            pixels, about = read(tmp_path / "all" / f"{2 * place + column:05d}.png")
            assert np.abs(pixels - np.asarray(expected).astype(int)).max() <= 1
            assert (about["prompt"], about["seed"], about["place"]) == (PROMPTS[place], seed, place)
            assert (about["scheduler"], about["steps"], about["guidance"]) == ("ddim", 2, 3.0)


def test_a_line_with_a_seed_is_drawn_as_alone_and_others_as_in_their_place(pipeline: Path, tmp_path: Path) -> None:
    lines = [
        {"prompt": PROMPTS[1], "negative": "dark", "seed": 9},
        {"prompt": PROMPTS[1]},
        {"prompt": PROMPTS[0], "negative": ""},
    ]
    file = tmp_path / "many.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    drawing.run(two(pipeline, prompt=(), prompts=file, seeds=(4,), negative="grey", folder=tmp_path / "all"), print)
    loaded = sampling.load(pipeline)
    settings = Sampling(steps=2, seed=4, negative_prompt="grey")
    expected = [
        *sampling.sample(loaded, [PROMPTS[1]], replace(settings, seed=9, negative_prompt="dark")),
        *sampling.sample(loaded, [PROMPTS[1]], settings, first=1),
        *sampling.sample(loaded, [PROMPTS[0]], replace(settings, negative_prompt=""), first=2),
    ]
    for number, one in enumerate(expected):
        pixels, about = read(tmp_path / "all" / f"{number:05d}.png")
        assert np.abs(pixels - np.asarray(one).astype(int)).max() <= 1
        assert about["negative"] == ("dark", "grey", "")[number]


def test_what_is_there_is_not_drawn_again_and_what_is_missing_is(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, wanted = (
        tmp_path / "all",
        two(pipeline, seeds=(0, 1), folder=tmp_path / "all", output=tmp_path / "grid.png"),
    )
    drawing.run(wanted, print)
    before = {path.name: (path.stat().st_mtime_ns, read(path)[0]) for path in folder.iterdir()}
    grid = read(wanted.output or folder)[0]
    (folder / "00002.png").unlink()
    (folder / "00003.png.77.tmp").write_bytes(b"half")  # of a killed process
    copied = tmp_path / "elsewhere"
    shutil.copytree(pipeline, copied)
    drawing.run(replace(wanted, pipeline=copied, batch=1), print)
    assert "4 pictures, 3 of them from before" in capsys.readouterr().out
    assert names(folder) == sorted(before)
    for name, (time, pixels) in before.items():
        assert ((folder / name).stat().st_mtime_ns == time) == (name != "00002.png")
        assert np.abs(read(folder / name)[0] - pixels).max() <= 1
    assert np.abs(read(wanted.output or folder)[0] - grid).max() <= 1


def test_pictures_of_other_settings_or_weights_are_left_alone(pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    wanted = two(pipeline, folder=folder)
    drawing.run(wanted, print)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = tmp_path / "other"
    shutil.copytree(pipeline, other)
    config = json.loads((other / "scheduler" / "scheduler_config.json").read_text())
    config["beta_end"] = 0.02
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    for change, what in (
        ({"steps": 3}, "steps"),
        ({"seeds": (1,)}, "seed"),
        ({"prompt": (PROMPTS[0], "c")}, "prompt"),
        ({"pipeline": other}, "pipeline_sha256"),
        ({"guidance": 2.0, "negative": "c"}, "guidance and negative"),
    ):
        with pytest.raises(
            UsageError, match=rf"0000[01]\.png is there, drawn with another {what}: take another folder"
        ):
            drawing.run(replace(wanted, **change), print)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    Image.new("RGB", (8, 8)).save(folder / "00001.png")
    with pytest.raises(UsageError, match=r"00001\.png was not drawn by this command"):
        drawing.run(wanted, print)
    (folder / "00001.png").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"00001\.png was not drawn by this command"):
        drawing.run(wanted, print)


@pytest.mark.parametrize(
    ("line", "change", "sentence"),
    [
        ({"seed": 3}, {"seeds": (1, 2)}, "line 1 has a seed of its own, on which --seeds has no effect"),
        ({"seed": 3}, {"seeds": (1,)}, "--seed has no effect: each line of"),
        ({"negative": ""}, {"negative": "c"}, "--negative has no effect: each line of"),
        ({"negative": "c"}, {"guidance": 1.0}, "line 1: negative has no effect with --guidance 1"),
    ],
)
def test_what_has_no_effect_on_lines_is_refused(
    line: dict[str, object], change: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text(json.dumps({"prompt": "a", **line}))
    with pytest.raises(UsageError, match=sentence):
        drawing.plan(two(tmp_path, prompt=(), prompts=file, **change))


def test_a_picture_from_a_picture_tells_which_by_its_contents(pipeline: Path, tmp_path: Path) -> None:
    image = tmp_path / "begin.png"
    Image.new("RGB", (9, 20), "red").save(image)
    wanted = two(pipeline, image=image, strength=0.6, steps=5, folder=tmp_path / "all")
    drawing.run(wanted, print)
    pixels, about = read(tmp_path / "all" / "00001.png")
    assert pixels.shape == (16, 8, 3)
    assert (about["image"], about["image_sha256"], about["strength"]) == (str(image), sha256(image), 0.6)
    drawing.run(replace(wanted, image=image.rename(tmp_path / "moved.png")), print)  # the same picture
    Image.new("RGB", (9, 20), "blue").save(image)
    for change, what in (
        ({"image": image}, "image_sha256"),
        ({"image": tmp_path / "moved.png", "strength": 0.8}, "strength"),
        ({"image": None, "strength": None}, "image_sha256 and strength"),
    ):
        with pytest.raises(UsageError, match=rf"00000\.png is there, drawn with another {what}: take another"):
            drawing.run(replace(wanted, **change), print)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot be read"):
        drawing.plan(replace(wanted, image=tmp_path / "none.png"))


def test_a_larger_picture_tells_its_factor(pipeline: Path, tmp_path: Path) -> None:
    wanted = two(pipeline, upscale=1.5, folder=tmp_path / "all", output=tmp_path / "grid.png")
    drawing.run(wanted, print)
    pixels, about = read(tmp_path / "all" / "00001.png")
    assert pixels.shape == (12, 12, 3)
    assert (about["upscale"], about["upscale_strength"]) == (1.5, 0.5)
    assert read(tmp_path / "grid.png")[1]["upscale"] == 1.5
    with pytest.raises(UsageError, match="gives no whole ones"):
        drawing.run(replace(wanted, upscale=1.1, folder=None), print)


def test_a_led_picture_tells_by_which_clip(pipeline: Path, tiny_clip: str, tmp_path: Path) -> None:
    wanted = two(pipeline, clip=tiny_clip, clip_guidance=500.0, folder=tmp_path / "all")
    drawing.run(wanted, print)
    _, about = read(tmp_path / "all" / "00001.png")
    assert (about["clip"], about["clip_guidance"]) == (tiny_clip, 500.0)
    assert "weights " in about["clip_fingerprint"]
    with pytest.raises(UsageError, match=r"00000\.png is there, drawn with another clip_guidance: take another"):
        drawing.run(replace(wanted, clip_guidance=20.0), print)
    with pytest.raises(UsageError, match="--clip: there is no weights file none"):
        drawing.plan(replace(wanted, clip="none"))
    with pytest.raises(UsageError, match="scheduler euler is none of them"):
        drawing.plan(replace(wanted, scheduler="euler"))
