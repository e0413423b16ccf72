"""A checkpoint judged as the pipeline that it is exported to."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from networks import tiny_clip as tiny_clip
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bigdiff.config.errors import UsageError
from bigdiff.config.evaluation import Evaluation, Judges
from bigdiff.evaluate import exported, judging, sampling
from bigdiff.export.diffusers import export
from bigdiff.models.denoiser import Denoiser

Trained = Callable[..., Denoiser]
UNET = Path(exported.PIPELINE) / "unet" / "diffusion_pytorch_model.safetensors"


@pytest.fixture
def wanted(trained: Trained, tmp_path: Path, tiny_clip: str) -> Evaluation:
    """Of the first of two checkpoints."""
    trained(tmp_path / "runs", step=7)
    trained(tmp_path / "runs", step=14)
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    return Evaluation(
        output=tmp_path / "judged",
        judges=Judges(clip=tiny_clip),
        checkpoint=tmp_path / "runs" / "toy" / "checkpoints" / "step-00000007",
        prompts=tmp_path / "prompts.txt",
        steps=2,
        tensorboard=tmp_path / "board",
    )


def test_a_checkpoint_is_judged_as_its_own_export_is(wanted: Evaluation, tmp_path: Path) -> None:
    assert judging.plan(wanted).startswith("would judge 3 pictures at each guidance of 3, in ")
    assert not wanted.output.exists()
    (point,) = judging.run(wanted, print)
    export(wanted.checkpoint.parents[1] if wanted.checkpoint else Path(), tmp_path / "pipeline", step=7)
    plain = replace(wanted, checkpoint=None, pipeline=tmp_path / "pipeline", output=tmp_path / "other", samples_seen=1)
    assert judging.run(plain, print) == [point]
    board = EventAccumulator(str(tmp_path / "board" / "guidance-3")).Reload()
    assert {event.step for event in board.Scalars("eval/clip_score")} == {8 * 7, 1}, "the checkpoint's own images seen"
    assert json.loads(judging.result(wanted).read_bytes())["settings"]["checkpoint"] == str(wanted.checkpoint)


def test_it_is_exported_once_and_another_one_is_refused(wanted: Evaluation) -> None:
    judging.run(wanted, print)
    written = (wanted.output / UNET).stat().st_mtime_ns
    judging.run(replace(wanted, images=2), print)
    assert (wanted.output / UNET).stat().st_mtime_ns == written
    assert wanted.checkpoint is not None
    later = wanted.checkpoint.with_name("step-14")  # a recipe's {step} has no zeros
    for change in (replace(wanted, checkpoint=later), replace(wanted, weights="raw")):
        with pytest.raises(UsageError, match=r"judged holds an evaluation of .*step-00000007 \(ema\): choose another"):
            judging.run(change, print)
    (point,) = judging.run(replace(wanted, checkpoint=later, output=wanted.output.with_name("later")), print)
    assert point.images == 3
    first, second = (load_file(one / UNET) for one in (wanted.output, wanted.output.with_name("later")))
    assert any((first[name] != second[name]).any() for name in first)


def test_what_a_killed_export_left_is_written_over_and_other_files_are_not(wanted: Evaluation) -> None:
    half = wanted.output / f"{exported.PIPELINE}.new.tmp"
    half.mkdir(parents=True)
    (half / "model_index.json").write_text("{")
    judging.run(wanted, print)
    assert not half.exists() and sampling.kind_of(wanted.output / exported.PIPELINE)
    other = replace(wanted, output=wanted.output.with_name("full"))
    other.output.mkdir()
    (other.output / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="full is not empty, and no evaluation of a checkpoint"):
        judging.run(other, print)


def test_the_results_stay_only_for_the_same(wanted: Evaluation) -> None:
    judging.run(wanted, print)
    assert judging.result(replace(wanted, batch=1, processes=2)).is_file(), "neither changes a number"
    assert not judging.result(replace(wanted, guidance=(3.0, 5.0))).is_file()


def test_what_is_no_checkpoint_is_named(wanted: Evaluation, trained: Trained, tmp_path: Path) -> None:
    assert wanted.checkpoint is not None
    run = wanted.checkpoint.parents[1]
    for folder, sentence in (
        (run, rf"toy is a run: name one of its checkpoints, such as {run}/checkpoints/step-00000014"),
        (run / "checkpoints" / "step-00000008", "is not a checkpoint of a run, such as runs/512px"),
        (tmp_path / "absent", "is not a checkpoint of a run"),
        (run / "checkpoints", "is not a checkpoint of a run"),
    ):
        for ask in (judging.plan, lambda asked: judging.run(asked, print)):
            with pytest.raises(UsageError, match=sentence):
                ask(replace(wanted, checkpoint=folder))
    assert not wanted.output.exists()


def test_a_model_is_known_before_it_is_exported(wanted: Evaluation) -> None:
    """As its pipeline says it of itself."""
    assert wanted.checkpoint is not None
    model = exported.model(wanted.checkpoint)
    judging.run(wanted, print)
    held = json.loads((wanted.output / exported.PIPELINE / "scheduler" / "scheduler_config.json").read_bytes())
    plain = json.loads(json.dumps(model.scheduler))
    assert model.text and {key: plain[key] for key in plain if not key.startswith("_")} == {
        key: value for key, value in held.items() if not key.startswith("_")
    }
    with pytest.raises(UsageError, match="steps=1001 are more than the 1000 timesteps"):
        judging.plan(replace(wanted, steps=1001, output=wanted.output.with_name("other")))


def test_the_card_of_an_export_tells_what_was_found_of_its_weights(wanted: Evaluation, tmp_path: Path) -> None:
    assert wanted.checkpoint is not None
    run = wanted.checkpoint.parents[1]
    (point,) = judging.run(replace(wanted, output=run / "evaluation" / "7"), print)
    told = {}
    for step, weights in ((7, "ema/0.9"), (7, "raw"), (14, "ema")):
        export(run, tmp_path / f"{step}-{weights[:3]}", weights, step=step)
        told[step, weights] = (tmp_path / f"{step}-{weights[:3]}" / "README.md").read_text()
    assert f"| 3 | 3 | {point.clip_score:.5g} | {point.clip_cosine:.5g} |" in told[7, "ema/0.9"]
    assert "Judged by" not in told[7, "raw"] + told[14, "ema"]
