"""Pictures through the stream: the pixels of latents, the order of the course, whatever the processes and damage."""

import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Resize

from bigdiff.config.errors import UsageError
from bigdiff.data import manifest
from bigdiff.data.course import Course
from bigdiff.data.damage import Quarantine, Substitution, Tombstones
from bigdiff.data.decoding import decode
from bigdiff.data.foreign import ENDING, index_folder
from bigdiff.data.images import Framing, ImageBatch, ImageReader, ImageSet
from bigdiff.data.mixture import Source
from bigdiff.data.pixels import cover, framed
from bigdiff.data.stream import Ahead, Slice, batches

Make = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
SIDE = 32
CENTRE = Framing(resolution=SIDE)
RANDOM = Framing(resolution=SIDE, crop="random", flip=0.5, seed=7)


class Seen(NamedTuple):
    """A sample as a batch showed it, copied."""

    position: int
    key: str
    caption: str
    pixels: bytes
    lost: Substitution | None


def indexed(folder: Path) -> Path:
    index_folder(folder, folder, 1, False, lambda line: None)
    return folder


def course(sets: list[ImageSet], total: int, lanes: int = 1) -> Course:
    sources = tuple(Source(name=one.location, sizes=one.manifest.sizes, buckets=one.manifest.buckets) for one in sets)
    return Course(sources=sources, seed=3, window=2, lanes=lanes, total=total)


def steps(
    sets: list[ImageSet], path: Course, framing: Framing, part: Slice, start: int = 0, count: int = 1, threads: int = 2
) -> list[list[ImageBatch]]:
    """What `count` steps give, copied."""
    reader = ImageReader(sets, framing)
    stream = batches(reader, path, part, start, Ahead(threads=threads), Quarantine(warn=lambda line: None))
    try:
        return [[replace(batch, pixels=batch.pixels.clone()) for batch in next(stream)] for _ in range(count)]
    finally:
        stream.close()


def seen(made: list[list[ImageBatch]]) -> list[Seen]:
    found = []
    for batch in (batch for step in made for batch in step):
        lost = {one.position: one for one in reversed(batch.consumed.substituted)}  # the first: what stood there
        for row, position in enumerate(batch.positions.tolist()):
            pixels = batch.pixels[row].numpy().tobytes()
            found.append(Seen(position, batch.keys[row], batch.captions[row], pixels, lost.get(position)))
    return found


