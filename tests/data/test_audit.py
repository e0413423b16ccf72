"""The command on a real image set, as a user calls it."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from bigdiff.data import ledger, manifest
from bigdiff.data.course import Course
from bigdiff.data.damage import Consumed, Substitution
from bigdiff.data.ledger import Ledger, Place
from bigdiff.data.mixture import Source
from bigdiff.data.pages import Skip
from bigdiff.data.stream import digest

TOTAL, STEPS = 4, 9
DEAD = (0, 1, 1)  # source, shard and row that were taken down


def audit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bigdiff.data.audit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def train(run: Path, sets: list[Path], steps: range, fingerprint: str = "", skips: tuple[Skip, ...] = ()) -> str:
    """The ledger of one process that read the sets' course and found `DEAD` dead."""
    manifests = [manifest.read(folder, "images") for folder in sets]
    pairs = zip(sets, manifests, strict=True)
    sources = tuple(
        Source(name=str(folder), sizes=one.sizes, buckets=one.buckets, proportion=0.5) for folder, one in pairs
    )
    order = Course(sources=sources, seed=4, window=2, lanes=1, total=TOTAL)
    hashes = [sha256((folder / manifest.NAME).read_bytes()).hexdigest() for folder in sets]
    place = Place(start=ledger.new_start(run), step=steps.start, rank=0, size=1)
    header = ledger.header(order, hashes, "images", place)
    opened = Ledger(run, replace(header, fingerprint=fingerprint or order.fingerprint))
    for step in steps:
        picks = order.locate(step, 0, TOTAL)
        samples = np.stack((picks.sources, picks.shards, picks.rows))
        lost = []
        for at in range(TOTAL):
            if tuple(samples[:, at].tolist()) == DEAD:
                source, shard, row = DEAD
                position = step * TOTAL + at
                lost.append(Substitution(position=position, source=source, shard=shard, row=row, reason="tombstone"))
                samples[:, at] = order.substitute(position, 1)
        digested = digest(*samples)
        opened.write(step, [Consumed(position=step * TOTAL, samples=TOTAL, digest=digested, substituted=tuple(lost))])
        for skip in skips:
            if skip.end == step + 1:
                opened.skip(skip.begin, skip.end, skip.reason)
    opened.close()
    return place.start


@pytest.fixture
def run(tmp_path: Path, image_set: Callable[..., Path]) -> Path:
    """A run of two starts over two sets; one sample was taken down."""
    sets = [image_set(3, 2, 3, name="first"), image_set(4, 4, name="second")]
    folder = tmp_path / "run"
    train(folder, sets, range(0, 6))
    train(folder, sets, range(4, STEPS))
    return folder


