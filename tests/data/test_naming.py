from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from bigdiff.config.load import load_stage
from bigdiff.data.course import Course
from bigdiff.data.damage import Consumed, Substitution
from bigdiff.data.images import ImageSet
from bigdiff.data.mixture import Source
from bigdiff.data.naming import named, read_at
from bigdiff.train import data


def consumed(position: int, *lost: Substitution) -> Consumed:
    return Consumed(position=position, samples=4, digest=0, substituted=lost)


def test_positions_are_named_by_the_index_of_their_shard(toy: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"))
    with data.opened(stage.data) as sets:
        course = data.course(stage, sets)
        found = named(course, sets, [consumed(16), consumed(20)], [17, 16, 22])
        assert [one.position for one in found] == [17, 16, 22]
        picks = course.locate(2, 0, 8)
        for one in found:
            at = one.position - 16
            assert (one.shard, one.row) == (f"{picks.shards[at]:05d}", picks.rows[at])
            assert one.key == f"{picks.shards[at]:05d}{picks.rows[at]:04d}"
            assert (one.source, one.url) == (stage.data.latents, "")


def test_a_substitute_is_named_in_the_place_of_what_was_lost(image_set: Callable[..., Path]) -> None:
    folder = image_set(3, 3)
    with ImageSet(str(folder)) as opened:
        sizes = opened.manifest.sizes
        course = Course(sources=(Source(name="a", sizes=sizes),), seed=1, window=2, lanes=1, total=2)
        lost = [
            Substitution(position=5, source=0, shard=0, row=0, reason="truncated"),
            Substitution(position=5, source=0, shard=0, row=1, reason="truncated"),
        ]
        assert read_at(course, [consumed(4, *lost)], 5) == course.substitute(5, 2)
        (one,) = named(course, [opened], [consumed(4, *lost)], [5])
        _, shard, row = course.substitute(5, 2)
        index = pq.read_table(folder / f"{shard:05d}.parquet").to_pylist()[row]
        assert (one.key, one.url) == (index["key"], index["url"])
        assert one.url.startswith("http://example.org/")
