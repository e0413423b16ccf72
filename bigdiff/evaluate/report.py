"""An evaluation's folder explains itself: results.json, a table to read, the curve, points for TensorBoard."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from PIL import Image

from bigdiff.config.evaluation import Evaluation
from bigdiff.evaluate import grid
from bigdiff.evaluate.curve import curve
from bigdiff.evaluate.point import Point
from bigdiff.export import measured
from bigdiff.export.measured import RESULTS as RESULTS
from bigdiff.metrics.writer import picture as picture_to_board
from bigdiff.metrics.writer import points as to_board
from bigdiff.runtime.files import write_bytes, write_json

CURVE: Final = "fid-clip.png"
_MEANS: Final = {
    "fid": "Frechet distance of Inception v3's 2,048 pooled features, float64 (Heusel et al. 2017); lower is better",
    "clip_score": "mean of 2.5 max(cos, 0) of picture and prompt (Hessel et al. 2021); higher is better",
    "clip_cosine": "mean of the cosine itself, which many papers print as CLIP score",
    "cmmd": "1,000 MMD^2 of CLIP embeddings, Gaussian kernel, sigma 10 (Jayasumana et al. 2024); lower is better",
    "precision": "share of pictures in the real manifold of Inception's features, k = 3 (Kynkaanniemi et al. 2019)",
    "recall": "share of real pictures in the generated manifold",
}


def write(wanted: Evaluation, points: Sequence[Point], about: dict[str, Any]) -> None:
    """Write what `points`, in order, say; `about` is what they depend on. results.json comes last: it is the end."""
    show(wanted, points, about)
    rows, file = [asdict(point) for point in points], wanted.output / RESULTS
    drawn, told = _drawn(points), json.loads(file.read_bytes())["points"] if file.is_file() else []
    if drawn is not None and rows != told and wanted.tensorboard is not None and wanted.samples_seen is not None:
        picture_to_board(wanted.tensorboard, wanted.samples_seen, "eval/fid_clip", np.asarray(drawn))
    write_json(file, {**about, "means": _means(points), "points": rows})


def show(wanted: Evaluation, points: Sequence[Point], about: dict[str, Any]) -> None:
    """Write the page and the curve of the points that there are so far."""
    write_bytes(wanted.output / "README.md", _page(wanted, points, about).encode())
    drawn = _drawn(points)
    if drawn is not None:
        grid.save(wanted.output / CURVE, drawn, {"points": _placed(points)})


def _placed(points: Sequence[Point]) -> list[tuple[float, float, float]]:
    """Guidance, CLIP-SCORE and FID of those that have all of them."""
    return [
        (point.guidance, point.clip_score, point.fid)
        for point in points
        if point.guidance is not None and point.clip_score is not None and point.fid is not None
    ]


def _drawn(points: Sequence[Point]) -> Image.Image | None:
    """FID against CLIP-SCORE; None of a single point."""
    placed = _placed(points)
    return curve(placed, f"{points[0].images:,} pictures, guidance beside each point") if len(placed) > 1 else None


def board(wanted: Evaluation, point: Point) -> None:
    """The point's numbers in TensorBoard, in a folder for each guidance, where the images seen say."""
    if wanted.tensorboard is None or wanted.samples_seen is None:
        return
    name = "pictures" if point.guidance is None else f"guidance-{point.guidance:g}"
    to_board(wanted.tensorboard / name, wanted.samples_seen, point.tags)


def table(points: Sequence[Point]) -> list[str]:
    """Lines of a Markdown table with the columns that have values."""
    return measured.table([asdict(point) for point in points])


def _means(points: Sequence[Point]) -> dict[str, str]:
    """What the numbers that were computed are."""
    rows = [asdict(point) for point in points]
    return {name: text for name, text in _MEANS.items() if any(row[name] is not None for row in rows)}


def _page(wanted: Evaluation, points: Sequence[Point], about: dict[str, Any]) -> str:
    judged = wanted.checkpoint or wanted.pipeline or wanted.pictures
    lines = [f"# Evaluation of {judged}", "", *table(points), ""]
    lines += [f"- **{name}**: {text}" for name, text in _means(points).items()]
    if any(point.singular for point in points):
        lines += ["", "**FID is of no more pictures than features: far too high, and no number to compare.**"]
    lines += ["", "Files here:", "", f"- `{RESULTS}`: these numbers, what they were made of and by which versions"]
    lines += [
        "- `guidance-G/` (or `pictures/`): `result.json`, `scores.parquet` with a CLIP-SCORE for each picture, and"
    ]
    lines += ["  `blocks/`, what the networks saw in each, from which the same command goes on or makes more"]
    lines += ["- `real/`: the same of the real pictures, which `--real` takes in their place", ""]
    lines += ["Made of:", "", "```json", json.dumps(about, indent=2, sort_keys=True), "```", ""]
    return "\n".join(lines)
