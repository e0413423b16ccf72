import json
from dataclasses import replace
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.data.manifest import NAME, Manifest, Shard, differences, fingerprint, read, write

SHARDS = tuple(Shard(name=f"{number:05d}", samples=10 + number, bytes=100, sha256="ab" * 32) for number in range(3))
SET = Manifest(kind="latents", shards=SHARDS, contract={"factor": 8, "shape": [8, 64, 64]}, lineage={"input": "x"})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, SET)
    assert read(tmp_path, "latents") == SET
    assert (SET.samples, SET.sizes.tolist()) == (33, [10, 11, 12])
    content = json.loads((tmp_path / NAME).read_text())
    assert (content["format"], content["samples"], content["kind"]) == (1, 33, "latents")


def test_the_same_set_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    for folder, contract in {"a": {"x": 1, "y": 2}, "b": {"y": 2, "x": 1}, "c": {"x": 1, "y": 3}}.items():
        write(tmp_path / folder, replace(SET, contract=contract))
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") != fingerprint(tmp_path / "c")


def test_an_unfinished_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no manifest\.json: it is not a finished shard set"):
        read(tmp_path, "latents")


def test_the_other_kind_is_refused(tmp_path: Path) -> None:
    write(tmp_path, SET)
    with pytest.raises(UsageError, match="holds latents, but images are needed"):
        read(tmp_path, "images")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", "has format None"),
        ('{"format": 2, "kind": "latents"}', "has format 2, this version reads 1"),
    ],
)
def test_a_strange_file_is_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(UsageError, match=sentence):
        read(tmp_path, "latents")


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    write(tmp_path, replace(SET, shards=()))
    with pytest.raises(UsageError, match="lists no samples"):
        read(tmp_path, "latents")


def test_each_line_that_differs_is_named() -> None:
    contract = {"factor": 8, "vae": "aa", "extra": 1}
    assert differences(contract, {"factor": 8, "vae": "aa"}) == []
    assert differences(contract, {"factor": 4, "text": "t", "vae": "aa"}) == [
        "factor is 8 in the set, 4 is needed",
        "text is 'absent' in the set, 't' is needed",
    ]


@pytest.mark.parametrize("name", ["../00000", "/etc/passwd", "a/b", "..", "", "a\0b"])
def test_a_shard_lies_in_the_sets_folder(tmp_path: Path, name: str) -> None:
    for strange in (replace(SET, shards=(replace(SHARDS[0], name=name),)), replace(SET, index=f"/{name}")):
        write(tmp_path, strange)
        with pytest.raises(UsageError, match="which is no plain file name"):
            read(tmp_path, "latents")
