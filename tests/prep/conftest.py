"""What earlier steps of a preparation leave behind, written by hand."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigdiff.prep.layout import Layout

# One row as a download leaves it: its bytes, the cause why there are none, or nothing: img2dataset lost it.
Fetched = bytes | str | None
Downloaded = Callable[..., Layout]


@pytest.fixture
def downloaded(tmp_path: Path) -> Downloaded:
    """Writes what selection and img2dataset write: one part, `size` rows a file, files in no order."""

    def write(
        rows: list[Fetched],
        captions: dict[int, str] | None = None,
        second: dict[int, Fetched] | None = None,
        size: int = 100,
    ) -> Layout:
        layout = Layout(tmp_path / "set")
        layout.work.mkdir(parents=True)
        numbers = list(range(len(rows)))
        selected = {
            "row": numbers,
            "url": [f"http://example.com/{number}" for number in numbers],
            "caption": [(captions or {}).get(number, f"caption {number}") for number in numbers],
            "aesthetic": [number / 7 for number in numbers],
        }
        pq.write_table(pa.table(selected), layout.selected)
        write_pass(layout.part(0) / "first", dict(enumerate(rows)), size)
        if second is not None:
            write_pass(layout.part(0) / "second", second, size)
        return layout

    return write


def write_pass(folder: Path, rows: dict[int, Fetched], size: int) -> None:
    folder.mkdir(parents=True)
    numbers = sorted(rows)
    asked = {"row": pa.array(numbers, pa.int64()), "url": [f"http://example.com/{number}" for number in numbers]}
    pq.write_table(pa.table(asked), folder / "rows.parquet")
    for first in range(0, len(numbers), size):
        known = {number: rows[number] for number in reversed(numbers[first : first + size]) if rows[number] is not None}
        facts = {
            "row": pa.array(list(known), pa.int64()),
            "key": [f"{number:09d}" for number in known],
            "status": ["success" if isinstance(row, bytes) else "failed_to_download" for row in known.values()],
            "error_message": pa.array([row if isinstance(row, str) else None for row in known.values()], pa.string()),
        }
        name = f"{first // size:05d}"
        pq.write_table(pa.table(facts), folder / f"{name}.parquet")
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            for number, content in known.items():
                if isinstance(content, bytes):
                    member = tarfile.TarInfo(f"{number:09d}.jpg")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
