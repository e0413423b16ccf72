"""`data_prep/build_shards.py` on a real server with every planted fault: counts, pixels, kills, bytes, refusals."""

import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from bigdiff.data import manifest
from bigdiff.prep.download import MARK
from bigdiff.prep.layout import WORK
from bigdiff.quickstart.dataset import META, METADATA, Options, draw, metadata, rows
from bigdiff.quickstart.faults import AWKWARD, FAULTY, SOUND, fewer
from bigdiff.quickstart.files import truth
from bigdiff.quickstart.scenes import scene
from bigdiff.quickstart.server import serve
from bigdiff.runtime.files import sha256

ROOT = Path(__file__).resolve().parents[2]
DOOR = [sys.executable, str(ROOT / "data_prep" / "build_shards.py")]
SETTINGS = ["download.rows_per_file=150", "pack.samples_per_shard=100"]
SLOW = ("hanging", "dripping")  # left out where only the bytes matter: they take seconds a run
KILLS = 10
# Files whose appearance tells the phase, and how long after that a kill may come, in parts of an undisturbed run.
MILESTONES = (
    ("_work/settings.json", 0.05),
    ("_work/selection.json", 0.05),
    ("_work/download/00000/arguments.json", 0.3),
    ("_work/download/00000/first/00000.tar", 0.01),
    ("_work/download/00000/first/00001_stats.json", 0.01),
    ("_work/download/00000/second/rows.parquet", 0.05),
    ("_work/download/00000/done.json", 0.1),
    ("_work/pictures/*", 0.01),
    ("_work/samples/*.parquet", 0.01),
    ("_work/plan.parquet", 0.05),
    ("00000.tar*", 0.01),
    ("_work/shards/*.json", 0.01),
    ("report/index.html*", 0.0),
)


@dataclass(frozen=True)
class Served:
    """A drawn dataset and its running server."""

    folder: Path
    options: Options

    @property
    def meta(self) -> Path:
        return self.folder / META


def command(meta: Path, output: Path, *more: str) -> list[str]:
    return [*DOOR, "--config", "quickstart", "--input", str(meta), "--output", str(output), *SETTINGS, *more]


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, timeout=480, cwd=ROOT)


def finals(output: Path) -> dict[str, str]:
    return {str(path.relative_to(output)): sha256(path) for path in sorted(output.rglob("*")) if path.is_file()}


def downloading(output: Path) -> list[Path]:
    """The processes that download for this set, after five seconds in which killed ones may end."""
    mark = f"{MARK}={(output / WORK).resolve()}/".encode()
    end = time.monotonic() + 5
    while found := [path for path in Path("/proc").glob("[0-9]*/environ") if mark in _read(path)]:
        if time.monotonic() > end:
            return found
        time.sleep(0.05)
    return []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""


@contextmanager
def served(folder: Path, options: Options) -> Iterator[Served]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = replace(options, port=port)
    draw(folder, options, processes=1)
    with serve(folder, port):
        yield Served(folder, options)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """400 pictures and three of each fault, but two of those that take seconds."""
    options = Options(count=400, awkward=fewer(AWKWARD, 6), faulty=fewer(FAULTY, 3))
    with served(tmp_path_factory.mktemp("everything"), options) as running:
        yield running


@pytest.fixture(scope="module")
def finished(everything: Served) -> Path:
    output = everything.folder / "images"
    done = run(*command(everything.meta, output))
    assert done.returncode == 0, done.stderr
    assert "400 samples in 4 shards" in done.stdout
    for told in (
        r"part 00000: \d+ of \d+ pictures fetched in \d\d:\d\d; lost: \w",
        r"part 00000: \d+ of \d+ pictures are sound",
    ):
        assert re.search(f"^{told}", done.stderr.replace("\r", "\n"), re.MULTILINE), done.stderr
    return output


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    faulty = tuple(kind for kind in fewer(FAULTY, 2) if kind.name not in SLOW)
    with served(tmp_path_factory.mktemp("quick"), Options(count=400, faulty=faulty)) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(quick: Served) -> tuple[dict[str, str], float]:
    """The bytes of an undisturbed run with one process, and the seconds it took."""
    begin = time.monotonic()
    done = run(*command(quick.meta, quick.folder / "alone", "pack.processes=1", "download.processes=1"))
    assert done.returncode == 0, done.stderr
    return finals(quick.folder / "alone"), time.monotonic() - begin


def test_every_planted_fault_is_counted_under_its_cause(everything: Served, finished: Path) -> None:
    planted = Counter((kind.step, kind.cause) for kind in everything.options.faulty for _ in range(kind.count))
    page = (finished / "report" / "index.html").read_text()
    for (step, cause), count in planted.items():
        shown = cause.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#x27;")
        cells = page.split(f"<tr><td>{shown}</td>")
        assert len(cells) == 2, cause
        numbers = [cell.partition("</td>")[0] for cell in cells[1].split('<td class="n">')[1:4]]
        if step == "select":  # left, lost here, only this rule
            assert numbers[1:] == [str(count), str(count)], cause
        else:
            assert numbers[0] == str(count), cause
    assert manifest.read(finished, "images").samples == everything.options.count


