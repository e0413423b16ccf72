import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from bigdiff.report import folder, settings
from bigdiff.report.folder import Folder
from bigdiff.train import handover


def test_the_whole_configuration_and_all_versions_are_there(
    made: Callable[..., Path], parsed: Callable[[str], Any]
) -> None:
    run = made()
    (run / "versions.json").write_text(json.dumps({"versions": {"python": "3.11.7", "torch": "<2.15>"}}))
    html = settings.written(folder.read(run))
    assert escape((run / "config.yaml").read_text()) in html
    texts = parsed(html).texts
    assert texts[texts.index("torch") + 1] == "<2.15>"
    assert "It began with random weights." in texts


def test_where_its_weights_came_from_is_told(made: Callable[..., Path], told: Callable[..., Folder]) -> None:
    assert settings.HANDOVER == handover.FILE
    assert "No versions are recorded." in settings.written(told())
    assert "the weights of unet.safetensors" in settings.written(told(0, ("init_unet=unet.safetensors",)))
    run = made()
    (run / handover.FILE).write_text(
        json.dumps({"weights": "ema/0.99", "checkpoint": "runs/a/checkpoints/step-00000700"})
    )
    assert "It began with ema/0.99 of runs/a/checkpoints/step-00000700." in settings.written(folder.read(run))
