from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import CONFIGS, dump, load
from bigdiff.config.prep import Prep, Select, load_prep


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml")))
def test_every_shipped_file_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    prep = load_prep(name)
    again = tmp_path / "again.yaml"
    again.write_text(dump(prep))
    assert load(Prep, [again]) == prep


def test_the_recipes_predicates() -> None:
    improved = load_prep("laion-improved-aesthetics").select
    assert improved == Select(min_width=512, min_height=512, aesthetic_above=5.0, pwatermark_below=0.5)
    assert load_prep("laion-high-resolution").select == Select(min_width=1024, min_height=1024)
    assert load_prep("laion-aesthetics-v2-5plus").select == Select(aesthetic_at_least=5.0)
    assert load_prep("laion2b-en").select == Select()
    assert load_prep("laion2b-en").pack.resolution == 256
    assert not any(load_prep(path.stem).download.allow_private_addresses for path in (CONFIGS / "data").glob("laion*"))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("select.min_widht=3", "min_widht"),
        ("pack.resolution=0", "pack.resolution"),
        ("pack.jpeg_quality=101", "pack.jpeg_quality"),
        ("download.retries=-1", "download.retries"),
        ("download.timeout_seconds=99", "download.timeout_seconds"),
        ("select.aesthetic_at_least=5", "aesthetic_at_least"),
        ("pack.format=bmp", "pack.format"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(override: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        load_prep("quickstart", [override])


def test_a_quality_without_effect_is_refused() -> None:
    with pytest.raises(UsageError, match=r"pack\.jpeg_quality has no effect"):
        load_prep("quickstart", ["pack.format=png", "pack.jpeg_quality=90"])
