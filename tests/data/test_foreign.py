import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import xxhash
from PIL import Image

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data import manifest
from bigdiff.data.foreign import ENDING, SCHEMA, index_folder
from bigdiff.data.manifest import Manifest

StockSet = Callable[..., Path]


def saved(kind: str, shade: int = 0, side: int = 20) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 90, 40)).save(stream, kind)
    return stream.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def index(
    folder: Path, output: Path | None = None, keep: bool = False, processes: int = 1
) -> tuple[Manifest, list[str]]:
    said: list[str] = []
    return index_folder(folder, output or folder, processes, keep, said.append), said


def rows(folder: Path, name: str = "00000") -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{name}{ENDING}").to_pylist()


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_the_index_of_img2datasets_output_is_what_stock_webdataset_reads(stock_set: StockSet, kind: str) -> None:
    folder = stock_set(5, 3, kind=kind)
    before = files(folder)
    made, said = index(folder)
    assert {name: one for name, one in files(folder).items() if name in before} == before
    assert sorted(set(files(folder)) - set(before)) == [f"00000{ENDING}", f"00001{ENDING}", manifest.NAME]
    assert made == manifest.read(folder, "images")
    assert (made.index, said) == (ENDING, [])
    for shard in made.shards:
        tar = folder / f"{shard.name}.tar"
        raw = tar.read_bytes()
        assert (shard.bytes, shard.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
        samples = list(webdataset.WebDataset(str(tar), shardshuffle=False))
        found = rows(folder, shard.name)
        assert pq.read_schema(folder / f"{shard.name}{ENDING}").remove_metadata() == SCHEMA
        assert len(found) == len(samples) == shard.samples
        for row, sample in zip(found, samples, strict=True):
            content = raw[row["image_offset"] :][: row["image_length"]]
            assert (row["key"], row["image_ext"], content) == (sample["__key__"], kind, sample[kind])
            assert row["caption"] == sample["txt"].decode()
            assert row["url"] == json.loads(sample["json"])["url"]
            assert row["image_xxh3"] == xxhash.xxh3_64_intdigest(sample[kind])


def test_any_number_of_processes_writes_the_same_bytes(stock_set: StockSet, tmp_path: Path) -> None:
    folder = stock_set(2, 3, 4)
    for number in (1, 3):
        index(folder, tmp_path / str(number), processes=number)
    names = [f"0000{shard}{ENDING}" for shard in range(3)] + [manifest.NAME]
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_another_folder_gets_links_and_the_first_stays_as_it_was(stock_set: StockSet, tmp_path: Path) -> None:
    folder = stock_set(4)
    before = files(folder)
    for _ in range(2):
        index(folder, tmp_path / "out")
    assert files(folder) == before
    assert (tmp_path / "out" / "00000.tar").read_bytes() == before["00000.tar"][0]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"00000.tar", f"00000{ENDING}", manifest.NAME}


def test_only_tars_that_are_new_or_changed_are_read_again(stock_set: StockSet) -> None:
    folder = stock_set(2, 3, 4)
    index(folder)
    first = files(folder)
    os.utime(folder / "00001.tar", ns=(1, 1))
    shutil.copy(folder / "00000.tar", folder / "extra-a.b.tar")
    (folder / f"00002{ENDING}").unlink()
    (folder / f"00000{ENDING}.123.tmp").touch()
    made, _ = index(folder)
    second = files(folder)
    assert [one.name for one in made.shards] == ["00000", "00001", "00002", "extra-a.b"]
    assert first[f"00000{ENDING}"] == second[f"00000{ENDING}"]
    assert first[f"00001{ENDING}"][1] < second[f"00001{ENDING}"][1]
    assert first[f"00002{ENDING}"][0] == second[f"00002{ENDING}"][0]
    assert f"extra-a.b{ENDING}" in second
    assert f"00000{ENDING}.123.tmp" not in second
    (folder / "extra-a.b.tar").unlink()
    assert [one.name for one in index(folder)[0].shards] == ["00000", "00001", "00002"]


