from dataclasses import asdict, replace
from typing import Any

from bigdiff.config.prep import Pack, Prep
from bigdiff.config.scoring import Scorer, Scoring
from bigdiff.data.damage import Tombstones
from bigdiff.prep.provenance import provenance

NONE = Tombstones(entries=frozenset())
PREP = Prep(score=Scoring(scorers=[Scorer(kind="nsfw", weights="here.npz", below=0.5)], clip="here.safetensors"))


def made_from(prep: Prep, takedown: Tombstones = NONE, scorers: dict[str, str] | None = None) -> dict[str, Any]:
    return provenance(inputs={"a": "1"}, settings=asdict(prep), takedown=takedown, scorers=scorers or {"nsfw": "f"})


def test_where_weights_and_lists_lie_does_not_matter_but_what_is_in_them() -> None:
    moved = Scoring(scorers=[Scorer(kind="nsfw", weights="there.npz", below=0.5)], clip="there.safetensors")
    assert made_from(replace(PREP, score=moved)) == made_from(PREP)
    assert made_from(PREP, scorers={"nsfw": "g"}) != made_from(PREP)
    assert made_from(replace(PREP, pack=Pack(takedown="list.txt"))) == made_from(PREP)
    taken = made_from(PREP, Tombstones(entries=frozenset({"key"})))
    assert taken["takedown"]["entries"] == 1
    assert taken != made_from(PREP)
    assert taken != made_from(PREP, Tombstones(entries=frozenset({"other"})))


def test_a_setting_that_came_later_is_said_where_it_differs() -> None:
    """So that a set begun before it goes on, and comes out with the same bytes."""
    packed = made_from(PREP)["settings"]["pack"]
    assert "crop" in asdict(PREP.pack) and "crop" not in packed
    assert made_from(replace(PREP, pack=Pack(crop="none")))["settings"]["pack"] == {**packed, "crop": "none"}


def test_thresholds_and_sizes_matter() -> None:
    moved = Scoring(scorers=[Scorer(kind="nsfw", weights="here.npz", below=0.4)], clip="here.safetensors")
    assert made_from(replace(PREP, score=moved)) != made_from(PREP)
    assert made_from(replace(PREP, pack=Pack(resolution=7))) != made_from(PREP)
    assert made_from(replace(PREP, pack=Pack(processes=7))) == made_from(PREP)
