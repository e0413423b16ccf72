"""How good the result is: the quickstart's judge, and what launch/evaluate.py left in the run's folder."""

import re
from pathlib import Path
from typing import Final

from bigdiff.config.errors import UsageError
from bigdiff.prep.page import Cell, Markup, Right, charts, heading, note, section, table
from bigdiff.report import evaluations, lines
from bigdiff.report.folder import Folder
from bigdiff.report.lines import COLOURS, Chart, Series
from bigdiff.report.records import content

_JUDGED: Final = re.compile(r"scores(?:-(\d+))?\.json")  # of the quickstart's judge: at the end, or of a step
_COLUMNS: Final = ("accuracy", "chance", "oracle")

Scores = dict[str, dict[str, float]]  # by attribute, `_COLUMNS`


def written(run: Folder) -> Markup:
    """The section of the page.

    Raises:
        UsageError: when a file of scores is damaged.
    """
    parts = [*_judged(run), *evaluations.written(run)]
    return section("How good is it", parts or [note("None yet: launch/evaluate.py judges checkpoints and pipelines.")])


def _judged(run: Folder) -> list[Markup]:
    """The newest scores as a table, and all of them over images seen."""
    files = {file: _JUDGED.fullmatch(file.name) for file in run.path.glob("scores*.json")}
    steps = {file: int(match[1] or run.stage.steps) for file, match in files.items() if match}
    found = [(steps[file], _read(file)) for file in sorted(steps, key=lambda file: (steps[file], file.name))]
    if not found:
        return []
    step, newest = found[-1]
    rows: list[list[Cell]] = [
        [attribute, *(Right(f"{one[name]:.2f}") for name in _COLUMNS)] for attribute, one in newest.items()
    ]
    said = (
        "Pictures of captions whose combinations training never saw, read by an oracle that knows the scenes: the "
        "share that shows what was asked for, beside a blind guess, and the oracle's own share on true pictures."
    )
    head = ("attribute", "right", "by chance", "oracle on true pictures")
    when = "at its end" if step == run.stage.steps else f"at step {step:,}"
    parts = [heading(f"Held-out captions {when}"), note(said), table(head, rows, named=True)]
    if len(found) > 1:
        series = [
            Series(
                name=attribute,
                points=[
                    (at * run.stage.batch.total, one[attribute]["accuracy"]) for at, one in found if attribute in one
                ],
                colour=f"c{index % COLOURS}",
            )
            for index, attribute in enumerate(newest)
        ]
        chart = Chart(name="share right", series=series, said="Over images seen.", scale="zero")
        parts.append(charts([lines.drawn(chart)]))
    return parts


def _read(file: Path) -> Scores:
    try:
        scores = content(file)["scores"].items()
        return {str(attribute): {name: float(one[name]) for name in _COLUMNS} for attribute, one in scores}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{file} is not what the quickstart's judge writes ({error!r}): remove it") from error