def test_stored_pixels_and_captions_are_the_truth(everything: Served, finished: Path) -> None:
    made = rows(everything.options)
    table = metadata(made, everything.options)
    by_url = {url: row for url, row in zip(table["URL"], made, strict=True) if row.kind != "duplicate_url"}
    captions = dict(zip(table["URL"], table["TEXT"], strict=True))
    seen: Counter[str] = Counter()
    for file in sorted(finished.glob("*.parquet")):
        content = file.with_suffix(".tar").read_bytes()
        for sample in pq.read_table(file).to_pylist():
            row = by_url[sample["url"]]
            seen[row.kind] += 1
            stored = content[sample["jpg_offset"] : sample["jpg_offset"] + sample["jpg_length"]]
            shown = np.asarray(Image.open(io.BytesIO(stored))).astype(int)
            wanted = np.asarray(truth(SOUND if "duplicate" in row.kind else row.kind, scene(0, row.scene), 96))
            assert shown.shape == wanted.shape == (96, 96, 3), row
            # WebP stores colour at half the resolution.
            assert np.abs(shown - wanted).mean() < (4.0 if row.path.endswith("webp") else 2.0), row
            assert sample["caption"] == captions[sample["url"]]
    awkward = {kind.name: kind.count for kind in everything.options.awkward}
    assert {kind: count for kind, count in seen.items() if kind in awkward} == awkward
    assert sum(seen.values()) == everything.options.count
    assert set(seen) <= {SOUND, "duplicate_bytes", *awkward}  # of two equal pictures either may be the first


def test_stock_webdataset_gets_every_sample(finished: Path) -> None:
    tars = [str(path) for path in sorted(finished.glob("*.tar"))]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    listed = [row for file in sorted(finished.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in listed]
    assert [sample["txt"] for sample in samples] == [row["caption"] for row in listed]
    assert all(sample["jpg"].size == (96, 96) for sample in samples)
    assert [sample["json"]["url"] for sample in samples] == [row["url"] for row in listed]
    written = json.loads((finished / "manifest.json").read_text())
    assert [sha256(Path(tar)) for tar in tars] == [shard["sha256"] for shard in written["shards"]]


def test_a_finished_set_says_so(everything: Served, finished: Path) -> None:
    before = finals(finished)
    again = run(*command(everything.meta, finished))
    assert again.returncode == 0
    assert "was finished already: 400 samples" in again.stdout
    assert finals(finished) == before


def test_killed_anywhere_and_started_again_the_same_bytes(
    quick: Served, undisturbed: tuple[dict[str, str], float]
) -> None:
    """SIGKILL of the command at random moments of every phase, with two processes; the undisturbed run had one."""
    wanted, seconds = undisturbed
    output, chosen, killed = quick.folder / "killed", random.Random(8), 0
    words = command(quick.meta, output)
    for milestone, delay in MILESTONES:
        process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not any(output.glob(milestone)):
            time.sleep(0.002)
        try:
            process.wait(chosen.uniform(0.0, delay) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
    assert killed >= KILLS
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert finals(output) == wanted
    assert downloading(output) == []


def test_ctrl_c_ends_every_process_and_says_how_to_go_on(quick: Served, tmp_path: Path) -> None:
    words = command(quick.meta, tmp_path / "set")
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "set" / "_work" / "download" / "00000" / "log.txt").exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command again continues" in said
    assert downloading(tmp_path / "set") == []


def test_unusable_input_is_one_sentence_and_exit_code_2(quick: Served, tmp_path: Path) -> None:
    table = pq.read_table(quick.meta / METADATA)
    for name in ("missing", "unreadable", "empty"):
        (tmp_path / name).mkdir()
    pq.write_table(table.drop_columns(["AESTHETIC_SCORE"]), tmp_path / "missing" / "a.parquet")
    (tmp_path / "unreadable" / "a.parquet").write_bytes((quick.meta / METADATA).read_bytes()[:-100])
    pq.write_table(table.slice(0, 0), tmp_path / "empty" / "a.parquet")
    output = tmp_path / "output"
    cases = {
        "AESTHETIC_SCORE or aesthetic": command(tmp_path / "missing", output),
        "a.parquet is not a readable parquet file": command(tmp_path / "unreadable", tmp_path / "b"),
        "no rows": command(tmp_path / "empty", tmp_path / "c"),
        "'aesthetic > 99'": command(quick.meta, tmp_path / "d", "select.aesthetic_above=99"),
        "colour": command(quick.meta, tmp_path / "e", "pack.colour=true"),
        "name a local folder": [*command(quick.meta, tmp_path / "f"), "--output", "s3://bucket/set"],
        "was made with pack.resolution=96, now it is 64": command(
            quick.meta, quick.folder / "alone", "pack.resolution=64"
        ),
    }
    for sentence, words in cases.items():
        done = run(*words)
        assert done.returncode == 2, (sentence, done.stdout, done.stderr)
        assert sentence.lower() in done.stderr.lower(), done.stderr
        assert "Traceback" not in done.stderr
    assert not any(path.suffix == ".tar" for path in tmp_path.rglob("*"))


def test_a_dry_run_counts_and_writes_nothing(quick: Served, tmp_path: Path) -> None:
    done = run(*command(quick.meta, tmp_path / "nothing", "--dry-run"))
    assert done.returncode == 0
    assert "aesthetic > 5" in done.stdout
    assert "resolution: 96" in done.stdout
    assert not (tmp_path / "nothing").exists()
