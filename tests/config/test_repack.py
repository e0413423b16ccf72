from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.repack import Repack, load_repack


def test_defaults_files_and_overrides(tmp_path: Path) -> None:
    assert load_repack(None) == Repack()
    file = tmp_path / "mine.yaml"
    file.write_text("score:\n  scorers:\n    - {kind: sharpness, at_least: 9}\npack: {samples_per_shard: 7}\n")
    found = load_repack(str(file), ["pack.takedown=list.txt"])
    assert (found.score.scorers[0].at_least, found.pack.samples_per_shard, found.pack.takedown) == (9.0, 7, "list.txt")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("pack.samples_per_shard=0", "pack.samples_per_shard is 0"),
        ("pack.processes=-1", "pack.processes is -1"),
        ("pack.resolution=512", "resolution"),
        ("score.batch=0", "score.batch is 0"),
        ("pack.cluster_size_below=1", "every sample stands for 1 or more, so name 2 or more"),
        ("pack={cluster_size_at_least: 8, cluster_size_below: 8}", "none is both"),
    ],
)
def test_what_cannot_be_used_is_refused(override: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load_repack(None, [override])


def test_the_example_is_one() -> None:
    example = load_repack("example")
    assert example.dedup.keep_by == "aesthetic_v2"
    assert [scorer.kind for scorer in example.score.scorers][-1] == "sharpness"
