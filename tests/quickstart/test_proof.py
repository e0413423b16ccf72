from pathlib import Path

import pytest

from bigdiff.quickstart import proof, scenes


def test_true_pictures_score_as_the_oracle_and_foreign_ones_by_chance() -> None:
    wanted = scenes.held_out_scenes(32, 5)
    assert all(scenes.is_held_out(scenes.combination(scene)) for scene in wanted)
    true = [scenes.render(scene, 64) for scene in wanted]
    table = proof.score(true, true, wanted)
    assert list(table) == ["shape", "colour", "background", "place"]
    for row in table.values():
        assert row["accuracy"] == row["oracle"] >= 0.95
    foreign = proof.score([*true[7:], *true[:7]], true, wanted)
    for row in foreign.values():
        assert row["accuracy"] < 0.7
        assert row["oracle"] >= 0.95
    chances = [row["chance"] for row in table.values()]
    assert chances == pytest.approx([1 / 3, 1 / 6, 1 / 6, 1 / 3])


def test_an_untrained_pipeline_proves_nothing(pipeline: Path) -> None:
    said: list[str] = []
    table = proof.prove(pipeline, 32, said.append, count=6)
    assert table["shape"]["accuracy"] <= 0.5
    assert table["colour"]["accuracy"] <= 0.5
    assert table["place"]["oracle"] >= 0.8
    assert len(said) == 1
