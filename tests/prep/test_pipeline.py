import json
import multiprocessing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.prep import Download, Pack, Prep, Select
from bigdiff.data import manifest
from bigdiff.data.manifest import Manifest, Shard
from bigdiff.prep import claim, pipeline, provenance
from bigdiff.prep.layout import Layout
from bigdiff.prep.pipeline import build
from bigdiff.runtime.workers import Workers

PREP = Prep(download=Download(allow_private_addresses=True))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "meta").mkdir()
    pq.write_table(pa.table({"URL": ["ftp://example.com/a"], "TEXT": ["a"]}), tmp_path / "meta" / "a.parquet")
    return tmp_path / "meta"


def begin(prep: Prep, source: Path, output: Path) -> str:
    """Start a job; this input keeps no row, so it ends after selection at the latest."""
    with pytest.raises(UsageError) as stopped:
        build(prep, source, output, Workers(1), lambda line: None)
    return str(stopped.value)


def test_a_folder_begun_with_other_settings_is_refused_by_the_key(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "set"
    assert "no row" in begin(PREP, source, output)
    assert "no row" in begin(PREP, source, output)
    other = begin(Prep(download=PREP.download, pack=Pack(resolution=7)), source, output)
    assert "pack.resolution=512, now it is 7" in other
    assert "name another --output" in other


def test_a_selection_is_read_back_as_it_was(tmp_path: Path) -> None:
    rows = {"URL": ["http://a.example/1"], "TEXT": ["a"], "AESTHETIC_SCORE": [6.0], "WIDTH": [9], "HEIGHT": [9]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    prep = Prep(select=Select(aesthetic_above=5.0), download=PREP.download)
    layout = Layout(tmp_path / "set")
    layout.work.mkdir(parents=True)
    made = pipeline._selection(layout, prep, tmp_path / "a.parquet")
    (tmp_path / "a.parquet").unlink()
    assert made.sweeps
    assert made.histograms
    assert pipeline._selection(layout, prep, tmp_path / "a.parquet") == made


def test_settings_of_speed_and_patience_may_change(source: Path, tmp_path: Path) -> None:
    begin(PREP, source, tmp_path / "set")
    faster = Download(allow_private_addresses=True, processes=7, threads=3, retries=0, timeout_seconds=1.0)
    assert "no row" in begin(Prep(download=faster, pack=Pack(processes=5)), source, tmp_path / "set")


def test_who_starts_the_processes_may_change_and_is_asked_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "absent"))
    on_spark = Prep(download=Download(allow_private_addresses=True, distributor="pyspark", spark_master="local[1]"))
    assert "download.distributor=pyspark needs" in begin(on_spark, source, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    begin(PREP, source, tmp_path / "set")
    before = json.loads(Layout(tmp_path / "set").settings.read_text())["settings"]["download"]
    assert before.keys().isdisjoint({"distributor", "spark_master", "processes"})


def test_other_input_and_other_versions_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(PREP, source, tmp_path / "set")
    monkeypatch.setattr(provenance.importlib.metadata, "version", lambda name: "0.0")
    assert "versions.duckdb" in begin(PREP, source, tmp_path / "set")
    monkeypatch.undo()
    pq.write_table(pa.table({"URL": ["ftp://example.com/b"], "TEXT": ["b"]}), source / "b.parquet")
    assert "inputs.b.parquet=absent" in begin(PREP, source, tmp_path / "set")


def test_a_folder_with_foreign_files_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "holiday.jpg").touch()
    assert "holds 'holiday.jpg'" in begin(PREP, source, tmp_path / "set")


def test_an_output_that_cannot_be_a_folder_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be made" in begin(PREP, source, tmp_path / "file" / "set")


def test_a_reader_is_told_how_pictures_were_cropped() -> None:
    """Those lines that squares and buckets always had; whole pictures have another crop."""
    lines = {
        "resolution": 512,
        "format": "jpg",
        "quality": "jpeg 95, 4:4:4",
        "pixel_range": "uint8 RGB, 0 to 255",
        "resize": "bicubic, antialiased (torch, uint8)",
        "crop": "centre square",
        "orientation": "applied",
        "transparency": "on white",
        "colour_profile": "not applied",
    }
    assert list(pipeline.contract(PREP).items()) == list(lines.items())
    assert pipeline.contract(Prep(pack=Pack(crop="none"))) == {**lines, "crop": "none"}
    steps = pipeline.contract(Prep(pack=Pack(bucket_step=512)))
    assert steps == {**lines, "buckets": ["512x512"], "crop": "centre of the nearest aspect"}


def test_a_finished_set_is_left_as_it_is_and_cleared_up(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "set"
    begin(PREP, source, output)
    made_from = json.loads(Layout(output).settings.read_text())
    shard = Shard(name="00000", samples=3, bytes=1, sha256="0")
    manifest.write(output, Manifest(kind="images", shards=(shard,), contract={}, lineage=made_from))
    made = build(PREP, source, output, Workers(1), lambda line: None)
    assert made.was_finished
    assert made.manifest.samples == 3
    assert not Layout(output).work.exists()
    assert "pack.resolution" in begin(Prep(download=PREP.download, pack=Pack(resolution=7)), source, output)


def _hold(output: str, held: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    with claim.lock(Layout(Path(output))):
        held.set()
        done.wait(30)


def test_two_jobs_do_not_share_a_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "LOCK_SECONDS", 0.3)
    Layout(tmp_path / "set").work.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path / "set"), held, done))
    other.start()
    assert held.wait(30)
    assert "another job is working" in begin(PREP, source, tmp_path / "set")
    done.set()
    other.join()
    assert "no row" in begin(PREP, source, tmp_path / "set")