def test_a_run_is_proven_from_its_audit_folder_and_sets_alone(run: Path) -> None:
    done = audit(str(run), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["proven"] and told["faults"] == []
    assert [told[name] for name in ("steps", "positions", "redone_steps")] == [9, 36, 2]
    assert [told[name] for name in ("missing", "duplicates", "overlaps", "wrong_digests")] == [0, 0, 0, 0]
    assert [(one["resumed"], one["recorded"], one["counted"], one["size"]) for one in told["starts"]] == [
        (0, 6, 4, 1),
        (4, 5, 5, 1),
    ]
    assert [(one["source"], one["samples"], one["passes"]) for one in told["sources"]] == [
        (str(run.parent / "first"), 18, 18 / 8),
        (str(run.parent / "second"), 18, 18 / 8),
    ]
    assert told["substituted"]["tombstone"] >= 2
    shown = audit(str(run))
    assert shown.returncode == 0
    assert "proven" in shown.stdout and "NOT" not in shown.stdout and "tombstone" in shown.stdout
    assert "passes over" in shown.stdout
    part = json.loads(audit(str(run), "--json", "--fast", "--steps", "5").stdout)
    assert (part["steps"], part["wrong_digests"], part["proven"]) == (5, None, True)


def test_a_sample_is_looked_up(run: Path) -> None:
    told = json.loads(audit(str(run), "--json", "--key", "000020001").stdout)
    (found,) = told["found"]  # the second set has no third shard
    assert (found["source"], found["shard"], found["row"]) == (str(run.parent / "first"), "00002", 1)
    steps = found["sighting"]["steps"]
    assert len(steps) >= 2 and steps == [position // TOTAL for position in found["sighting"]["positions"]]
    assert told["answer"] == f"trained on {len(steps)} times: key 000020001 at steps {', '.join(map(str, steps))}"
    # both sets have that URL; the one of the first was taken down
    told = json.loads(audit(str(run), "--json", "--url", "http://example.org/000010001").stdout)
    dead, alive = (one["sighting"] for one in told["found"])
    assert dead["positions"] == [] and {one["reason"] for one in dead["replaced"]} == {"tombstone"}
    assert len(alive["positions"]) >= 2 and alive["replaced"] == []
    assert f"not used at {len(dead['replaced'])} more" in told["answer"]
    never = audit(str(run), "--sha256", "0" * 64)
    assert never.returncode == 0
    assert f"never trained on: no sample of the run's sets has sha256 {'0' * 64}" in never.stdout
    shown = audit(str(run), "--key", "000020001")
    assert "trained on" in shown.stdout and "position" in shown.stdout


def test_steps_that_moved_no_weights_are_said_and_not_counted(run: Path) -> None:
    before = json.loads(audit(str(run), "--json").stdout)
    asked = json.loads(audit(str(run), "--json", "--key", "000020001").stdout)
    (found,) = asked["found"]
    last = found["sighting"]["steps"][-1]
    sets = [run.parent / "first", run.parent / "second"]
    windows = (Skip(begin=7, end=8, reason="non-finite loss"), Skip(begin=6, end=9, reason="loss spike"))
    train(run, sets, range(5, STEPS), skips=windows)
    told = json.loads(audit(str(run), "--json").stdout)
    assert told["proven"] and told["positions"] == before["positions"]
    assert told["skipped"] == [{"begin": 6, "end": 9, "samples": 12, "reason": "loss spike"}]
    given = [one["samples"] for one in told["sources"]]
    assert sum(given) == before["positions"] - 12 and given == [12, 12]
    shown = audit(str(run)).stdout
    assert "steps 6-8 moved no weights: loss spike; their 12 samples are not counted as trained on" in shown
    again = json.loads(audit(str(run), "--json", "--key", "000020001").stdout)
    (found,) = again["found"]
    assert last >= 6 and last not in found["sighting"]["steps"]
    assert {one["step"] for one in found["sighting"]["idle"]} >= {last}
    assert (
        f"read at steps that moved no weights: {found['sighting']['idle'][0]['step']} (loss spike)" in again["answer"]
    )
    assert "weights: loss spike" in audit(str(run), "--key", "000020001").stdout


def test_what_is_not_proven_is_said_and_exits_with_1(run: Path) -> None:
    sets = [run.parent / "first", run.parent / "second"]
    start = train(run, sets, range(8, 12), fingerprint="ab" * 32)
    done = audit(str(run))
    assert done.returncode == 1
    assert "NOT PROVEN" in done.stdout
    assert "failed: not proven: 1 faults, the first: rank 0 at step 8" in done.stderr
    assert f"{start}/rank-00000-of-00001.ledger has the fingerprint abababababab" in done.stdout.replace("\n", "")
    asked = audit(str(run), "--json", "--key", "000020001")
    assert asked.returncode == 1 and json.loads(asked.stdout)["proven"] is False


def test_a_set_that_moved_is_named_anew_and_another_one_is_refused(run: Path, image_set: Callable[..., Path]) -> None:
    moved = run.parent / "moved"
    (run.parent / "second").rename(moved)
    lost = audit(str(run))
    assert lost.returncode == 2
    assert "second/manifest.json" in lost.stderr and f"--set '{moved.with_name('second')}=LOCATION'" in lost.stderr
    assert audit(str(run), "--fast").returncode == 0
    found = audit(str(run), "--set", f"{moved.with_name('second')}={moved}")
    assert found.returncode == 0, found.stderr
    other = audit(str(run), "--set", f"{moved.with_name('second')}={image_set(5, name='other')}")
    assert other.returncode == 2 and "another sha256 than the manifest that the run read" in other.stderr
    unknown = audit(str(run), "--set", f"third={moved}")
    assert unknown.returncode == 2 and "the run read no such set, only" in unknown.stderr


def test_help_and_a_run_without_an_audit(tmp_path: Path) -> None:
    assert "--sha256" in audit("--help").stdout
    done = audit(str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path} has no audit: train with data.audit=true to keep one\n"
