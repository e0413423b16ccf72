"""An image shard set from metadata, phase by phase; killed anywhere and started again, the same bytes come out.

Each phase writes its outcome under a temporary name, renames it, and is skipped when it is there. What the outcome
depends on (the input's checksums, the settings, the versions of what decodes and encodes) is written down first, and a
folder begun with anything else is refused.
"""

import fcntl
import importlib.metadata
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import bigdiff
from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.prep import DEFAULT_JPEG_QUALITY, Prep
from bigdiff.data import manifest
from bigdiff.data.manifest import Manifest
from bigdiff.prep import pack, report, verify
from bigdiff.prep.download import download
from bigdiff.prep.layout import Layout
from bigdiff.prep.select import Count, Histogram, Selection, inputs, select
from bigdiff.runtime.files import remove_leftovers, sha256, write_json
from bigdiff.runtime.workers import Workers

# Settings that change how fast a set is made, or how patiently, but not what it is.
_FREE: Final = {
    "download": {
        "processes",
        "threads",
        "timeout_seconds",
        "deadline_seconds",
        "part_deadline_seconds",
        "retries",
        "max_retry_after_seconds",
    },
    "pack": {"processes"},
}
_PACKAGES: Final = ("duckdb", "img2dataset", "numpy", "pillow", "pyarrow")
_LOCK_SECONDS: Final = 10.0  # a killed job's processes are gone by then


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What `build` made, or found made."""

    manifest: Manifest
    report: Path
    was_finished: bool


def build(prep: Prep, source: Path, output: Path, say: Callable[[str], None]) -> Outcome:
    """Make the image shard set `output` from the parquet file or folder `source`, or continue it.

    Raises:
        UsageError: for unusable input, or an output folder that holds something else.
        RunError: when a download fails or nothing is left.
    """
    made_from = _provenance(prep, inputs(source))
    layout = Layout(output)
    if (output / manifest.NAME).exists():
        finished = manifest.read(output, "images")
        _agree(output, finished.lineage, {key: made_from[key] for key in ("inputs", "settings")})
        if layout.work.exists():
            with _lock(layout):
                shutil.rmtree(layout.work)
        return Outcome(manifest=finished, report=layout.report, was_finished=True)
    try:
        layout.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output} cannot be made ({error.strerror}): name another folder") from error
    try:
        with _lock(layout):
            _begin(layout, made_from)
            finished = _phases(layout, prep, source, made_from, say)
            shutil.rmtree(layout.work)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise RunError(f"{error.strerror}{where}: mend that, and the same command continues") from error
    return Outcome(manifest=finished, report=layout.report, was_finished=False)


def _phases(
    layout: Layout, prep: Prep, source: Path, made_from: dict[str, Any], say: Callable[[str], None]
) -> Manifest:
    say(f"selecting rows of {source}")
    selection = _selection(layout, prep, source)
    say(f"selected {selection.kept:,} of {selection.rows:,} rows; downloading")
    download(layout, prep.download)
    with Workers(prep.pack.processes) as workers:
        deque(workers.each(verify.verify, verify.units(layout, prep), "verifying"), maxlen=0)
        shards = pack.plan(layout, prep.pack)
        tasks = [pack.Task(output=layout.output, number=number, format=prep.pack.format) for number in range(shards)]
        packed = tuple(workers.each(pack.write_shard, tasks, "packing"))
    lineage = {**made_from, "selection": {"rows": selection.rows, "kept": selection.kept}}
    finished = Manifest(kind="images", shards=packed, contract=_contract(prep), lineage=lineage)
    report.write(layout, selection, finished)
    manifest.write(layout.output, finished)
    return finished


def _selection(layout: Layout, prep: Prep, source: Path) -> Selection:
    if layout.selection.exists():
        content = json.loads(layout.selection.read_text())
        counts = tuple(Count(**count) for count in content.pop("counts"))
        histograms = tuple(Histogram(**{**each, "counts": tuple(each["counts"])}) for each in content.pop("histograms"))
        columns = tuple(content.pop("columns"))
        return Selection(counts=counts, histograms=histograms, columns=columns, **content)
    selection = select(inputs(source), prep, layout.selected)
    write_json(layout.selection, asdict(selection))
    return selection


def _contract(prep: Prep) -> dict[str, Any]:
    quality = prep.pack.jpeg_quality or DEFAULT_JPEG_QUALITY
    return {
        "resolution": prep.pack.resolution,
        "format": prep.pack.format,
        "quality": f"jpeg {quality}, 4:4:4" if prep.pack.format == "jpg" else "lossless",
        "pixel_range": "uint8 RGB, 0 to 255",
        "resize": "pillow bicubic, antialiased",
        "crop": "centre square",
        "orientation": "applied",
        "transparency": "on white",
        "colour_profile": "not applied",
    }


def _provenance(prep: Prep, files: tuple[Path, ...]) -> dict[str, Any]:
    """What the bytes of a set depend on."""
    settings = asdict(prep)
    for section, free in _FREE.items():
        settings[section] = {key: value for key, value in settings[section].items() if key not in free}
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    made_from = {
        "inputs": {file.name: sha256(file) for file in files},
        "settings": settings,
        "versions": {"bigdiff": bigdiff.__version__, **versions},
    }
    plain: dict[str, Any] = json.loads(json.dumps(made_from))  # tuples become lists, as they will be when read back
    return plain


def _begin(layout: Layout, made_from: dict[str, Any]) -> None:
    """Write down what the set is made from, or agree with what is written; clear up after a killed writer."""
    if layout.settings.exists():
        _agree(layout.output, json.loads(layout.settings.read_text()), made_from)
    else:
        foreign = sorted(path.name for path in layout.output.iterdir() if path != layout.work)
        if foreign:
            raise UsageError(
                f"--output {layout.output} holds {foreign[0]!r} and is no set begun here: name an empty folder"
            )
        write_json(layout.settings, made_from)
    written = (layout.output, layout.report.parent, layout.work)
    for folder in (*written, layout.samples, layout.pictures, layout.rejected, layout.shards):
        remove_leftovers(folder)


def _agree(output: Path, made: dict[str, Any], wanted: dict[str, Any]) -> None:
    before, now = _flat({key: made[key] for key in wanted}), _flat(wanted)
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise UsageError(
                f"{output} was made with {key}={before.get(key, 'absent')}, now it is {now.get(key, 'absent')}: "
                "go back to that, name another --output, or delete the folder"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}".removeprefix("settings.")] = value
    return leaves


@contextmanager
def _lock(layout: Layout) -> Iterator[None]:
    """Hold the folder: two jobs in it would damage each other. The kernel lets go when this process ends."""
    held = os.open(layout.work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise UsageError(
                        f"another build_shards.py is working in {layout.output}: wait for it or end it"
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(held)
