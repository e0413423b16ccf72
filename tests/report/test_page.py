import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.report import page

EVIL = """"'><script>alert(1)</script>&amp;"""
SECTIONS = (
    "At a glance",
    "Is it learning",
    "Pictures",
    "How good is it",
    "How fast",
    "As planned",
    "Events",
    "What it saw",
    "Preflight",
    "Settings",
)


@pytest.mark.parametrize("readings", [0, 1, 30])
def test_the_page_is_whole_runs_nothing_and_fetches_nothing(
    made: Callable[..., Path], parsed: Callable[[str], Any], readings: int
) -> None:
    run = made(readings)
    file = page.write(run)
    assert file == run / "report.html"
    html = file.read_text()
    reader = parsed(html)
    assert "script" not in reader.tags and "link" not in reader.tags
    assert all(source.startswith(("#", "data:image/jpeg;base64,")) for source in reader.sources)
    assert "default-src 'none'" in html
    assert [text for text in reader.texts if text in SECTIONS] == [*SECTIONS, *SECTIONS], (
        "the contents and the headings"
    )
    anchors = set(re.findall(r'id="([^"]+)"', html))
    assert {source[1:] for source in reader.sources if source.startswith("#")} == anchors
    assert ("<svg" in html) == bool(readings)


def test_texts_of_strangers_are_texts(made: Callable[..., Path], parsed: Callable[[str], Any]) -> None:
    run = made(2)
    config = run / "config.yaml"
    config.write_text(
        re.sub(r"recipe: .*", lambda _: f"recipe: '{EVIL.replace(chr(39), chr(39) * 2)}'", config.read_text())
    )
    (run / "metrics.jsonl").open("a").write('{"samples_seen": 9999, "train/<script>": 1, "distance/<script>": 1}\n')
    reader = parsed(page.rendered(run))
    assert "script" not in reader.tags
    assert EVIL in reader.texts and "<script>" in reader.texts


def test_the_same_folder_gives_the_same_page_wherever_it_is_written(made: Callable[..., Path], tmp_path: Path) -> None:
    run = made(5)
    first = page.write(run).read_bytes()
    other = page.write(run, tmp_path / "sent" / "a.html")
    assert other.read_bytes() == first == page.write(run).read_bytes()


def test_a_run_that_is_training_is_told_up_to_its_last_whole_line(made: Callable[..., Path]) -> None:
    run = made(3)
    whole = page.rendered(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "samples_se')
    assert page.rendered(run) == whole


def test_where_it_cannot_be_written_is_said(made: Callable[..., Path], tmp_path: Path) -> None:
    run = made(1)
    with pytest.raises(UsageError, match="is a folder: name a file"):
        page.write(run, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot be written .*name another file"):
        page.write(run, tmp_path / "file" / "a.html")
