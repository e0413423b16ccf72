from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigdiff.config.errors import UsageError
from bigdiff.evaluate import prompts

TEXTS = ["a red circle", "a caf\u00e9"]


def parquet(folder: Path, columns: dict[str, list[object]]) -> Path:
    pq.write_table(pa.table(columns), folder / "prompts.parquet")
    return folder / "prompts.parquet"


@pytest.mark.parametrize("column", prompts.COLUMNS)
def test_a_parquet_file_gives_the_prompts_of_a_text_file(tmp_path: Path, column: str) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    file = parquet(tmp_path, {"id": [1, 2], column: [" a red circle", TEXTS[1]]})
    assert prompts.read(tmp_path / "prompts.txt") == prompts.read(file) == TEXTS
    assert prompts.read(parquet(tmp_path, {"caption": ["x", "y"], "said": TEXTS}), "said") == TEXTS


@pytest.mark.parametrize(
    ("columns", "column", "sentence"),
    [
        ({"id": [1]}, "", "has no column such as caption: name one of id with --column"),
        ({"caption": ["x"]}, "text", "has no column text: name one of caption"),
        ({"caption": ["x", " ", "y"]}, "", "row 1 of column caption is no text, or empty"),
        ({"caption": ["x", None]}, "", "row 1 of column caption is no text"),
        ({"caption": [3]}, "", "row 0 of column caption is no text"),
        ({"caption": []}, "", "it has no rows"),
    ],
)
def test_rows_that_are_no_prompts_are_named(
    tmp_path: Path, columns: dict[str, list[object]], column: str, sentence: str
) -> None:
    with pytest.raises(UsageError, match=f"prompts.parquet.*{sentence}"):
        prompts.read(parquet(tmp_path, columns), column)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    for name in ("broken.parquet", "absent.parquet", "absent.txt"):
        with pytest.raises(UsageError, match=f"cannot read the prompts in .*{name}"):
            prompts.read(tmp_path / name)
    (tmp_path / "prompts.txt").write_text("x\n\ny\n")
    with pytest.raises(UsageError, match=r"prompts\.txt line 2 is empty"):
        prompts.read(tmp_path / "prompts.txt")
    with pytest.raises(UsageError, match="--column said has no effect"):
        prompts.read(tmp_path / "prompts.txt", "said")


def test_the_fingerprint_is_of_the_words_and_their_order() -> None:
    assert prompts.fingerprint(TEXTS) == prompts.fingerprint(tuple(TEXTS))
    assert len({prompts.fingerprint(one) for one in (TEXTS, TEXTS[::-1], ["a red", "circle", TEXTS[1]], [])}) == 4
