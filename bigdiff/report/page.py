"""`report.html`: one file about a run, no script, nothing fetched, to send to somebody."""

from pathlib import Path

from bigdiff.checkpoint import layout
from bigdiff.config.errors import UsageError
from bigdiff.prep.page import Markup, contents, document, title_line
from bigdiff.report import (
    charts,
    data,
    evaluations,
    events,
    folder,
    forecast,
    headline,
    lines,
    preflight,
    previews,
    scores,
    settings,
)
from bigdiff.runtime.files import write_bytes

NAME = "report.html"  # in the run's folder


def write(run: Path, output: Path | None = None) -> Path:
    """Write the page of a run's folder, by default into it; the path written.

    Raises:
        UsageError: when it is no run, a file in it is damaged, or `output` cannot be written.
    """
    final = output or run / NAME
    if final.is_dir():
        raise UsageError(f"--output {final} is a folder: name a file in it, such as {final / NAME}")
    content = rendered(run).encode()
    try:
        write_bytes(final, content)
    except OSError as error:
        raise UsageError(f"{final} cannot be written ({error.strerror}): name another file with --output") from error
    return final


def rendered(run: Path) -> str:
    """The page's text; the same folder gives the same text.

    Raises:
        UsageError: as `write`, of what it reads.
    """
    found = folder.read(run)
    sections = [
        headline.written(found),
        charts.learning(found.readings),
        previews.written(found, run / layout.TENSORBOARD),
        scores.written(found),
        charts.speed(found.readings),
        forecast.written(found),
        events.written(found),
        data.written(found),
        preflight.written(found),
        settings.written(found),
    ]
    title = f"Run report: {found.stage.name}"
    top: list[Markup] = [title_line(title), headline.top(found), contents(sections)]
    return document(title, [*top, *sections], lines.STYLE + previews.STYLE + evaluations.STYLE)
