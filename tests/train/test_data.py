import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Data, Source
from bigdiff.data.damage import Quarantine
from bigdiff.data.order import Order
from bigdiff.prep import folder
from bigdiff.runtime.world import World
from bigdiff.train import data

Ranks = Callable[..., list[str]]
TRAIN = """
import sys
from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.train.setup import train_stage
print(train_stage(load_stage(sys.argv[1], sys.argv[2:])))
"""


def test_one_set_is_read_in_its_plain_order(toy: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"))
    with data.opened(stage.data) as sets:
        picks = data.course(stage, sets).locate(5, 0, stage.batch.total)
        assert data.fingerprint(sets) == sets[0].fingerprint
        order = Order(sizes=sets[0].manifest.sizes, seed=stage.seed, window=stage.data.window)
    shards, rows = order.locate(5 * stage.batch.total, stage.batch.total)
    assert picks.shards.tolist() == shards.tolist() and picks.rows.tolist() == rows.tolist()


def test_shares_canonical_nodes_and_window_make_another_run(toy: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"))
    one = stage.data.latents
    twice = [Source(latents=one, proportion=0.75), Source(latents=one)]
    others = [
        stage.data,
        replace(stage.data, window=stage.data.window + 1),
        replace(stage.data, canonical_nodes=2),
        Data(sources=twice, window=stage.data.window),
        Data(sources=[Source(latents=one), Source(latents=one)], window=stage.data.window),
    ]
    prints, hashes = set(), set()
    for other in others:
        with data.opened(other) as sets:
            prints.add(data.course(replace(stage, data=other), sets).fingerprint)
            hashes.add(data.fingerprint(sets))
    assert len(prints) == len(others) and len(hashes) == 2


def test_a_drawn_crop_or_flip_makes_another_run_and_the_centre_none(toy: Path) -> None:
    latents = str(load_stage(str(toy / "stage.yaml")).data.latents)
    options = [[], ["data.flip=0.5"], ["data.crop=random"], ["data.crop=random", "data.flip=0.5"]]
    framings = []
    for chosen in options:
        stage = load_stage(str(toy / "stage.yaml"), [f"data.latents={latents}", *chosen])
        with data.opened(stage.data) as sets:
            framings.append(data.identity(stage, sets, data.course(stage, sets), "").framing)
    assert framings[:2] == ["", "mirrored with probability 0.5"], "as every checkpoint of such a run says"
    assert framings[2:] == ["random crop, mirrored with probability 0", "random crop, mirrored with probability 0.5"]


@pytest.mark.parametrize(
    ("bucket", "sentence"),
    [
        ("8x8", None),
        ("12x4", None),
        ("10x6", "'10x6' of .*latents does not divide by the stage's 4 pixels"),
        ("8x12", "has 96 pixels, resolution=8 asks for 64 at most"),
        ("4x4", "has 16 pixels, resolution=8 asks for 64 at most and half of that at least"),
        ("wide", "bucket 'wide' of .* is no size such as"),
        ("", "have no buckets: set data.buckets=false"),
    ],
)
def test_buckets_have_about_the_pixels_of_the_resolution(
    toy: Path, tmp_path: Path, bucket: str, sentence: str | None
) -> None:
    stage = load_stage(str(toy / "stage.yaml"), [f"data.latents={tmp_path}/latents", "data.buckets=true"])
    latents = shutil.copytree(toy / "latents", tmp_path / "latents")
    content = json.loads((latents / "manifest.json").read_text())
    content["shards"][1]["bucket"] = bucket
    for number in (0, 2, 3):
        content["shards"][number]["bucket"] = "8x8"
    content["contract"]["buckets"] = {"8x8": [4, 4, 4], bucket: [4, 4, 4]}
    (latents / "manifest.json").write_text(json.dumps(content))
    with data.opened(stage.data) as sets:
        if sentence is None:
            data.fit_shapes(stage, sets)
            return
        with pytest.raises(UsageError, match=sentence):
            data.fit_shapes(stage, sets)


def test_a_random_crop_of_centre_squares_is_refused(toy: Path, tmp_path: Path) -> None:
    squares, whole = tmp_path / "squares", tmp_path / "whole"
    for target, crop in ((squares, "centre square"), (whole, "none")):
        (tmp_path / "drawn").mkdir(exist_ok=True)
        Image.new("RGB", (9, 8), (200, 10, 10)).save(tmp_path / "drawn" / "0.png")
        folder.pack(tmp_path / "drawn", target, 16, 0, lambda _: None)
        content = json.loads((target / "manifest.json").read_text())
        (target / "manifest.json").write_text(json.dumps({**content, "contract": {"crop": crop}}))
    for images, crop in ((squares, "center"), (whole, "random"), (squares, "random")):
        stage = load_stage(str(toy / "stage.yaml"), ["data.latents=", f"data.images={images}", f"data.crop={crop}"])
        with data.opened(stage.data) as sets:
            if (images, crop) != (squares, "random"):
                data.fit_shapes(stage, sets)
                continue
            with pytest.raises(
                UsageError, match=r"no effect on .*squares, which stores centre squares: .*pack.crop=none"
            ):
                data.fit_shapes(stage, sets)


def test_sources_that_end_before_the_stage_are_refused(toy: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"))
    short = replace(stage, data=Data(sources=[Source(latents=stage.data.latents, repeat=1)], window=2))
    with data.opened(short.data) as sets, pytest.raises(UsageError, match="give 12 steps of 8 samples, steps=20 asks"):
        data.course(short, sets)


def test_all_sets_of_a_stage_are_kept_in_one_memory(toy: Path) -> None:
    latents = load_stage(str(toy / "stage.yaml")).data.latents
    sources = f"data.sources=[{{latents: {latents}, proportion: 0.75}}, {{latents: {latents}}}]"
    world, read = World(rank=0, local_rank=0, size=1, device=torch.device("cpu")), []
    for size in ("0", "0.00001", "1"):
        stage = load_stage(str(toy / "stage.yaml"), ["data.latents=", sources, f"data.memory_gb={size}"])
        with data.opened(stage.data) as sets:
            one, other = (found.shards.arena for found in sets)
            stream = data.stream(stage, world, sets, data.course(stage, sets), 0, Quarantine())
            read.append([batch.moments.clone() for _ in range(60) for batch in next(stream)])
            stream.close()
            if size == "1":
                samples = sets[0].manifest.samples * 64 * math.ceil(sets[0].layouts[""].total / 64)
                assert one is other and one.used == samples, "the one set that both are is kept once"
            else:
                assert one is other and (one is None if size == "0" else one.full)
    assert all(torch.equal(mine, first) for again in read for mine, first in zip(again, read[0], strict=True))


def test_two_sources_train_and_the_audit_proves_what_was_seen(run_ranks: Ranks, toy: Path, tmp_path: Path) -> None:
    latents = load_stage(str(toy / "stage.yaml")).data.latents
    sources = f"data.sources=[{{latents: {latents}, proportion: 0.75}}, {{latents: {latents}}}]"
    arguments = [str(toy / "stage.yaml"), f"runs={tmp_path}", "name=mixed", "data.latents=", sources, "data.audit=true"]
    (output,) = run_ranks(TRAIN, 1, *arguments, "steps=6", "data.canonical_nodes=4")
    assert "step=6" in output
    one, two = run_ranks(TRAIN, 2, *arguments, "steps=12", "data.canonical_nodes=4")
    assert "from step 6" in one and "step=12" in two
    (report,) = run_ranks("from bigdiff.data.audit import main; main()", 1, str(tmp_path / "mixed"), "--json")
    proof = json.loads(report)
    assert proof["proven"] and proof["steps"] == 12 and proof["missing"] == proof["duplicates"] == 0
    assert [one["size"] for one in proof["starts"]] == [1, 2]
    assert [one["samples"] for one in proof["sources"]] == [72, 24]


def test_too_much_damage_ends_the_run_on_every_rank(run_ranks: Ranks, toy: Path, tmp_path: Path) -> None:
    latents = shutil.copytree(load_stage(str(toy / "stage.yaml")).data.latents, tmp_path / "latents")
    (latents / "00000.tar").unlink()
    arguments = [str(toy / "stage.yaml"), f"runs={tmp_path}", f"data.latents={latents}", "log.every=2"]
    for errors in run_ranks(TRAIN, 2, *arguments, "data.damage_budget=0.001", status=1):
        assert "more than data.damage_budget=0.001 allows" in errors
    both = "import os; os.dup2(1, 2)\n" + TRAIN
    told, _ = run_ranks(both, 2, *arguments, "data.damage_budget=0.5", "name=patient")
    assert "damaged and substituted" in told and "step=20" in told and "00000.tar" in told
