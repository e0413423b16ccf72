from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import pytest
from PIL import Image

from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.prep import Pack, Prep
from bigdiff.config.scoring import Scorer, Scoring
from bigdiff.prep.layout import Layout
from bigdiff.prep.picture import decode
from bigdiff.prep.score import ready, score
from bigdiff.prep.scorers import loading
from bigdiff.prep.verify import units, verify
from bigdiff.runtime.workers import Workers

PREP = Prep(pack=Pack(resolution=24, format="png"))
PLAIN = Scoring(scorers=[Scorer(kind="sharpness"), Scorer(kind="caption_length"), Scorer(kind="language")], batch=2)
Draw = Callable[[int], bytes]


@pytest.fixture
def layout(downloaded: Callable[..., Layout], picture: Draw) -> Layout:
    """Two units, of five and of two samples."""
    made = downloaded([picture(number) for number in range(7)], size=5)
    prep = Prep(pack=PREP.pack, download=type(PREP.download)(rows_per_file=5))
    for unit in units(made, prep):
        verify(unit)
    return made


def found(layout: Layout) -> dict[str, list[dict[str, Any]]]:
    return {file.stem: pq.read_table(file).to_pylist() for file in sorted(layout.scores.glob("*.parquet"))}


def wanted(layout: Layout, scoring: Scoring) -> dict[str, list[dict[str, Any]]]:
    """Sample by sample, with the pictures read another way."""
    scorers = loading.load(scoring)
    made: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(layout.samples.glob("*.parquet")):
        content = (layout.pictures / file.stem).read_bytes()
        for sample in pq.read_table(file).to_pylist():
            shown = decode(content[sample["offset"] :][: sample["length"]], 10_000)
            assert isinstance(shown, Image.Image)
            values = scorers.score([shown], [sample["caption"]])
            scores = {name: value for name, (value,) in values.items()}
            made.setdefault(file.stem, []).append({"row": sample["row"], **scores})
    return made


@pytest.mark.parametrize("processes", [1, 2])
def test_each_sample_has_its_own_scores_whatever_the_batches_and_processes(layout: Layout, processes: int) -> None:
    with Workers(processes) as workers:
        score(layout, workers, PLAIN)
    assert found(layout) == wanted(layout, PLAIN)
    assert len({row["sharpness"] for rows in found(layout).values() for row in rows}) == 7


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_networks_score_stored_pictures(
    layout: Layout, tiny_clip: str, random_weights: dict[str, Path], precision: Literal["fp32", "fp16"]
) -> None:
    heads = [Scorer(kind="aesthetic_v2", weights=str(random_weights["aesthetic_v2"])), Scorer(kind="clip_similarity")]
    scoring = Scoring(scorers=heads, clip=tiny_clip, batch=3, precision=precision)
    with Workers(2) as workers:
        score(layout, workers, scoring)
    for unit, rows in wanted(layout, scoring).items():
        for one, other in zip(found(layout)[unit], rows, strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-5 if precision == "fp32" else 1e-2)


def test_what_is_scored_is_not_scored_again(layout: Layout) -> None:
    with Workers(1) as workers:
        score(layout, workers, PLAIN)
        first, second = sorted(layout.scores.glob("*.parquet"))
        before = second.read_bytes()
        first.write_bytes(b"left alone")
        second.unlink()
        score(layout, workers, PLAIN)
    assert (first.read_bytes(), second.read_bytes()) == (b"left alone", before)


def test_no_scorers_no_scores(layout: Layout) -> None:
    with Workers(1) as workers:
        score(layout, workers, Scoring())
    assert not layout.scores.exists()
    assert ready(Scoring()) == {}


def test_damage_is_named_by_file_and_place(layout: Layout) -> None:
    unit = next(file.stem for file in layout.samples.glob("*-00001.parquet"))
    sample = pq.read_table(layout.samples / f"{unit}.parquet").to_pylist()[1]
    content = bytearray((layout.pictures / unit).read_bytes())
    content[sample["offset"] : sample["offset"] + 20] = bytes(20)
    (layout.pictures / unit).write_bytes(content)
    with Workers(1) as workers, pytest.raises(RunError, match=f"picture {sample['key']} at offset {sample['offset']}"):
        score(layout, workers, PLAIN)


def test_a_job_begins_with_scorers_that_pass_their_self_test(tmp_path: Path, random_weights: dict[str, Path]) -> None:
    assert list(ready(PLAIN)) == ["sharpness", "caption_length", "detected_language"]
    (tmp_path / "head.pth").write_bytes(b"no weights")
    broken = Scoring(scorers=[Scorer(kind="watermark", weights=str(tmp_path / "head.pth"))])
    with pytest.raises(UsageError, match=r"head\.pth"):
        ready(broken)
