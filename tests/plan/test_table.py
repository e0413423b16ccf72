import io
import re
from functools import cache

import pytest
from rich.console import Console, RenderableType

from bigdiff.config.facts import load_facts
from bigdiff.config.recipe import Recipe, load_recipe
from bigdiff.plan import table
from bigdiff.plan.fidelity import VERDICTS, Section, compare

FACTS, DEPARTURES = load_facts("sd-v1")


def out(width: int, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, highlight=False)


def printed(content: RenderableType, console: Console) -> list[str]:
    console.print(content)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@cache
def compared(recipe: str, profile: str, *overrides: str) -> tuple[Recipe, tuple[Section, ...]]:
    found, planned = load_recipe(recipe, overrides, profile=profile)
    return found, compare(planned, profile, FACTS, DEPARTURES)


def report(width: int, recipe: str, profile: str, *overrides: str, terminal: bool = False) -> list[str]:
    found, sections = compared(recipe, profile, *overrides)
    console = out(width, terminal)
    return printed(table.report(found, profile, sections, FACTS, console), console)


@pytest.mark.parametrize("profile", ["card", "as-run"])
@pytest.mark.parametrize("width", [80, 100, 149, 150, 200])
def test_no_line_is_longer_than_the_width_and_no_fact_is_lost(width: int, profile: str) -> None:
    lines = report(width, "sd-v1.5", profile)
    assert max(map(len, lines)) <= width
    verdicts = [line.split()[0] for line in lines if line.split() and line.split()[0] in VERDICTS]
    sections = compared("sd-v1.5", profile)[1]
    shared = lines[: lines.index("256px" if profile == "card" else "256px-as-run")]
    common = sum(line.split()[0] in VERDICTS for line in shared if line.split())
    assert len(verdicts) == sum(len(section.lines) for section in sections) - (len(sections) - 1) * common


def test_the_last_line_counts_every_fact_of_every_stage() -> None:
    text = " ".join(" ".join(report(100, "sd-v1.5", "as-run")).split())
    total, stages, told = re.search(r"(\d+) facts in (\d+) stages: (.*)$", text).groups()  # type: ignore[union-attr]
    assert int(stages) == 4
    assert sum(int(number) for number in re.findall(r"(\d+) (?:as|depart|differ|are)", told)) == int(total)


def test_differences_come_last_with_both_values_and_the_source() -> None:
    lines = report(200, "sd-v1.5", "card", "batch.total=1024")
    assert "DIFFERS  512px: samples per step (batch.total) is 1,024, published 2,048 (card, certain)" in lines
    assert lines.index(
        "DIFFERS  512px: samples per step (batch.total) is 1,024, published 2,048 (card, certain)"
    ) > max(number for number, line in enumerate(lines) if line.startswith("same"))
    assert not [line for line in report(200, "sd-v1.5", "card") if line.startswith("DIFFERS")]


def test_reasons_and_what_data_prep_decides_stand_below_their_table() -> None:
    text = " ".join(" ".join(report(100, "sd-v1.1", "as-run")).split())
    assert "departs, samples per step: the number of GPUs is lost; this is the card's" in text
    assert "open: decided by data_prep: laion2b-en" in text
    assert "open: decided by data_prep: laion-high-resolution" in text


def test_a_wide_table_names_the_settings_and_the_sources_words() -> None:
    wide, narrow = (" ".join(report(width, "sd-v1.3", "as-run")) for width in (200, 100))
    for words in ("diffusion.beta_schedule", "f_max=[0.5]"):
        assert words in wide
        assert words not in narrow


def test_a_single_stage_has_no_shared_section() -> None:
    found, sections = compared("sd-v1.1", "card")
    console = out(100)
    lines = printed(table.report(found, "card", sections[:1], FACTS, console), console)
    assert not [line for line in lines if line.startswith("all stages")]
    assert any("facts in 1 stage:" in line for line in lines)


def test_a_terminal_gets_a_ruled_table_and_a_pipe_plain_columns() -> None:
    assert any("\u2500" in line for line in report(100, "sd-v1.1", "card", terminal=True))
    assert all(line.isascii() for line in report(100, "sd-v1.1", "card"))


def test_the_order_shows_what_each_stage_starts_from() -> None:
    found, planned = load_recipe("sd-v1.5", profile="as-run")
    console = out(100)
    lines = printed(table.order(found, "as-run", planned, console), console)
    assert lines[0].startswith("sd-v1.5, profile as-run: ")
    assert re.search(
        r"^512px-cfg-as-run +512px-aesthetics-as-run at step 465,000 +595,000 +2,048", "\n".join(lines), re.M
    )


def test_a_pipe_gets_no_spaces_at_the_ends_of_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    found, planned = load_recipe("sd-v1")
    console = table.console()
    assert (console.width, console.is_terminal) == (table.PIPED, False)
    table.show(console, table.order(found, "card", planned, console))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 6
    assert lines == [line.rstrip() for line in lines]
    monkeypatch.setenv("COLUMNS", "123")
    assert table.console().width == 123


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (2048, "2,048"),
        (1e-10, "1e-10"),
        (1.666675e-5, "1.66668e-05"),
        (0.0, "0"),
        ([1, 2], "1 2"),
        ((), ""),
        (None, "none"),
        ("a", "a"),
    ],
)
def test_values_for_a_person(value: object, text: str) -> None:
    assert table.shown(value) == text
