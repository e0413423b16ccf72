from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bigdiff.prep import stored
from bigdiff.prep.layout import Layout


def test_each_sample_with_its_scores_and_the_step_that_left_it_out(judged: Any) -> None:
    dropped = {row["row"]: row["step"] for row in pq.read_table(judged.layout.dropped).to_pylist()}
    with judged.base() as base:
        columns = stored.gather(base, judged.layout)
        found = base.execute("SELECT row, step, sharpness FROM facts ORDER BY row").fetchall()
    assert set(stored.scores_of(columns)) == {"aesthetic", "sharpness", "flatness", "detected_language"}
    assert {"original_width", "original_height", "phash"} <= {*columns}
    assert found == [(row, dropped.get(row), judged.sharpness[row]) for row in range(24)]
    assert {"takedown", "score", "duplicate"} == {*dropped.values()}


def test_a_picture_is_the_stored_one_whatever_its_unit(judged: Any) -> None:
    with judged.base() as base:
        columns = stored.gather(base, judged.layout)
        found = stored.samples(base, judged.layout, [23, 0, 11, 999], columns)
        assert stored.samples(base, judged.layout, [], columns) == {}
    assert sorted(found) == [0, 11, 23]
    for row, sample in found.items():
        (file,) = (
            one for one in judged.layout.samples.glob("*.parquet") if row in pq.read_table(one)["row"].to_pylist()
        )
        place = next(each for each in pq.read_table(file).to_pylist() if each["row"] == row)
        content = (judged.layout.pictures / file.stem).read_bytes()
        assert sample.content == content[place["offset"] :][: place["length"]]
        assert sample.caption == f"caption <{row}>"
        assert sample.scores["sharpness"] == judged.sharpness[row]


def test_samples_without_scores_or_sizes_are_read(judged: Any) -> None:
    for file in judged.layout.scores.glob("*.parquet"):
        file.unlink()
    for file in judged.layout.samples.glob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.drop_columns(["original_width", "original_height", "phash"]), file)
    with judged.base() as base:
        assert stored.gather(base, judged.layout) == ("width", "height", "aesthetic")


def test_a_path_with_a_quote_is_a_string_of_sql(judged: Any) -> None:
    judged.layout.output.rename(judged.layout.output.parent / "it's")
    layout = Layout(judged.layout.output.parent / "it's")
    pq.write_table(pa.table({"row": [1], "offset": [0], "length": [1]}), layout.samples / "a'b.parquet")
    pq.write_table(pa.table({"row": [1], "sharpness": [1.0]}), layout.scores / "a'b.parquet")
    for file in [*layout.samples.glob("0*"), *layout.scores.glob("0*")]:
        file.unlink()
    with judged.base() as base:
        stored.gather(base, layout)
        assert base.execute("SELECT unit FROM facts").fetchall() == [("a'b",)]
