import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.dedup import Dedup, check_dedup
from bigdiff.config.errors import UsageError
from bigdiff.config.load import load
from bigdiff.config.scoring import Scoring


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"near_distance": 0},
        {"near_distance": 8, "keep": "largest"},
        {"keep": "highest", "keep_by": "aesthetic"},
        {"embedding_above": 0.5},
        {"evaluation_pictures": "val2014", "evaluation_distance": 2, "evaluation_captions": "captions.txt"},
    ],
)
def test_what_has_an_effect_is_accepted(settings: dict[str, Any]) -> None:
    kept = Scoring(embeddings="embedding_above" in settings, clip="clip.safetensors")
    assert check_dedup(Dedup(**settings), kept) == Dedup(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"near_distance": -1}, "dedup.near_distance is -1: it must be from 0 to 8 bits"),
        ({"near_distance": 9}, "dedup.near_distance is 9: it must be from 0 to 8 bits"),
        ({"evaluation_pictures": "x", "evaluation_distance": 9}, "dedup.evaluation_distance is 9"),
        ({"embedding_above": 0.4}, "dedup.embedding_above is 0.4: it must be from 0.5 to below 1"),
        ({"embedding_above": 1.0}, "dedup.embedding_above is 1.0"),
        ({"embedding_above": math.nan}, "dedup.embedding_above is nan"),
        ({"embedding_above": 0.9}, "dedup.embedding_above and score.embeddings need each other"),
        ({"keep": "highest"}, "dedup.keep=highest needs dedup.keep_by"),
        ({"keep_by": "aesthetic"}, "dedup.keep_by has no effect with dedup.keep=first"),
        ({"keep": "highest", "keep_by": " "}, "dedup.keep_by is empty"),
        ({"evaluation_pictures": ""}, "dedup.evaluation_pictures is empty"),
        ({"evaluation_captions": ""}, "dedup.evaluation_captions is empty"),
        ({"evaluation_distance": 4}, "dedup.evaluation_distance has no effect without dedup.evaluation_pictures"),
    ],
)
def test_what_has_none_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match="^" + message.replace(".", r"\.")):
        check_dedup(Dedup(**settings), Scoring())


def test_the_section_is_named_as_it_is_written() -> None:
    with pytest.raises(UsageError, match=r"^prep\.copies\.near_distance is 9"):
        check_dedup(Dedup(near_distance=9), Scoring(), "prep.copies")


def test_it_is_read_from_a_file_and_arguments(tmp_path: Path) -> None:
    file = tmp_path / "dedup.yaml"
    file.write_text("near_distance: 4\nkeep: largest\n")
    read = load(Dedup, [file], ["embedding_above=0.97", "near_distance=2"])
    assert asdict(read) == {**asdict(Dedup()), "near_distance": 2, "keep": "largest", "embedding_above": 0.97}
    with pytest.raises(UsageError, match="keep"):
        load(Dedup, [file], ["keep=best"])


def test_it_needs_no_torch() -> None:
    asked = "import sys, bigdiff.config.dedup; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0