def test_formats_mix_and_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    jpg, png, webp = saved("JPEG"), saved("PNG"), saved("WEBP")
    facts = b'{"caption": "of the JSON", "url": "http://example.org/d"}'
    members = [
        ("__index__", b"of another library"),
        ("a.jpg", jpg), ("a.txt", b" text \n"), ("a.npy", b"more is no harm"),
        ("sub/b.PNG", png), ("sub/b.txt", b"upper case"),
        ("c.webp", webp), ("c.txt", b"without JSON"),
        ("d.jpeg", jpg), ("d.json", facts),
        ("e.jpg", jpg), ("e.txt", b""), ("e.json", facts),
        ("no-picture.txt", b"x"),
        ("no-caption.jpg", jpg), ("no-caption.json", b'{"caption": null}'),
        ("blank.jpg", jpg), ("blank.txt", b" \n"),
        ("two.jpg", jpg), ("two.png", png), ("two.txt", b"x"),
        ("twice.jpg", jpg), ("twice.jpg", png), ("twice.txt", b"x"),
        ("gif.jpg", saved("GIF")), ("gif.txt", b"x"),
        ("none.jpg", b""), ("none.txt", b"x"),
        ("latin.jpg", jpg), ("latin.txt", "\u00e9".encode("latin-1")),
        ("strange.jpg", jpg), ("strange.txt", b"x"), ("strange.json", b"{"),
        ("long.jpg", jpg), ("long.txt", b"x" * (1 << 20) + b"x"),
        ("numbers.jpg", jpg), ("numbers.txt", b"x"), ("numbers.json", b'{"url": 3}'),
    ]  # fmt: skip
    write_tar(tmp_path / "pictures-1.tar", members)
    made, said = index(tmp_path)
    found = {row["key"]: row for row in rows(tmp_path, "pictures-1")}
    assert {key: (row["image_ext"], row["caption"], row["url"]) for key, row in found.items()} == {
        "a": ("jpg", " text \n", None),
        "sub/b": ("png", "upper case", None),
        "c": ("webp", "without JSON", None),
        "d": ("jpeg", "of the JSON", "http://example.org/d"),
        "e": ("jpg", "of the JSON", "http://example.org/d"),
        "numbers": ("jpg", "x", None),
    }
    left_out = {
        "no picture": 1,
        "no caption": 2,
        "more than one picture": 1,
        "a member occurs twice": 1,
        "not a JPEG, PNG or WebP picture": 1,
        "empty picture": 1,
        "a caption or JSON that is not UTF-8": 1,
        "its JSON cannot be read": 1,
        "a caption or JSON above 1,048,576 bytes": 1,
    }
    assert made.lineage["left_out"] == left_out
    assert said == [f"left out: {left_out[reason]:,} samples: {reason}" for reason in sorted(left_out)]
    assert len({key.split(".")[0] for key, _ in members}) == len(found) + sum(left_out.values()) + 1
    assert index(tmp_path)[1] == said, "the counts are known without reading the tar again"


def test_members_of_a_sample_need_not_stand_together(tmp_path: Path) -> None:
    members = [(f"{key}.{kind}", saved("JPEG") if kind == "jpg" else b"x") for kind in ("jpg", "txt") for key in "ab"]
    write_tar(tmp_path / "sorted.tar", members)
    index(tmp_path)
    assert [row["key"] for row in rows(tmp_path, "sorted")] == ["a", "b"]


