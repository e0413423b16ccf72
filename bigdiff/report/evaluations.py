"""What launch/evaluate.py left in a run's folder: numbers of each checkpoint, and how they went while it trained."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bigdiff.config.errors import UsageError
from bigdiff.export.measured import COLUMNS, ORIGIN, RESULTS
from bigdiff.prep.page import Cell, Markup, Right, charts, heading, note, picture, table
from bigdiff.report import lines
from bigdiff.report.folder import Folder
from bigdiff.report.lines import COLOURS, Chart, Series
from bigdiff.report.previews import jpeg
from bigdiff.report.records import content

RESULT: Final = "result.json"  # of one guidance, before that
CURVE: Final = "fid-clip.png"
SHOWN: Final = 3  # evaluations, the newest
STYLE: Final = ".plot img { width: 100%; max-width: 34rem; border: 1px solid var(--line); background: #fff }\n"
_DRAWN: Final = {"fid": "FID", "clip_score": "CLIP-SCORE", "cmmd": "CMMD", "precision": "precision", "recall": "recall"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """One evaluation's folder."""

    folder: Path
    done: bool
    seen: int | None  # images that the model was trained on; None where nobody said
    points: tuple[Mapping[str, Any], ...]  # by rising guidance
    means: Mapping[str, str]  # what each number is
    terms: str  # what must be equal for numbers to compare


def written(run: Folder) -> list[Markup]:
    """The newest evaluations, and all that compare with the newest over images seen; nothing without any.

    Raises:
        UsageError: when a file of an evaluation is damaged.
    """
    found = [_read(folder) for folder in _folders(run.path)]
    found.sort(key=lambda one: (one.seen is not None, one.seen or 0, str(one.folder)))
    parts = [] if len(found) <= SHOWN else [note(f"The newest {SHOWN} of {len(found)} evaluations are shown in full.")]
    for one in reversed(found[-SHOWN:]):
        parts += _shown(one, run.path)
    means = {name: text for one in found[-SHOWN:] for name, text in one.means.items()}
    return [*_over_time(found), *parts, *(note(f"{name}: {text}.") for name, text in means.items())]


def _folders(run: Path) -> list[Path]:
    """Of evaluations: in the run's folder, or one deeper, as recipes name them after steps."""
    done = [file.parent for depth in ("*", "*/*") for file in run.glob(f"{depth}/{RESULTS}")]
    begun = [file.parent.parent for depth in ("*/*", "*/*/*") for file in run.glob(f"{depth}/{RESULT}")]
    return sorted({*done, *begun})


def _read(folder: Path) -> Evaluated:
    whole, origin = content(folder / RESULTS), content(folder / ORIGIN)
    file = folder / RESULTS if whole else folder / f"*/{RESULT}"
    try:
        points = whole["points"] if whole else [content(one)["point"] for one in sorted(folder.glob(f"*/{RESULT}"))]
        settings, made_of = whole.get("settings", {}), whole.get("made_of", {})
        seen = settings.get("samples_seen", origin.get("samples_seen"))
        terms = {name: value for name, value in made_of.items() if name != "pictures"}
        return Evaluated(
            folder=folder,
            done=bool(whole),
            seen=None if seen is None else int(seen),
            points=tuple(sorted(points, key=lambda point: point["guidance"] or 0)),
            means=dict(whole.get("means", {})),
            terms=json.dumps([terms, whole.get("real"), settings.get("weights")], sort_keys=True),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{file} is not what launch/evaluate.py writes ({error!r}): run it again") from error


def _shown(one: Evaluated, run: Path) -> list[Markup]:
    names = [name for name in COLUMNS if any(point.get(name) is not None for point in one.points)]
    rows: list[list[Cell]] = [[_value(point.get(name)) for name in names] for point in one.points]
    when = "" if one.seen is None else f", after {one.seen:,} images"
    title = f"Judged in {one.folder.relative_to(run)}{when}{'' if one.done else ', not finished'}"
    parts = [heading(title), table(names, rows)]
    if any(point.get("singular") for point in one.points):
        parts.append(note("FID is of no more pictures than features: far too high, and no number to compare."))
    drawn = one.folder / CURVE
    if drawn.is_file():
        shown = picture(jpeg(drawn.read_bytes(), str(drawn)), "down and to the right is better")
        parts.append(Markup(f'<div class="plot">{shown}</div>'))
    return parts


def _over_time(found: Sequence[Evaluated]) -> list[Markup]:
    """Each number over images seen, a line for each guidance, of evaluations that compare with the newest."""
    timed = [one for one in found if one.done and one.seen is not None]
    same = [one for one in timed if one.terms == timed[-1].terms]
    if len(same) < 2:
        return []
    figures = []
    for name, label in _DRAWN.items():
        chart = Chart(name=label, series=_series(same, name), said="Over images seen, a line for each guidance.")
        figures.append(lines.drawn(chart))
    left = len(found) - len(same)
    others = f"{left} others were judged in other ways, or are not done, and are left out of these curves."
    return [charts([figure for figure in figures if figure]), note(others if left else "")]


def _series(found: Sequence[Evaluated], name: str) -> list[Series]:
    places: dict[tuple[float | None, int], list[tuple[float, float]]] = {}
    for one in found:
        for point in one.points:
            if point.get(name) is not None:  # FID of other numbers of pictures does not compare
                places.setdefault((point["guidance"], point["images"]), []).append((float(one.seen or 0), point[name]))
    return [
        Series(
            name=f"at {guidance:g}" if guidance is not None else "pictures", points=points, colour=f"c{index % COLOURS}"
        )
        for index, ((guidance, _), points) in enumerate(places.items())
    ]


def _value(value: Any) -> Right:  # noqa: ANN401 (a number of a JSON file)
    if value is None:
        return Right("-")
    return Right(f"{value:,}" if isinstance(value, int) else f"{value:.5g}")
