"""A recipe and its fidelity as text: a table on a terminal, the same columns without lines in a file or pipe."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bigdiff.config.facts import Facts
from bigdiff.config.recipe import Planned, Recipe
from bigdiff.plan.fidelity import UNDECIDED, VERDICTS, Line, Section, Verdict

_PUBLISHED: Final = 26  # columns at most where the width is short
_HERE: Final = 18
WIDE: Final = 150  # columns from which on the settings' names and the sources' own words fit in
PIPED: Final = 100  # columns of a file or pipe, where nothing else is known
_STYLES: Final[dict[Verdict, str]] = {
    "same": "green",
    "departs": "yellow",
    "DIFFERS": "bold red",
    "open": "cyan",
    "-": "dim",
}
_CERTAINTY: Final = "certain: the source says so. likely: it follows from it. unproven: maybe not what the weights had."


def console() -> Console:
    """Standard output: the terminal's width, that of COLUMNS, or 100 columns."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else PIPED, highlight=False)


def show(out: Console, content: RenderableType) -> None:
    """Print; in a file or pipe without the spaces that fill up a table's last column."""
    if out.is_terminal:
        out.print(content)
        return
    with out.capture() as captured:
        out.print(content)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def order(recipe: Recipe, profile: str, planned: Sequence[Planned], out: Console) -> RenderableType:
    """The stages in the order of training, and what each starts from."""
    table = blank(out)
    for column in ("stage", "starts from"):
        table.add_column(column, overflow="fold")
    for column in ("steps", "batch", "pictures seen"):
        table.add_column(column, justify="right")
    for one in planned:
        stage = one.stage
        numbers = (stage.steps, stage.batch.total, stage.steps * stage.batch.total)
        table.add_row(*map(Text, (stage.name, _start(one), *map(shown, numbers))))
    runs = ", ".join(dict.fromkeys(one.stage.runs for one in planned))
    return Group(_heading(recipe, profile), Text(f"each stage's run is a folder of its name under {runs}\n"), table)


def report(recipe: Recipe, profile: str, sections: Sequence[Section], facts: Facts, out: Console) -> RenderableType:
    """What is published beside what the stages have; first what is the same in all stages, then stage by stage."""
    columns = _columns([line for section in sections for line in section.lines], out.width)
    shared = _shared(sections)
    kept = {id(line.fact) for line in shared}
    names = ", ".join(section.stage.name for section in sections)
    parts: list[RenderableType] = [_heading(recipe, profile)]
    if shared:
        notes = [
            note for section in sections for note in _notes(line for line in section.lines if id(line.fact) in kept)
        ]
        parts.append(_section(f"all stages: {names}", shared, notes, columns, out))
    for section in sections:
        rest = [line for line in section.lines if id(line.fact) not in kept]
        parts.append(_section(section.stage.name, rest, _notes(rest), columns, out))
    return Group(*parts, *_summary(sections, facts))


def shown(value: Any) -> str:  # noqa: ANN401 (plain values)
    """A value for a person: thousands apart, yes and no, short numbers."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return " ".join(str(one) for one in value)
    return "none" if value is None else str(value)


def blank(out: Console) -> Table:
    """Without columns: ruled on a terminal, plain elsewhere."""
    ruled = out.is_terminal  # a rule's columns have a space between them
    return Table(
        box=box.SIMPLE_HEAD if ruled else None, pad_edge=False, padding=(0, 1 if ruled else 2, 0, 0), show_edge=False
    )


def _heading(recipe: Recipe, profile: str) -> Text:
    return Text(f"{recipe.name}, profile {profile}: {recipe.about}")


def _start(one: Planned) -> str:
    at = f" at step {one.stage.init_step:,}" if one.stage.init_step else ""
    return f"{one.stage.beginning}{at}"


def _shared(sections: Sequence[Section]) -> list[Line]:
    """Lines that say the same in all of several stages."""
    if len(sections) < 2:
        return []
    by_fact = [{id(line.fact): line for line in section.lines} for section in sections]
    return [
        line
        for line in sections[0].lines
        if not line.fact.stages and all(_cells(lines[id(line.fact)]) == _cells(line) for lines in by_fact)
    ]


def _cells(line: Line) -> tuple[str, str, str, str, str, str, str]:
    stated = line.stated
    published, here = shown(stated.value), shown(line.ours)
    if line.verdict == "same" and published == here and len(here) > _HERE:
        here = "the same"
    if line.verdict == "-":
        here = ""
    if isinstance(line.ours, str) and line.ours.startswith(UNDECIDED):
        here = "data_prep decides"  # a line below the table says which
    source = f"{stated.source}, {stated.certainty}"
    return line.verdict, line.fact.says, published, source, here, line.fact.key, stated.note


def _columns(lines: Sequence[Line], width: int) -> tuple[int | None, ...]:
    """Widths of verdict, fact, published, source and here, the same in all sections; None: as wide as needed."""
    if width >= WIDE:
        return 7, None, None, None, None
    cells = [_cells(line) for line in lines]
    published, source, here = (max((len(row[place]) for row in cells), default=0) for place in (2, 3, 4))
    rest = width - 7 - source - 4 * 2
    published, here = min(published, _PUBLISHED, rest * 3 // 8), min(here, _HERE, rest * 2 // 7)
    return 7, max(rest - published - here, 1), published, source, here


def _section(
    title: str, lines: Sequence[Line], notes: Sequence[str], columns: tuple[int | None, ...], out: Console
) -> RenderableType:
    table = blank(out)
    for name, width in zip(("", "fact", "published", "source", "here"), columns, strict=True):
        table.add_column(name, width=width, overflow="fold")
    if out.width >= WIDE:
        table.add_column("compared with", overflow="fold")
        table.add_column("in the source's words", overflow="fold")
    for line in lines:
        style = _STYLES[line.verdict]
        cells = enumerate(_cells(line)[: len(table.columns)])
        table.add_row(*(Text(cell, style=style if number in (0, 4) else "") for number, cell in cells))
    told = [Padding(Text(note, style="dim"), (0, 0, 0, 9)) for note in dict.fromkeys(notes)]
    return Group(Text(f"\n{title}", style="bold"), table, *told)


def _notes(lines: Iterable[Line]) -> list[str]:
    departures, opened = [], []
    for line in lines:
        if line.reason:
            departures.append(f"departs, {line.fact.says}: {line.reason}")
        elif line.verdict == "open":
            opened.append(f"open: {line.ours}")
    return [*departures, *opened]


def _summary(sections: Sequence[Section], facts: Facts) -> list[RenderableType]:
    lines = [(section.stage, line) for section in sections for line in section.lines]
    counts = Counter(line.verdict for _, line in lines)
    told = ", ".join(f"{counts[verdict]} {meaning}" for verdict, meaning in VERDICTS.items())
    stages = "1 stage" if len(sections) == 1 else f"{len(sections)} stages"
    differing = [
        Text(
            f"DIFFERS  {stage.name}: {line.fact.says} ({line.fact.key}) is {shown(line.ours)}, published "
            f"{shown(line.stated.value)} ({line.stated.source}, {line.stated.certainty})",
            style=_STYLES["DIFFERS"],
        )
        for stage, line in lines
        if line.verdict == "DIFFERS"
    ]
    legend = [Text(f"{name:8}{meaning}", style="dim") for name, meaning in facts.sources.items()]
    total = Text(f"{len(lines)} facts in {stages}: {told}", style="bold")
    return [Text(), *legend, Text(_CERTAINTY, style="dim"), Text(), *differing, total]
