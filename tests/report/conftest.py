import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.load import dump, load_stage
from bigdiff.config.schema import Stage
from bigdiff.report import folder
from bigdiff.report.folder import Folder

VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Tags that are closed in their order, and all texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def parsed() -> Callable[[str], Reader]:
    def read(html: str) -> Reader:
        reader = Reader()
        reader.feed(html)
        reader.close()
        assert reader.open == []
        return reader

    return read


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """A run's folder with its config and as many readings as asked for, each of ten steps of 64 images."""

    def make(readings: int = 0, overrides: tuple[str, ...] = (), **values: float) -> Path:
        run = tmp_path / "runs" / "quickstart-32px"
        stage: Stage = replace(load_stage("quickstart-32px", overrides), runs=str(run.parent))
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text(dump(stage))
        lines: list[dict[str, Any]] = []
        for number in range(1, readings + 1):
            step = 10 * number
            place = {"step": step, "samples_seen": step * stage.batch.total, "time": 1.7e9 + step}
            lines.append({**place, "train/loss": 1 / number, "speed/images_per_second": 250.0, **values})
        if lines:
            (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return run

    return make


@pytest.fixture
def told(made: Callable[..., Path]) -> Callable[..., Folder]:
    """The same, read."""
    return lambda *arguments, **values: folder.read(made(*arguments, **values))
