"""How good the result is: the quickstart's judge, and what launch/evaluate.py left in the run's folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bigdiff.config.errors import UsageError
from bigdiff.prep.page import Cell, Markup, Right, heading, note, picture, section, table
from bigdiff.report.folder import Folder
from bigdiff.report.previews import jpeg
from bigdiff.report.records import content

JUDGED: Final = "scores*.json"  # of the quickstart's judge, "scores-100.json" of a step
RESULTS: Final = "results.json"  # of an evaluation that is done
RESULT: Final = "result.json"  # of one guidance, before that
CURVE: Final = "fid-clip.png"
STYLE: Final = ".plot img { width: 100%; max-width: 34rem; border: 1px solid var(--line); background: #fff }\n"
_COLUMNS: Final = ("guidance", "images", "fid", "clip_score", "clip_cosine", "cmmd", "precision", "recall")


def written(run: Folder) -> Markup:
    """The section of the page.

    Raises:
        UsageError: when a file of scores is damaged.
    """
    parts: list[Markup] = []
    for file in sorted(run.path.glob(JUDGED)):
        parts += _judged(file)
    for folder in _evaluations(run.path):
        parts += _evaluated(folder)
    return section("How good is it", parts or [note("None yet: launch/evaluate.py judges the exported pipeline.")])


def _judged(file: Path) -> list[Markup]:
    step = file.stem.partition("-")[2]
    when = f"at step {step}" if step else "at its end"
    try:
        rows: list[list[Cell]] = [
            [attribute, *(Right(f"{float(one[name]):.2f}") for name in ("accuracy", "chance", "oracle"))]
            for attribute, one in content(file)["scores"].items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{file} is not what the quickstart's judge writes ({error!r}): remove it") from error
    said = (
        "Pictures of captions whose combinations training never saw, read by an oracle that knows the scenes: the "
        "share that shows what was asked for, beside a blind guess, and the oracle's own share on true pictures."
    )
    head = ("attribute", "right", "by chance", "oracle on true pictures")
    return [heading(f"Held-out captions {when}"), note(said), table(head, rows, named=True)]


def _evaluations(run: Path) -> Iterator[Path]:
    """Folders of evaluations in that of the run."""
    found = {file.parent for file in run.glob(f"*/{RESULTS}")} | {
        file.parent.parent for file in run.glob(f"*/*/{RESULT}")
    }
    yield from sorted(found)


def _evaluated(folder: Path) -> list[Markup]:
    whole = content(folder / RESULTS)
    file = folder / RESULTS if whole else folder / f"*/{RESULT}"
    try:
        points = whole["points"] if whole else [content(one)["point"] for one in sorted(folder.glob(f"*/{RESULT}"))]
        points = sorted(points, key=lambda point: point["guidance"] or 0)
        names = [name for name in _COLUMNS if any(point.get(name) is not None for point in points)]
        rows: list[list[Cell]] = [[_value(point.get(name)) for name in names] for point in points]
        singular = any(point.get("singular") for point in points)
        means = [f"{name}: {text}." for name, text in whole.get("means", {}).items()]
        seen = whole.get("settings", {}).get("samples_seen")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{file} is not what launch/evaluate.py writes ({error!r}): run it again") from error
    when = f" after {seen:,} images" if isinstance(seen, int) else ""
    title = heading(f"Judged in {folder.name}/{when}{'' if whole else ', not finished'}")
    parts = [title, table(names, rows)]
    if singular:
        parts.append(note("FID is of no more pictures than features: far too high, and no number to compare."))
    parts += [note(text) for text in means]
    drawn = folder / CURVE
    if drawn.is_file():
        shown = picture(jpeg(drawn.read_bytes(), str(drawn)), "down and to the right is better")
        parts.append(Markup(f'<div class="plot">{shown}</div>'))
    return parts


def _value(value: Any) -> Right:  # noqa: ANN401 (a number of a JSON file)
    if value is None:
        return Right("-")
    return Right(f"{value:,}" if isinstance(value, int) else f"{value:.5g}")
