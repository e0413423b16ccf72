import re
from dataclasses import fields
from pathlib import Path

import pytest

from bigdiff.config.cluster import Cluster, Preflight
from bigdiff.config.errors import UsageError
from bigdiff.config.load import CONFIGS, load_cluster


def test_the_example_has_every_setting_with_its_default_where_nothing_is_to_be_changed() -> None:
    file = CONFIGS / "cluster" / "example.yaml"
    example, default = load_cluster("example"), Cluster(name="example")
    text = file.read_text()
    for one in [*fields(Cluster), *fields(Preflight)]:
        assert re.search(rf"^ *{one.name}:", text, re.MULTILINE) or one.name == "kind", one.name
    changed = {line.partition(":")[0] for line in text.splitlines() if "change" in line}
    for one in fields(Cluster):
        if one.name not in changed | {"nodes"}:
            assert getattr(example, one.name) == getattr(default, one.name), one.name


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text("name: ours\npreflight: {quick: true}\n")
    with pytest.raises(UsageError, match="quick"):
        load_cluster(str(tmp_path / "ours.yaml"))
