"""What the planner predicted for the run beside what it measured, as the job wrote it at the run's end."""

from typing import Any, Final

from bigdiff.config.errors import UsageError
from bigdiff.prep.page import Cell, Markup, Right, details, note, section, table
from bigdiff.report.folder import Folder
from bigdiff.report.records import content

RECORD: Final = "forecast.json"  # in the run's folder; bigdiff.plan.comparison writes it


def written(run: Folder) -> Markup:
    """The section of the page.

    Raises:
        UsageError: when the record is damaged.
    """
    file = run.path / RECORD
    found = content(file)
    if not found:
        return section("As planned", [note("There is no forecast: the job compares one with the run at its end.")])
    try:
        return section("As planned", _shown(found))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{file} is not what bigdiff.plan.comparison writes ({error!r}): remove it") from error


def _shown(found: dict[str, Any]) -> list[Markup]:
    rows: list[list[Cell]] = [
        [one["what"], _number(one["predicted"]), _number(one["measured"]), _ratio(one["predicted"], one["measured"])]
        for one in found["pairs"]
    ]
    said = (
        f"The newest start, on {found['devices']:,} x {found['device']}: the planner's figures beside medians of the "
        f"last {found['lines']:,} readings."
    )
    parts = "\n".join(f"{one['name']} ({one['span']}): {one['bytes'] / 1e6:,.1f} MB" for one in found["parts"])
    return [
        note(said),
        table(("", "predicted", "measured", "measured / predicted"), rows, named=True),
        *(note(f"Not compared: {one}.") for one in found["absent"]),
        details("Predicted memory of a rank, by part", parts) if parts else Markup(),
        details("What the forecast rests on", "\n".join(found["assumed"])) if found["assumed"] else Markup(),
    ]


def _number(value: float | None) -> Cell:
    if value is None:
        return Right("")
    return Right(f"{value:,.0f}" if value >= 1000 else f"{value:.4g}")


def _ratio(predicted: float, measured: float | None) -> Cell:
    return Right(f"{measured / predicted:.2f}" if measured is not None and predicted else "")
