"""The embedded dataset: scenes drawn to files in one pack, and metadata with LAION's columns that points at them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigdiff.quickstart.faults import AWKWARD, FAULTY, SOUND, Kind
from bigdiff.quickstart.files import SMALL, content, extension, scene_number
from bigdiff.quickstart.scenes import caption, scene
from bigdiff.runtime.files import replacing, write_json
from bigdiff.runtime.workers import Workers

PORT: Final = 8937  # fixed, because the URLs are a part of the metadata and so of every shard
SOURCE, META = "source", "meta"
PICTURES, INDEX, SETTINGS = "pictures.bin", "index.parquet", "settings.json"
METADATA: Final = "metadata.parquet"
WITHOUT_FILE: Final = ("local_file", "duplicate_url")
_CHUNK: Final = 1_000  # rows drawn by one task
_SCORES: Final = 3  # the purpose "scores" in this package's random keys; scenes.py has 0 to 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is drawn. The port is a part of every URL."""

    count: int = 12_000  # pictures that a careful pipeline ends with
    seed: int = 0
    size: int = 96  # pixels a side
    port: int = PORT
    awkward: tuple[Kind, ...] = AWKWARD
    faulty: tuple[Kind, ...] = FAULTY


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of the metadata and, unless it repeats a URL or has none, its file."""

    number: int
    kind: str
    scene: int  # scenes.scene(seed, scene)
    form: int  # decides the file's form; that of the original in a copy
    path: str  # on the server; empty: no file of its own


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    rows: tuple[Row, ...]
    options: Options


def draw(folder: Path, options: Options, processes: int = 2) -> None:
    """Write `folder`/source (files) and `folder`/meta (metadata), unless they are there with the same options."""
    wanted = json.loads(json.dumps(asdict(options)))
    settings = folder / SOURCE / SETTINGS
    if settings.exists() and json.loads(settings.read_text()) == wanted:
        return
    settings.unlink(missing_ok=True)
    everything = rows(options)
    with_file = [row for row in everything if row.kind not in WITHOUT_FILE]
    tasks = [
        _Task(rows=tuple(with_file[first : first + _CHUNK]), options=options)
        for first in range(0, len(with_file), _CHUNK)
    ]
    offsets, lengths, offset = [], [], 0
    with (
        Workers(processes) as workers,
        replacing(folder / SOURCE / PICTURES) as temporary,
        temporary.open("wb") as pictures,
    ):
        for drawn in workers.each(_draw, tasks, "drawing scenes"):
            for file in drawn:
                pictures.write(file)
                offsets.append(offset)
                lengths.append(len(file))
                offset += len(file)
    index = {
        "path": [row.path for row in with_file],
        "kind": [row.kind for row in with_file],
        "offset": offsets,
        "length": lengths,
    }
    _write(folder / SOURCE / INDEX, index)
    _write(folder / META / METADATA, metadata(everything, options))
    write_json(settings, wanted)  # last: with it the set is whole


def rows(options: Options) -> list[Row]:
    """Every row: the sound and awkward ones, `options.count` together, then the faulty ones."""
    names = [kind.name for kind in options.awkward for _ in range(kind.count)]
    names = [SOUND] * (options.count - len(names)) + names
    names += [kind.name for kind in options.faulty for _ in range(kind.count)]
    made: list[Row] = []
    repeated = 0
    for number, kind in enumerate(names):
        if kind.startswith("duplicate"):
            original = made[repeated]  # the sound rows come first; each duplicate repeats another one
            repeated += 1
            own = f"/pictures/{number:07d}{Path(original.path).suffix}"
            path = own if kind == "duplicate_bytes" else original.path
            made.append(Row(number=number, kind=kind, scene=original.scene, form=original.number, path=path))
            continue
        shown = scene_number(kind, number, options.seed)
        path = "" if kind == "local_file" else f"/pictures/{number:07d}.{extension(kind, number)}"
        made.append(Row(number=number, kind=kind, scene=shown, form=number, path=path))
    return made


def metadata(everything: Sequence[Row], options: Options) -> dict[str, Any]:
    """LAION's columns, a value a row; a row breaks the rules of its kind and no other."""
    table: dict[str, list[Any]] = {
        name: []
        for name in (
            "URL",
            "TEXT",
            "WIDTH",
            "HEIGHT",
            "similarity",
            "hash",
            "punsafe",
            "pwatermark",
            "AESTHETIC_SCORE",
            "LANGUAGE",
        )
    }
    for row in everything:
        random = np.random.default_rng((options.seed, row.number, _SCORES))
        url = f"http://127.0.0.1:{options.port}{row.path}" if row.path else f"file:///etc/hostname?{row.number}"
        text = caption(scene(options.seed, row.scene), options.seed, row.scene) if row.kind != "no_caption" else ""
        low, high = (3.0, 5.0) if row.kind == "low_scored" else (5.01, 7.5)
        values = {
            "URL": url,
            "TEXT": text,
            "WIDTH": SMALL if row.kind == "small" else options.size,
            "HEIGHT": options.size,
            "similarity": round(float(random.normal(0.32, 0.02)), 4),
            "hash": mmh3.hash64((url + text).encode())[0],
            "punsafe": _probability(random, row.kind == "unsafe"),
            "pwatermark": _probability(random, row.kind == "watermarked"),
            "AESTHETIC_SCORE": round(float(random.uniform(low, high)), 4),
            "LANGUAGE": "de" if row.kind == "other_language" else "en",
        }
        for name, value in values.items():
            table[name].append(value)
    return table


def _draw(task: _Task) -> list[bytes]:
    seed, size = task.options.seed, task.options.size
    return [content(row.kind, scene(seed, row.scene), row.form, size) for row in task.rows]


def _probability(random: np.random.Generator, high: bool) -> float:
    value = float(random.beta(2, 14))
    return round(0.999 - value * 0.45 if high else value * 0.49, 4)


def _write(final: Path, columns: dict[str, Any]) -> None:
    with replacing(final) as temporary:
        pq.write_table(pa.table(columns), temporary)
