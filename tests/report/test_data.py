import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.data import manifest
from bigdiff.data.manifest import Manifest, Shard
from bigdiff.report import data, folder
from bigdiff.report.folder import Folder

SHARD = Shard(name="00000", samples=2000, bytes=10**7, sha256="0" * 64)
SELECTED = {"selection": {"rows": 5000, "kept": 2500}, "settings": {"<script>": "&"}}


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    """A latent set, and beside it the image set that it was made of."""
    images, latents = tmp_path / "data" / "images", tmp_path / "data" / "latents"
    contract = {"resolution": 96, "empty_tokens": list(range(32))}
    manifest.write(images, Manifest(kind="images", shards=(SHARD,), contract=contract, lineage=SELECTED))
    lineage = {"images": manifest.fingerprint(images)}
    manifest.write(latents, Manifest(kind="latents", shards=(SHARD,), contract={"resolution": 64}, lineage=lineage))
    return images, latents


def shown(run: Path) -> str:
    return data.written(folder.read(run))


def test_a_set_is_told_with_its_origin(
    made: Callable[..., Path], sets: tuple[Path, Path], parsed: Callable[[str], Any]
) -> None:
    images, latents = sets
    run = made(4, (f"data.latents={latents}", "batch.total=64"))
    (run / "versions.json").write_text(json.dumps({"latents": {str(latents): manifest.fingerprint(latents)}}))
    html = shown(run)
    texts = parsed(html).texts
    assert "2,560 images seen of 2,000 samples: 1.28 epochs." in texts
    assert "2,000 latents in 1 shards, 10 MB" in texts
    assert manifest.fingerprint(latents) in texts and "64 pixels" in texts
    assert f"encoded from {images}" in texts and "2,000 pictures, 96 pixels." in texts
    for part in ("5,000", "2,500", "rows of metadata"):
        assert part in texts
    assert "32 values" in html and "&lt;script&gt;" in html
    assert "has changed since" not in html and "is told by" not in html
    (images / "report").mkdir()
    (images / "report" / "index.html").touch()
    assert f"What became of every row is told by {images}/report/index.html." in shown(run)


def test_a_set_that_is_another_now_is_said(made: Callable[..., Path], sets: tuple[Path, Path]) -> None:
    run = made(0, (f"data.latents={sets[1]}",))
    (run / "versions.json").write_text(json.dumps({"latents": {str(sets[1]): "f" * 64}}))
    assert f"has changed since: the run was trained on the set whose manifest has sha256 {'f' * 64}." in shown(run)
    (sets[0] / manifest.NAME).unlink()
    assert "it does not lie beside" in shown(run)


def test_a_set_that_is_not_here_is_named(made: Callable[..., Path], told: Callable[..., Folder]) -> None:
    run = made(0, ("data.latents=s3://bucket/set", "data.cache=/scratch", "data.cache_gb=1"))
    (run / "versions.json").write_text(json.dumps({"latents": {"s3://bucket/set": "abc"}}))
    html = shown(run)
    assert "It lies elsewhere, so only its name is known; its manifest&#x27;s sha256 is abc." in html
    assert "It is not there from here" in data.written(told(0, ("data.latents=absent",)))


def test_each_of_several_sets_is_told(made: Callable[..., Path], sets: tuple[Path, Path]) -> None:
    one = f"{{latents: {sets[1]}}}"
    html = shown(made(0, ("data.latents=", f"data.sources=[{one},{{latents: absent}}]")))
    assert f"<h3>{sets[1]}</h3>" in html and "<h3>absent</h3>" in html and "epochs" not in html


def test_a_damaged_manifest_is_named(made: Callable[..., Path], sets: tuple[Path, Path]) -> None:
    (sets[1] / manifest.NAME).write_text('{"format": 1')
    with pytest.raises(UsageError, match=r"latents/manifest\.json is not JSON"):
        shown(made(0, (f"data.latents={sets[1]}",)))
