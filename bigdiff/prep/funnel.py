"""From the first row to the last sample: what each rule and each step left, and what each alone has cost."""

from dataclasses import dataclass
from typing import Final

from bigdiff.config.errors import RunError
from bigdiff.data.manifest import Manifest
from bigdiff.prep.causes import Cause, lost
from bigdiff.prep.decontaminate import CAPTION, PICTURE
from bigdiff.prep.dedup import CONTENT, NEAR, SAME
from bigdiff.prep.page import Cell, Markup, Right, bar, note, section, table
from bigdiff.prep.plan import TAKEN_DOWN, Decided
from bigdiff.prep.select import Selection

# A plan's causes, said of what is left.
_LABELS: Final = {
    TAKEN_DOWN: "not taken down",
    PICTURE: "no picture of the evaluation set",
    CAPTION: "no caption of the evaluation set",
    SAME: "not a duplicate",
    NEAR: "not a near-duplicate",
    CONTENT: "not of nearly the same content",
}
_STEPS: Final = {"download": "downloaded", "verify": "sound picture and caption"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One rule or step."""

    label: str
    left: int  # what passes it and all before it
    only: int | None = None  # what every other rule of its kind would keep; None where nobody knows


def lines(selection: Selection | None, decided: Decided, causes: list[Cause], manifest: Manifest) -> list[Line]:
    """The funnel, from all rows of the metadata, or from the samples of the set before.

    Raises:
        RunError: when rows are missing between two steps.
    """
    found = [Line(label="samples of the set before", left=decided.samples)]
    if selection:
        found = [Line(label="all rows", left=selection.rows)]
        found += [Line(label=count.rule, left=count.left, only=count.only) for count in selection.counts]
        left = selection.kept
        for step, label in _STEPS.items():
            left -= lost(causes, step)
            found.append(Line(label=label, left=left))
        if left != decided.samples:
            raise RunError(
                f"{left - decided.samples} rows were lost without a cause: delete the folder and start again"
            )
    found += [
        Line(label=_LABELS.get(count.rule, count.rule), left=count.left, only=count.only) for count in decided.counts
    ]
    if found[-1].left != manifest.samples:
        raise RunError(
            f"{found[-1].left} samples were planned, {manifest.samples} packed: delete the folder and start again"
        )
    return found


def written(found: list[Line]) -> Markup:
    """The section of the page."""
    rows: list[list[Cell]] = []
    before = whole = found[0].left
    for line in found:
        only: Cell = Right("") if line.only is None else line.only
        rows.append([line.label, line.left, before - line.left, only, bar(line.left, whole)])
        before = line.left
    said = (
        "Each rule counts what passed all rules above it. Only this rule: what every other rule of its kind would have "
        "kept, so what loosening it alone would bring. The rules on metadata are of one kind, those on our own scores "
        "of another; downloads, takedowns and duplicates stand for themselves."
    )
    return section("Funnel", [note(said), table(("rule or step", "left", "lost here", "only this rule", ""), rows)])
