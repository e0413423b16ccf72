from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import CONFIGS, dump, load
from bigdiff.config.prep import Columns, Prep, Select, load_prep


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml")))
def test_every_shipped_file_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    prep = load_prep(name)
    again = tmp_path / "again.yaml"
    again.write_text(dump(prep))
    assert load(Prep, [again]) == prep


PREDICATES = {
    "laion2b-en": Select(),
    "laion-high-resolution": Select(min_width=1024, min_height=1024),
    "laion-improved-aesthetics": Select(min_width=512, min_height=512, aesthetic_above=5.0, pwatermark_below=0.5),
    "laion-aesthetics-v2-5plus": Select(aesthetic_at_least=5.0),
    "sd2-base": Select(aesthetic_at_least=4.5, punsafe_below=0.1),
    "coyo-700m": Select(
        columns=Columns(pwatermark="watermark_score", similarity="clip_similarity_vitl14"),
        min_width=256,
        min_height=256,
        aesthetic_at_least=5.2,
        similarity_at_least=0.1,
        pwatermark_at_most=0.4,
    ),
    "datacomp": Select(columns=Columns(similarity="clip_l14_similarity_score"), similarity_at_least=0.243),
    "quickstart": Select(
        min_width=64, min_height=64, aesthetic_above=5.0, pwatermark_below=0.5, punsafe_below=0.5, languages=("en",)
    ),
}
SIDES = {  # of the stored square; files with a shorter side are left out
    "laion2b-en": 256,
    "laion-high-resolution": 512,
    "laion-improved-aesthetics": 512,
    "laion-aesthetics-v2-5plus": 512,
    "sd2-base": 256,
    "coyo-700m": 256,
    "datacomp": 256,
}


def test_the_exact_predicates_of_every_shipped_file() -> None:
    assert {path.stem: load_prep(path.stem).select for path in (CONFIGS / "data").glob("*.yaml")} == PREDICATES


def test_what_the_releases_files_store() -> None:
    assert SIDES.keys() == PREDICATES.keys() - {"quickstart"}
    for name, side in SIDES.items():
        prep = load_prep(name)
        assert (prep.pack.resolution, prep.pack.min_side) == (side, side), name
        assert not prep.download.allow_private_addresses, name


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
        ("select.pwatermark_at_most=0.5", "pwatermark_below and select.pwatermark_at_most"),
        ("select.swapped_sizes=maybe", "swapped_sizes"),
        ("select.swapped_sizes=always", "swapped_sizes=always has no effect"),
        ("select.columns.nsfw=NSFW", "nsfw"),
        ("select.memory_gb=0", "select.memory_gb"),
        ("select.punsafe_below=.nan", "select.punsafe_below"),
        ("download.distributor=ray", "download.distributor"),
        ("download.spark_master=yarn", "download.spark_master=yarn has no effect without"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(override: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        load_prep("quickstart", [override])


def test_a_quality_without_effect_is_refused() -> None:
    with pytest.raises(UsageError, match=r"pack\.jpeg_quality has no effect"):
        load_prep("quickstart", ["pack.format=png", "pack.jpeg_quality=90"])


def test_whole_pictures_have_no_buckets() -> None:
    assert load_prep("quickstart", ["pack.crop=none"]).pack.crop == "none"
    with pytest.raises(
        UsageError, match=r"pack\.bucket_step=32 crops .* pack\.crop=none stores them whole: remove one"
    ):
        load_prep("quickstart", ["pack.crop=none", "pack.bucket_step=32"])
    with pytest.raises(UsageError, match=r"pack\.bucket_max_aspect has no effect without pack\.bucket_step"):
        load_prep("quickstart", ["pack.crop=none", "pack.bucket_max_aspect=3"])


def test_bounds_that_no_caption_can_meet_are_refused() -> None:
    with pytest.raises(UsageError, match=r"select\.min_caption_length is above"):
        load_prep("quickstart", ["select.min_caption_length=9", "select.max_caption_length=8"])


def test_the_processes_are_sparks_where_spark_starts_them() -> None:
    on_spark = "download.distributor=pyspark"
    assert load_prep("quickstart", [on_spark]).download.spark_master is None
    assert load_prep("quickstart", [on_spark, "download.spark_master=local[2]"]).download.spark_master == "local[2]"
    with pytest.raises(UsageError, match=r"download\.processes=3 has no effect with download\.distributor=pyspark"):
        load_prep("quickstart", [on_spark, "download.processes=3"])
