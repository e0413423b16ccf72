"""What the run was made with: resolved settings, versions, and what it took over from another run."""

import json

from bigdiff.prep.page import Cell, Markup, details, note, section, table
from bigdiff.report.folder import Folder
from bigdiff.report.records import content

HANDOVER = "handover.json"  # in the run's folder: what it began with


def written(run: Folder) -> Markup:
    """The section of the page.

    Raises:
        UsageError: when the record of the hand-over is damaged.
    """
    versions = run.about.get("versions", {})
    taken = content(run.path / HANDOVER)
    begun = "It began with random weights."
    if taken:
        begun = f"It began with {taken.get('weights')} of {taken.get('checkpoint')}."
    elif run.stage.init_from or run.stage.init_unet:
        begun = f"It began with the weights of {run.stage.init_from or run.stage.init_unet}."
    rows: list[list[Cell]] = [[name, str(version)] for name, version in versions.items()]
    return section(
        "Settings",
        [
            note(begun),
            details("All settings, as resolved (config.yaml)", run.config),
            details("Versions", table(("package", "version"), rows, named=True))
            if rows
            else note("No versions are recorded."),
            details("What it took over", json.dumps(taken, indent=2)) if taken else Markup(),
        ],
    )