def whole(total: int, micro: int | None = None) -> Slice:
    return Slice(total=total, micro=micro or total, rank=0, size=1)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_an_epoch_is_what_stock_webdataset_and_torchvision_make_of_the_tars(stock_set: Make, kind: str) -> None:
    folder = indexed(stock_set(6, 4, kind=kind))
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    steps_of_torchvision = Compose([Resize(SIDE, InterpolationMode.BICUBIC, antialias=True), CenterCrop(SIDE)])
    expected = {}
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        raw = np.array(Image.open(io.BytesIO(sample[kind])).convert("RGB"))
        pixels = steps_of_torchvision(torch.from_numpy(raw).permute(2, 0, 1))
        expected[sample["__key__"]] = (sample["txt"].decode(), pixels)
    with ImageSet(str(folder)) as images:
        made = steps([images], course([images], 5), CENTRE, whole(5), count=2)
    assert Counter(key for step in made for batch in step for key in batch.keys) == Counter(expected.keys())
    for batch in (batch for step in made for batch in step):
        assert (batch.pixels.dtype, batch.pixels.shape) == (torch.uint8, (5, 3, SIDE, SIDE))
        assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
        for row, key in enumerate(batch.keys):
            assert batch.captions[row] == expected[key][0]
            assert torch.equal(batch.pixels[row], expected[key][1])


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_sets_of_build_shards_are_read_too(image_set: Make, extension: str) -> None:
    folder = image_set(4, 4, extension=extension)
    with ImageSet(str(folder)) as images:
        found = seen(steps([images], course([images], 8), CENTRE, whole(8)))
    assert sorted(one.key for one in found) == [f"0000{shard}000{row}" for shard in (0, 1) for row in range(4)]
    assert {one.caption for one in found} == {f"picture {row} of shard {shard}" for shard in (0, 1) for row in range(4)}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars of several formats and shapes, as nobody should write them."""
    folder = tmp_path_factory.mktemp("mixed")
    for number, samples in enumerate((7, 5, 9)):
        with tarfile.open(folder / f"part-{number}.tar", "w") as archive:
            for row in range(samples):
                small = np.random.default_rng((number, row)).integers(0, 256, (3, 4, 3), np.uint8)
                image = Image.fromarray(small).resize((40 + 5 * row, 70 - 4 * row), Image.Resampling.BICUBIC)
                end, kind = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))[row % 3]
                stream = io.BytesIO()
                image.save(stream, kind)
                for name, content in ((f"{number}-{row}.{end}", stream.getvalue()), (f"{number}-{row}.txt", b"text")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return indexed(folder)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_processes_threads_accumulation_and_restart_give_the_same_pixels(mixed: Path, data: st.DataObject) -> None:
    total = 12
    size = data.draw(st.sampled_from([1, 2, 3, 4, 6, 12]))
    micro = data.draw(st.sampled_from([m for m in (1, 2, 3, 4, 6, 12) if total % (size * m) == 0]))
    lanes, first = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.integers(0, 3))
    threads = data.draw(st.integers(1, 4))
    with ImageSet(str(mixed)) as images:
        path = course([images], total, lanes)
        expected = seen(steps([images], path, RANDOM, whole(total), count=5, threads=1))
        ranks = [Slice(total=total, micro=micro, rank=rank, size=size) for rank in range(size)]
        found = [one for part in ranks for one in seen(steps([images], path, RANDOM, part, total * first, 2, threads))]
    assert sorted(found) == expected[total * first : total * (first + 2)]


def test_crop_and_flip_are_drawn_from_seed_and_position(mixed: Path) -> None:
    with ImageSet(str(mixed)) as images:
        path = course([images], 21)
        contents = {}
        for tar in sorted(mixed.glob("*.tar")):
            for sample in webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False):
                contents[sample["__key__"]] = next(sample[end] for end in ("jpg", "png", "webp") if end in sample)
        shown = {}
        for seed in (7, 8):
            framing = replace(RANDOM, seed=seed)
            shown[seed] = seen(steps([images], path, framing, whole(21), count=4))
            frames = framing.frames("", 0, 84)
            for one in shown[seed]:
                covering = cover(decode(contents[one.key]), SIDE, SIDE)
                expected = framed(covering, frames[one.position]).transpose(2, 0, 1)
                assert one.pixels == expected.tobytes()
    assert [one.key for one in shown[7]] == [one.key for one in shown[8]]
    assert sum(a.pixels == b.pixels for a, b in zip(shown[7], shown[8], strict=True)) < 20
    by_epoch = [{one.key: one.pixels for one in shown[7][at : at + 21]} for at in range(0, 84, 21)]
    assert any(by_epoch[0][key] != by_epoch[1][key] for key in by_epoch[0])


@pytest.mark.parametrize("flip", [0.0, 0.25, 1.0])
def test_the_draws_have_the_asked_probabilities(flip: float) -> None:
    frames = Framing(resolution=8, crop="random", flip=flip).frames("", 10**12, 4000)
    assert abs(sum(one.mirrored for one in frames) / 4000 - flip) < 0.03 * (0 < flip < 1) + 1e-9
    for side in ("across", "down"):
        words = np.array([getattr(one, side) for one in frames])
        assert abs(words.mean() / 2**32 - 0.5) < 0.03
        assert (np.histogram(words, 8, (0, 2**32))[0] > 400).all()
    one_by_one = [Framing(resolution=8, crop="random", flip=flip).frames("", 10**12 + n, 1)[0] for n in range(9)]
    assert one_by_one == frames[:9]
    flipped = Framing(resolution=8, flip=flip).frames("", 10**12, 4000)
    assert [one.mirrored for one in flipped] == [one.mirrored for one in frames]
    assert {one.across for one in flipped} == {None}


def test_buckets_say_the_size_and_a_step_has_one(image_set: Make) -> None:
    folder = image_set(4, 6, 4)
    made = manifest.read(folder, "images")
    named = [replace(one, bucket=name) for one, name in zip(made.shards, ("24x16", "16x24", "24x16"), strict=True)]
    manifest.write(folder, replace(made, shards=tuple(named)))
    framing = Framing(crop="random", flip=0.5)
    with ImageSet(str(folder)) as images:
        found = steps([images], course([images], 2), framing, whole(2, 1), count=14)
        with pytest.raises(UsageError, match="have buckets: leave the resolution out"):
            ImageReader([images], CENTRE)
    for step in found:
        width, height = map(int, step[0].bucket.split("x"))
        assert [tuple(batch.pixels.shape) for batch in step] == [(1, 3, height, width)] * 2
        assert {key[4] for batch in step for key in batch.keys} <= ({"0", "2"} if width == 24 else {"1"})
    assert abs(Counter(step[0].bucket for step in found)["24x16"] - 8) <= 1


def test_what_cannot_be_read_or_decoded_is_substituted_and_nothing_else_moves(mixed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "harmed"
    folder.mkdir()
    for number in range(3):
        samples: dict[str, bytes] = {}
        with tarfile.open(mixed / f"part-{number}.tar") as archive:
            for member in archive:
                stream = archive.extractfile(member)
                assert stream is not None
                samples[member.name] = stream.read()
        if number == 1:  # the checksums of these are right: what is wrong shows when they are decoded
            samples["1-0.jpg"] = samples["1-0.jpg"][:-40]
            samples["1-1.png"] = samples["1-1.png"][:60]
            bomb = io.BytesIO()
            Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
            samples["1-4.png"] = bomb.getvalue()
        with tarfile.open(folder / f"part-{number}.tar", "w") as archive:
            for name, content in samples.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    indexed(folder)
    tar = folder / "part-2.tar"
    place = pq.read_table(folder / f"part-2{ENDING}")["image_offset"][3].as_py()
    content = bytearray(tar.read_bytes())
    content[place + 50] ^= 1
    tar.write_bytes(content)
    reasons = {
        "1-0": "damaged or cut short",
        "1-1": "damaged or cut short",
        "1-4": "more pixels than allowed",
        "2-3": "bytes differ from the index's checksum",
        "0-2": "tombstone",
    }
    with ImageSet(str(mixed)) as images:
        before = seen(steps([images], course([images], 21), RANDOM, whole(21), count=3))
    with ImageSet(str(folder), Tombstones(entries=frozenset({"0-2"}))) as images:
        path = course([images], 21)
        assert images.manifest.sizes.tolist() == [7, 5, 9]
        after = seen(steps([images], path, RANDOM, whole(21), count=3))
        again = seen(steps([images], path, RANDOM, whole(21, 3), start=21, count=2, threads=1))
    assert sorted(again) == after[21:]
    for old, new in zip(before, after, strict=True):
        assert (new.lost is not None) == (old.key in reasons)
        if new.lost is None:
            assert new == old
        else:
            assert new.lost.reason == reasons[old.key]
            assert new.key not in reasons
    assert Counter(one.key for one in before) == Counter({one.key: 3 for one in before})


def test_sets_are_mixed_and_name_their_members_as_they_like(image_set: Make, mixed: Path) -> None:
    folder = image_set(6, 6)
    with ImageSet(str(folder)) as one, ImageSet(str(mixed)) as other:
        found = seen(steps([one, other], course([one, other], 11), CENTRE, whole(11), count=6))
    keys = {one.key for one in found}
    assert any("-" in key for key in keys)
    assert any("-" not in key for key in keys)


def test_unusable_sets_and_settings_are_sentences(image_set: Make, tmp_path: Path) -> None:
    folder = image_set(3)
    with ImageSet(str(folder)) as images:
        for framing, text in (
            (Framing(), "no bucket: give a resolution"),
            (Framing(resolution=8, flip=1.5), "flip=1.5 is no probability"),
        ):
            with pytest.raises(UsageError, match=text):
                ImageReader([images], framing)
    content = json.loads((folder / manifest.NAME).read_text())
    content["shards"][0]["bucket"] = "wide"
    (folder / manifest.NAME).write_text(json.dumps(content))
    with ImageSet(str(folder)) as images, pytest.raises(UsageError, match=r"bucket 'wide' of .* is no size"):
        ImageReader([images], Framing())
    pq.write_table(pa.table({"key": ["a", "b", "c"], "txt_offset": [1, 2, 3]}), folder / "00000.parquet")
    with pytest.raises(UsageError, match=r"00000\.parquet has no column such as 'jpg_offset'"):
        ImageSet(str(folder))
    (folder / "00000.parquet").unlink()
    with pytest.raises(UsageError, match=r"no index \(\*\.parquet\) of .* can be read"):
        ImageSet(str(folder))
    content["kind"] = "latents"
    (folder / manifest.NAME).write_text(json.dumps(content))
    with pytest.raises(UsageError, match="holds latents, but images are needed"):
        ImageSet(str(folder))
    (folder / manifest.NAME).unlink()
    with pytest.raises(UsageError, match="not a finished shard set"):
        ImageSet(str(folder))


def test_the_readmes_program_runs_as_it_is_written(stock_set: Make, tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().partition("\n## The stream alone\n")[2].partition("\n## ")[0]
    (line,), (program,) = (
        re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL) for language in ("bash", "python")
    )
    assert len([one for one in program.splitlines() if one]) <= 15
    folder = stock_set(40, 30, name="tars")
    words = shlex.split(line)
    assert words[0] == "python"
    outputs = []
    for arguments in (words[1:], ["-c", program], ["-c", program.replace("samples_seen = 0", "samples_seen = 256")]):
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.splitlines())
    assert outputs[0] == ["tars: 70 samples in 2 tars"]
    keys = {
        one["__key__"]: one["txt"].decode()
        for one in webdataset.WebDataset([str(tar) for tar in sorted(folder.glob("*.tar"))], shardshuffle=False)
    }
    assert len(outputs[1]) == len(outputs[2]) == 20
    for one in outputs[1]:
        step, _, rest = one.partition(" ")
        mean, caption, key = rest.split(" ")[0], " ".join(rest.split(" ")[1:-1]), rest.split(" ")[-1]
        assert 0 <= int(step) < 10
        assert 0 < float(mean) < 255
        assert keys[key] == caption
    resumed = [one.split(" ", 1)[1] for one in outputs[2]]
    assert [one.split(" ", 1)[1] for one in outputs[1]][8:] == resumed[:12], "a resume gives the same batches"


def test_nothing_is_left_behind(mixed: Path) -> None:
    files = len(list(Path("/proc/self/fd").iterdir()))
    with ImageSet(str(mixed)) as images:
        steps([images], course([images], 6), RANDOM, whole(6, 3), count=3, threads=4)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream")]
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_a_device_is_fed_the_same(mixed: Path) -> None:
    with ImageSet(str(mixed)) as images:
        batch = steps([images], course([images], 6), RANDOM, whole(6))[0][0]
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.pixels, batch.pixels)
    assert moved.keys == batch.keys