@pytest.mark.parametrize("damage", ["cut", "no end", "html", "garbage inside"])
def test_a_damaged_tar_is_named_and_kept_only_if_asked(stock_set: StockSet, damage: str) -> None:
    folder = stock_set(4, 6)
    tar = folder / "00001.tar"
    raw = tar.read_bytes()
    samples = [one["__key__"] for one in webdataset.WebDataset(str(tar), shardshuffle=False)]
    with tarfile.open(tar) as archive:
        last = archive.getmember(f"{samples[4]}.jpg")
        end = archive.getmembers()[-1]
    broken = {
        "cut": raw[: last.offset_data + 100],
        "no end": raw[: end.offset_data + 512 * (end.size // 512 + 1)],
        "html": b"<html>" * 999,
        "garbage inside": raw[: last.offset] + b"x" * 512 + raw[last.offset + 512 :],
    }
    whole = {"cut": 3, "no end": 5, "html": 0, "garbage inside": 3}[damage]
    tar.write_bytes(broken[damage])
    for _ in range(2):
        with pytest.raises(RunError, match=rf"00001\.tar is damaged behind {whole} usable samples .*--keep-damaged"):
            index(folder)
        assert (folder / f"00000{ENDING}").exists()
        assert not (folder / f"00001{ENDING}").exists()
        assert not (folder / manifest.NAME).exists()
    made, said = index(folder, keep=True)
    assert [one.samples for one in made.shards] == [4, whole][: 1 + bool(whole)]
    assert [row["key"] for row in rows(folder, "00001")] == samples[:whole]
    assert list(made.lineage["damaged"]) == ["00001"]
    assert f"00001.tar is damaged behind {whole} usable samples" in said[0]
    with pytest.raises(RunError, match=r"00001\.tar is damaged"):
        index(folder)
    tar.write_bytes(raw)
    assert [one.samples for one in index(folder)[0].shards] == [4, 6]


def test_what_is_no_set_of_tars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        index(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"holds no \*\.tar: name another folder"):
        index(tmp_path)
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(UsageError, match="unpack the compressed ones"):
        index(tmp_path)
    write_tar(tmp_path / "a.tar", [("a.bin", b"1")])
    with pytest.raises(UsageError, match=r"no tar in .* holds a sample with a picture"):
        index(tmp_path)


def test_nothing_of_anybody_else_is_replaced(
    stock_set: StockSet, image_set: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"manifest\.json was not written by this command: choose another --output"):
        index(image_set(2))
    folder = stock_set(2)
    pq.write_table(pa.table({"mine": [1]}), folder / f"00000{ENDING}")
    with pytest.raises(UsageError, match=r"00000\.index\.parquet was not written by this command"):
        index(folder)
    (folder / f"00000{ENDING}").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00000.tar").write_bytes(b"mine")
    with pytest.raises(UsageError, match="is a file of another set"):
        index(folder, tmp_path / "out")
    assert (tmp_path / "out" / "00000.tar").read_bytes() == b"mine"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bigdiff.data.index", *arguments]


def test_the_command_and_its_exit_codes(stock_set: StockSet, tmp_path: Path) -> None:
    folder = stock_set(3)
    done = subprocess.run(command(str(folder)), check=True, capture_output=True, text=True)
    assert done.stdout == f"{folder}: 3 samples in 1 tars\n"
    (folder / "00000.tar").write_bytes((folder / "00000.tar").read_bytes()[:3000])
    for arguments, code, text in (
        ([str(folder)], 1, "failed: "),
        ([str(tmp_path / "absent")], 2, "error: "),
        ([str(folder), "--processes", "0"], 2, "error: --processes 0"),
        (["--help"], 0, ""),
    ):
        done = subprocess.run(command(*arguments), check=False, capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert text in done.stderr


def test_a_killed_command_continues(tmp_path: Path) -> None:
    picture = os.urandom(1 << 17)
    for number in range(40):
        members = [
            (f"{row:03d}.{end}", b"\xff\xd8\xff" + picture if end == "jpg" else b"x")
            for row in range(40)
            for end in ("jpg", "txt")
        ]
        write_tar(tmp_path / f"{number:05d}.tar", members)
    process = subprocess.Popen(command(str(tmp_path), "--processes", "1"), stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(f"*{ENDING}")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"*{ENDING}")}
    assert 0 < len(done) < 40
    assert not (tmp_path / manifest.NAME).exists()
    assert index(tmp_path)[0].samples == 1600
    assert {path: path.stat().st_mtime_ns for path in done} == done
