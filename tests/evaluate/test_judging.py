"""Evaluations of a small pipeline and of a folder, with true networks of random weights."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch_fidelity
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch_fidelity import metric_fid

from bigdiff.config.errors import UsageError
from bigdiff.config.evaluation import BLOCK, Evaluation, Judges
from bigdiff.evaluate import judging, networks, sampling
from bigdiff.evaluate.point import TAGS, Point
from bigdiff.evaluate.sampling import Sampling

COUNT = 6
MANY = BLOCK + 6  # two blocks


def draw(folder: Path, count: int, first: int = 0) -> Path:
    """Soft pictures, wider than high."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
        picture = Image.fromarray(small).resize((24, 16), Image.Resampling.BICUBIC)
        picture.save(folder / f"{seed:04d}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real pictures and prompts."""
    folder = tmp_path_factory.mktemp("judged")
    draw(folder / "real", COUNT, 1000)
    (folder / "prompts.txt").write_text("".join(f"picture {number} of a red thing\n" for number in range(MANY)))
    return folder


@pytest.fixture(scope="module")
def done(place: Path, random_inception: Path, tiny_clip: str, pipeline: Path) -> Evaluation:
    """An evaluation with all networks, of few pictures: Inception takes its time."""
    wanted = Evaluation(
        output=place / "out",
        judges=Judges(inception=str(random_inception), clip=tiny_clip, cmmd_clip=tiny_clip),
        pipeline=pipeline,
        prompts=place / "prompts.txt",
        real=str(place / "real"),
        images=COUNT,
        guidance=(5.0, 1.0),
        steps=2,
        few_images=True,
        keep=True,
        tensorboard=place / "board",
        samples_seen=640,
    )
    judging.run(wanted, lambda _: None)
    return wanted


@pytest.fixture
def quick(place: Path, tiny_clip: str, pipeline: Path, tmp_path: Path) -> Evaluation:
    """An evaluation without Inception."""
    return Evaluation(
        output=tmp_path / "out",
        judges=Judges(clip=tiny_clip, cmmd_clip=tiny_clip),
        pipeline=pipeline,
        prompts=place / "prompts.txt",
        real=str(place / "real"),
        cache=place / "cache",
        steps=2,
    )


def numbers(point: Point) -> dict[str, float]:
    return {name: value for name, value in asdict(point).items() if value is not None}


def run(wanted: Evaluation) -> list[Point]:
    return judging.run(wanted, lambda _: None)


def test_the_output_says_what_was_found_and_of_what(done: Evaluation) -> None:
    content = json.loads((done.output / "results.json").read_bytes())
    first, second = content["points"]
    assert [first["guidance"], second["guidance"]] == [1.0, 5.0]
    for point in (first, second):
        assert point["images"] == COUNT and point["singular"]
        assert point["fid"] > 0 and point["cmmd"] > 0
        assert 0 <= point["precision"] <= 1 and 0 <= point["recall"] <= 1
        assert point["clip_score"] >= 2.5 * point["clip_cosine"] - 1e-9
    assert first["fid"] != second["fid"]
    assert {"torch", "torch-fidelity", "open_clip_torch"} <= content["versions"].keys()
    assert "resize clean" in content["made_of"]["networks"]["inception"]
    assert content["made_of"]["drawing"] == {"steps": 2, "scheduler": "ddim", "seed": 0, "size": 0, "dtype": "float32"}
    assert content["real"]["count"] == COUNT and content["real"]["crop"] == "center"
    page = (done.output / "README.md").read_text()
    assert f"| 1 | {COUNT} |" in page and "far too high" in page
    assert Image.open(done.output / "fid-clip.png").size == (720, 540)


def test_the_numbers_are_those_of_the_pictures_that_were_drawn(done: Evaluation) -> None:
    """Drawn again by `sample`, seen again by the networks, put together by the libraries' formulas."""
    point = json.loads((done.output / "results.json").read_bytes())["points"][1]
    settings = Sampling(steps=2, guidance=5.0, batch=8)
    assert done.pipeline is not None and done.prompts is not None
    texts = sampling.read_prompts(done.prompts)[:COUNT]
    shown = sampling.sample(sampling.load(done.pipeline), texts, settings)
    kept = [Image.open(done.output / "guidance-5" / "pictures" / f"{number:08d}.png") for number in range(COUNT)]
    for one, other in zip(shown, kept, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max() <= 1
    real = [Image.open(file) for file in sorted(Path(done.real).iterdir())]
    squares = [one.crop((4, 0, 20, 16)) for one in real]
    seen = networks.loaded(done.judges)
    assert seen.inception is not None and seen.clip is not None
    statistics = [
        metric_fid.fid_features_to_statistics(seen.inception.features(some).double()) for some in (kept, squares)
    ]
    fid = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID]
    assert point["fid"] == pytest.approx(fid, rel=1e-4)
    cosine = (seen.clip.image_features(kept) * seen.clip.text_features(texts)).sum(axis=1)
    assert point["clip_cosine"] == pytest.approx(cosine.mean(), abs=1e-5)
    scores = pq.read_table(done.output / "guidance-5" / "scores.parquet").to_pydict()
    assert scores["prompt"] == texts and scores["index"] == list(range(COUNT))
    np.testing.assert_allclose(scores["clip_cosine"], cosine, atol=1e-5)
    np.testing.assert_allclose(scores["clip_score"], 2.5 * np.maximum(cosine, 0), atol=1e-5)


def test_a_folder_has_the_numbers_of_torch_fidelity(place: Path, random_inception: Path, tmp_path: Path) -> None:
    """Its whole program, on two folders: with its resize, and pictures as they are."""
    drawn = draw(tmp_path / "drawn", COUNT)
    theirs = torch_fidelity.calculate_metrics(
        input1=str(drawn),
        input2=str(place / "real"),
        fid=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(random_inception),
        prc_neighborhood=3,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    wanted = Evaluation(
        output=tmp_path / "out",
        judges=Judges(inception=str(random_inception), resize="legacy"),
        pictures=drawn,
        real=str(place / "real"),
        real_crop="none",
        few_images=True,
    )
    (point,) = run(wanted)
    assert point.fid == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert (point.precision, point.recall) == pytest.approx((theirs["precision"], theirs["recall"]))


def test_points_stand_in_tensorboard_where_the_model_was(done: Evaluation) -> None:
    assert done.tensorboard is not None
    points = json.loads((done.output / "results.json").read_bytes())["points"]
    for point in points:
        board = EventAccumulator(str(done.tensorboard / f"guidance-{point['guidance']:g}"))
        board.Reload()
        assert set(board.Tags()["scalars"]) == {f"eval/{name}" for name in TAGS}
        (event,) = board.Scalars("eval/fid")
        assert event.step == 640 and event.value == pytest.approx(point["fid"], rel=1e-6)
        assert board.Scalars("eval/clip_score")[0].value == pytest.approx(point["clip_score"], rel=1e-6)
    events = sorted(done.tensorboard.rglob("events*"))
    run(done)
    assert sorted(done.tensorboard.rglob("events*")) == events
    run(replace(done, samples_seen=1280))  # asked for later, without a new judgement
    board = EventAccumulator(str(done.tensorboard / "guidance-5"))
    board.Reload()
    assert {event.step for event in board.Scalars("eval/fid")} == {640, 1280}


def test_a_second_start_does_nothing_and_another_guidance_is_added(done: Evaluation) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.output.rglob("*.safetensors")}
    points = run(replace(done, guidance=(1.0,), tensorboard=None, samples_seen=None))
    assert [point.guidance for point in points] == [1.0, 5.0]
    assert {path: path.stat().st_mtime_ns for path in done.output.rglob("*.safetensors")} == before


def test_a_larger_evaluation_goes_on_where_the_smaller_ended(quick: Evaluation) -> None:
    (first,) = run(replace(quick, images=BLOCK))
    block = quick.output / "guidance-3" / "blocks" / f"00000000-{BLOCK:08d}.safetensors"
    made = block.stat().st_mtime_ns
    (second,) = run(quick)
    assert (first.images, second.images) == (BLOCK, MANY)
    assert block.stat().st_mtime_ns == made
    assert second.fid is None and second.cmmd != first.cmmd


def test_results_are_there_when_all_of_them_are(quick: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe takes the file for the end of the task."""
    shown: list[int] = []

    def stop(_wanted: Evaluation, points: list[Point], _about: object) -> None:
        shown.append(len(points))
        assert not (quick.output / "results.json").exists()
        if len(shown) == 2:
            raise KeyboardInterrupt

    swept = replace(quick, images=3, guidance=(1.0, 2.0, 3.0))
    run(replace(swept, images=2))
    assert (quick.output / "results.json").exists()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("bigdiff.evaluate.report.show", stop)
        run(swept)
    assert not (quick.output / "results.json").exists()
    points = run(swept)
    assert [point.guidance for point in points] == [1.0, 2.0, 3.0] and {point.images for point in points} == {3}
    assert len(json.loads((quick.output / "results.json").read_bytes())["points"]) == 3


RANKS = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from bigdiff.config.evaluation import Evaluation, Judges
from bigdiff.evaluate import judging
told = json.loads(sys.argv[1])
judges = Judges(**told.pop("judges"))
places = {name: Path(told.pop(name)) for name in ("output", "pipeline", "prompts", "cache")}
wanted = Evaluation(judges=judges, **places, real=told["real"], steps=told["steps"])
print(json.dumps([asdict(point) for point in judging.run(wanted, lambda _: None)]))
"""


def test_any_number_of_ranks_or_processes_finds_the_same(
    quick: Evaluation, run_ranks: Callable[..., list[str]], tmp_path: Path
) -> None:
    (alone,) = run(quick)
    told = {name: str(getattr(quick, name)) for name in ("pipeline", "prompts", "real")}
    told |= {"output": str(tmp_path / "ranks"), "cache": str(tmp_path / "cache")}
    outputs = run_ranks(RANKS, 3, json.dumps({**told, "steps": 2, "judges": asdict(quick.judges)}))
    (point,) = json.loads(outputs[0].splitlines()[-1])
    assert all(json.loads(output.splitlines()[-1]) == [] for output in outputs[1:])
    assert numbers(Point(**point)) == pytest.approx(numbers(alone), rel=1e-6)
    (pooled,) = run(replace(quick, output=tmp_path / "pooled", processes=2))
    assert numbers(pooled) == pytest.approx(numbers(alone), rel=1e-6)


def test_a_folder_is_judged_like_what_is_drawn(quick: Evaluation, tmp_path: Path) -> None:
    drawn = replace(quick, images=COUNT, keep=True)
    (expected,) = run(drawn)
    kept = quick.output / "guidance-3" / "pictures"
    texts = tmp_path / "prompts.txt"
    assert quick.prompts is not None
    texts.write_text("\n".join(sampling.read_prompts(quick.prompts)[:COUNT]))
    folder = replace(quick, output=tmp_path / "folder", pipeline=None, pictures=kept, prompts=texts, steps=50)
    (found,) = run(folder)
    assert found.guidance is None
    assert numbers(replace(found, guidance=3.0)) == pytest.approx(numbers(expected), rel=1e-6)


def test_a_model_without_text_is_judged(tmp_path: Path, tiny_clip: str, place: Path) -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(tmp_path / "model")
    wanted = Evaluation(
        output=tmp_path / "out",
        judges=Judges(cmmd_clip=tiny_clip),
        pipeline=tmp_path / "model",
        real=str(place / "real"),
        images=7,
        steps=2,
    )
    (point,) = run(wanted)
    assert (point.guidance, point.images) == (None, 7)
    assert point.cmmd is not None and point.cmmd > 0
    for change, sentence in (
        ({"images": 0}, "say with --images how many"),
        ({"guidance": (2.0,)}, "--guidance has no effect on a model without text"),
    ):
        with pytest.raises(UsageError, match=sentence):
            run(replace(wanted, **change))  # type: ignore[arg-type]
