"""Sets that someone else wrote: any folder of plain WebDataset tars, as stock img2dataset leaves it, made readable.

Nobody's file is changed. Beside `NAME.tar` comes `NAME.index.parquet` (img2dataset's own `NAME.parquet` has rows for
what failed, too) with a row per usable sample: `key`, `caption` (of `.txt`, else of the JSON), `url` (of the JSON, else
null) and, whatever the picture's format, `image_ext`, `image_offset`, `image_length`, `image_xxh3`. `manifest.json`
comes last. A tar whose size and time are those of its index is not read again.
"""

import argparse
import json
import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data import manifest
from bigdiff.data.manifest import Manifest, Shard
from bigdiff.data.tars import Entry, TarFile, split
from bigdiff.runtime import files
from bigdiff.runtime.files import TEMPORARY, replacing
from bigdiff.runtime.workers import Workers

ENDING: Final = ".index.parquet"
VERSION: Final = 1  # of what is written; another one is written anew
MAKER: Final = "bigdiff.data.index"
EXTENSIONS: Final = ("jpg", "jpeg", "png", "webp")
MAX_TEXT: Final = 1 << 20  # bytes of a caption or a JSON that are read
_FACTS: Final = b"bigdiff"  # where the parquet's schema keeps what is known of the tar
_METADATA: Final = re.compile(r"__[^/]*__($|/)")  # as in WebDataset
_SIGNATURES: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
SCHEMA: Final = pa.schema(
    {
        "key": pa.string(),
        "caption": pa.string(),
        "url": pa.string(),
        "image_ext": pa.string(),
        "image_offset": pa.int64(),
        "image_length": pa.int64(),
        "image_xxh3": pa.uint64(),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One tar to index."""

    tar: Path
    output: Path
    keep_damaged: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What is known of a tar, as its index keeps it."""

    name: str
    samples: int
    bytes: int
    time: int  # of its last change, nanoseconds
    sha256: str
    left_out: dict[str, int]  # samples by reason
    damage: str = ""  # what is wrong behind the last sample
    version: int = VERSION


@dataclass(kw_only=True, slots=True)
class _Sample:
    members: dict[str, Entry] = field(default_factory=dict)
    twice: bool = False


class _Unusable(Exception):
    """Why a sample is left out: fit for a count."""


def index_folder(
    folder: Path, output: Path, processes: int, keep_damaged: bool, say: Callable[[str], None]
) -> Manifest:
    """Index every tar in `folder` and write the manifest into `output`; with another `output`, links to the tars, too.

    Raises:
        UsageError: when there is no tar, or `output` holds another set.
        RunError: when a tar is damaged, after the others were indexed, unless `keep_damaged`.
    """
    tars = find(folder)
    _refuse_other_set(output)
    output.mkdir(parents=True, exist_ok=True)
    for leftover in output.glob(f"*{ENDING}.*{TEMPORARY}"):
        leftover.unlink(missing_ok=True)
    tasks = [Task(tar=tar, output=output, keep_damaged=keep_damaged) for tar in tars]
    with Workers(processes) as workers:
        outcomes = list(workers.each(index_tar, tasks, "indexing"))
    _report_damage(folder, outcomes, keep_damaged, say)
    left_out: Counter[str] = sum((Counter(one.left_out) for one in outcomes), Counter())
    for reason, count in sorted(left_out.items()):
        say(f"left out: {count:,} samples: {reason}")
    shards = tuple(
        Shard(
            name=one.name,
            samples=one.samples,
            bytes=one.bytes,
            sha256=one.sha256,
            index_sha256=files.sha256(output / f"{one.name}{ENDING}"),
        )
        for one in outcomes
        if one.samples
    )
    if not shards:
        raise UsageError(f"no tar in {folder} holds a sample with a picture ({', '.join(EXTENSIONS)}) and a caption")
    if output.resolve() != folder.resolve():
        for shard in shards:
            _link(folder / f"{shard.name}.tar", output / f"{shard.name}.tar")
    lineage = {
        "maker": MAKER,
        "left_out": dict(left_out),
        "damaged": {one.name: one.damage for one in _damaged(outcomes)},
    }
    made = Manifest(kind="images", shards=shards, lineage=lineage, index=ENDING)
    manifest.write(output, made)
    return made


def find(folder: Path) -> list[Path]:
    """The tars in `folder` (not below it), by name.

    Raises:
        UsageError: when there are none.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: name the one that holds the tars")
    found = sorted(path for path in folder.glob("*.tar") if path.is_file() and not path.name.startswith("."))
    if not found:
        packed = any(folder.glob("*.tar.*")) or any(folder.glob("*.tgz"))
        mend = "unpack the compressed ones (gunzip): their members have no offsets" if packed else "name another folder"
        raise UsageError(f"{folder} holds no *.tar: {mend}")
    return found


def index_tar(task: Task) -> Outcome:
    """Write the index of one tar, unless that is done, or the tar is damaged and `keep_damaged` is not set."""
    try:
        status = task.tar.stat()
        final = task.output / f"{task.tar.stem}{ENDING}"
        known = earlier(final)
        fresh = known is not None and (known.bytes, known.time) == (status.st_size, status.st_mtime_ns)
        if known is not None and fresh and (task.keep_damaged or not known.damage):
            return known
        table, outcome = read(task.tar, status.st_mtime_ns)
    except OSError as error:
        raise UsageError(f"cannot read {task.tar} ({error.strerror}): make it readable, or move it away") from error
    if task.keep_damaged or not outcome.damage:
        facts = {_FACTS: json.dumps(_plain(outcome), sort_keys=True).encode()}
        with replacing(final) as temporary:
            pq.write_table(table.replace_schema_metadata(facts), temporary)
    return outcome


def earlier(file: Path) -> Outcome | None:
    """What an index says of its tar; None where there is none, or one of another version.

    Raises:
        UsageError: for a file that this command did not write, which it will not replace.
    """
    if not file.exists():
        return None
    try:
        found = json.loads(pq.read_schema(file).metadata[_FACTS])
        return Outcome(**found) if found["version"] == VERSION else None
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{file} was not written by this command: choose another --output") from error


def read(tar: Path, time: int) -> tuple[pa.Table, Outcome]:
    """The index of a tar, and what is known of it: the whole samples in front of a damage, where there is one."""
    samples: dict[str, _Sample] = {}
    left_out: Counter[str] = Counter()
    damage = ""
    with TarFile(tar, checksums=True) as opened:
        try:
            for entry in opened:
                _collect(samples, entry)
        except tarfile.TarError as error:
            damage = str(error)
            if samples:
                samples.popitem()  # the last one may lack members; nobody can tell
        rows = []
        for key, sample in samples.items():
            try:
                rows.append({"key": key, **_row(opened, sample)})
            except _Unusable as error:
                left_out[str(error)] += 1
        size, sha256 = opened.finish()
    outcome = Outcome(
        name=tar.stem,
        samples=len(rows),
        bytes=size,
        time=time,
        sha256=sha256,
        left_out=dict(left_out),
        damage=damage,
    )
    return pa.Table.from_pylist(rows, SCHEMA), outcome


def _collect(samples: dict[str, _Sample], entry: Entry) -> None:
    key, extension = split(entry.name)
    if not (entry.plain and extension and key.rpartition("/")[2]) or _METADATA.match(entry.name):
        return  # folders, links and metadata are no members of samples; WebDataset skips them, too
    sample = samples.setdefault(key, _Sample())
    sample.twice |= extension.lower() in sample.members
    sample.members[extension.lower()] = entry


def _row(opened: TarFile, sample: _Sample) -> dict[str, Any]:
    if sample.twice:
        raise _Unusable("a member occurs twice")
    pictures = [extension for extension in EXTENSIONS if extension in sample.members]
    if len(pictures) != 1:
        raise _Unusable("more than one picture" if pictures else "no picture")
    picture = sample.members[pictures[0]]
    if not picture.length:
        raise _Unusable("empty picture")
    begin = opened.read(picture, 12)
    if not begin.startswith(_SIGNATURES) and not (begin.startswith(b"RIFF") and begin.endswith(b"WEBP")):
        raise _Unusable("not a JPEG, PNG or WebP picture")
    facts = _json(opened, sample)
    url = facts.get("url")
    return {
        "caption": _caption(opened, sample, facts),
        "url": url if isinstance(url, str) else None,
        "image_ext": pictures[0],
        "image_offset": picture.offset,
        "image_length": picture.length,
        "image_xxh3": picture.xxh3,
    }


def _caption(opened: TarFile, sample: _Sample, facts: dict[str, Any]) -> str:
    text = _text(opened, sample.members["txt"]) if "txt" in sample.members else ""
    if not text.strip():
        stated = facts.get("caption")
        text = stated if isinstance(stated, str) else ""
    if not text.strip():
        raise _Unusable("no caption")
    return text


def _json(opened: TarFile, sample: _Sample) -> dict[str, Any]:
    if "json" not in sample.members:
        return {}
    try:
        found = json.loads(_text(opened, sample.members["json"]))
    except ValueError:
        raise _Unusable("its JSON cannot be read") from None
    return found if isinstance(found, dict) else {}


def _text(opened: TarFile, entry: Entry) -> str:
    if entry.length > MAX_TEXT:
        raise _Unusable(f"a caption or JSON above {MAX_TEXT:,} bytes")
    try:
        return opened.read(entry).decode()
    except UnicodeDecodeError:
        raise _Unusable("a caption or JSON that is not UTF-8") from None


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in Outcome.__slots__}


def _damaged(outcomes: list[Outcome]) -> list[Outcome]:
    return [one for one in outcomes if one.damage]


def _report_damage(folder: Path, outcomes: list[Outcome], keep: bool, say: Callable[[str], None]) -> None:
    damaged = [
        f"{folder / one.name}.tar is damaged behind {one.samples:,} usable samples ({one.damage})"
        for one in _damaged(outcomes)
    ]
    if damaged and not keep:
        raise RunError(
            f"{'; '.join(damaged[:5])}{'; ...' if len(damaged) > 5 else ''}. {len(outcomes) - len(damaged):,} of "
            f"{len(outcomes):,} tars are indexed: fetch the damaged again or move them away, or keep their usable "
            f"samples with --keep-damaged, and give the same command again"
        )
    for line in damaged:
        say(f"{line}: these are kept")


def _refuse_other_set(output: Path) -> None:
    try:
        found = json.loads((output / manifest.NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise UsageError(f"{output / manifest.NAME} cannot be read ({error}): choose another --output") from error
    lineage = found.get("lineage") if isinstance(found, dict) else None
    if not isinstance(lineage, dict) or lineage.get("maker") != MAKER:
        raise UsageError(f"{output / manifest.NAME} was not written by this command: choose another --output")


def _link(tar: Path, link: Path) -> None:
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise UsageError(f"{link} is a file of another set: choose another --output")
    os.symlink(tar.resolve(), link)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MAKER}",
        description="Make a folder of plain WebDataset tars that someone else wrote (KEY.jpg, KEY.txt, KEY.json, as "
        "stock img2dataset does) readable by bigdiff.data: an index per tar and a manifest. No file that is there is "
        "changed; the same command again reads only tars that are new or changed.",
    )
    parser.add_argument("folder", type=Path, help="where the tars are")
    parser.add_argument("--output", type=Path, help="where the set is made, with links to the tars; default: FOLDER")
    parser.add_argument("--processes", type=int, default=2, help="that read tars at the same time (default 2)")
    parser.add_argument("--keep-damaged", action="store_true", help="use the whole samples of damaged tars")
    given = parser.parse_args()
    if given.processes < 1:
        raise UsageError(f"--processes {given.processes}: it must be 1 or above")
    output = given.output or given.folder

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")

    made = index_folder(given.folder, output, given.processes, given.keep_damaged, say)
    say(f"{output}: {made.samples:,} samples in {len(made.shards):,} tars")
