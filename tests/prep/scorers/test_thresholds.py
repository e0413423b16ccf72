import duckdb
import pytest

from bigdiff.config.scoring import Scorer, Scoring
from bigdiff.prep.rules import Bound
from bigdiff.prep.scorers.thresholds import rules

SCORING = Scoring(
    scorers=[
        Scorer(kind="sharpness"),
        Scorer(kind="aesthetic_v2", weights="x", at_least=5.1, below=9),
        Scorer(kind="watermark", weights="x", below=0.7),
        Scorer(kind="clip_similarity", above=0.3),
        Scorer(kind="language", languages=("en", "und")),
        Scorer(kind="caption_length", at_least=5),
    ]
)
PASSING = {"aesthetic_v2": 5.1, "watermark": 0.6999, "clip_similarity": 0.3001, "detected_language": "en"}


def passed(**changed: float | str | None) -> dict[str, bool]:
    """Rule -> outcome for one row."""
    row = {**PASSING, "caption_length": 5, **changed}
    types = {name: "VARCHAR" if name == "detected_language" else "DOUBLE" for name in row}
    types["caption_length"] = "INTEGER"
    picked = ", ".join(f"?::{types[name]} AS {name}" for name in row)
    outcome = {}
    for rule in rules(SCORING):
        found = duckdb.execute(f"SELECT {rule.sql} FROM (SELECT {picked})", list(row.values())).fetchone()
        assert found is not None
        outcome[rule.name] = found[0]
    return outcome


def test_there_is_a_rule_a_threshold_in_order() -> None:
    assert [(rule.name, rule.columns, rule.setting) for rule in rules(SCORING)] == [
        ("aesthetic_v2 >= 5.1", ("aesthetic_v2",), "score.scorers[1].at_least"),
        ("aesthetic_v2 < 9", ("aesthetic_v2",), "score.scorers[1].below"),
        ("watermark < 0.7", ("watermark",), "score.scorers[2].below"),
        ("clip_similarity > 0.3", ("clip_similarity",), "score.scorers[3].above"),
        ("detected_language is en or und", ("detected_language",), "score.scorers[4].languages"),
        ("caption_length >= 5", ("caption_length",), "score.scorers[5].at_least"),
    ]
    assert rules(SCORING)[0].bound == Bound(column="aesthetic_v2", comparison=">=", value=5.1)
    assert rules(Scoring()) == ()


def test_a_row_at_the_bounds_passes() -> None:
    assert all(passed().values())


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"aesthetic_v2": 5.0999999}, "aesthetic_v2 >= 5.1"),
        ({"aesthetic_v2": 9.0}, "aesthetic_v2 < 9"),
        ({"watermark": 0.7}, "watermark < 0.7"),
        ({"watermark": None}, "watermark < 0.7"),
        ({"clip_similarity": 0.3}, "clip_similarity > 0.3"),
        ({"detected_language": "de"}, "detected_language is en or und"),
        ({"detected_language": None}, "detected_language is en or und"),
        ({"caption_length": 4}, "caption_length >= 5"),
        ({"clip_similarity": float("nan")}, "clip_similarity > 0.3"),
        ({"watermark": float("-inf")}, "watermark < 0.7"),
    ],
)
def test_one_beyond_a_bound_or_absent_fails_that_rule_alone(changed: dict[str, float | str | None], rule: str) -> None:
    assert [name for name, outcome in passed(**changed).items() if not outcome] == [rule]
