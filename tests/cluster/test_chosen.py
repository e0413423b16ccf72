import argparse

import pytest

from bigdiff.cluster.chain import Chain
from bigdiff.cluster.chosen import chosen, takes
from bigdiff.config.errors import UsageError


def meant(*words: str) -> Chain:
    parser = argparse.ArgumentParser()
    takes(parser)
    return chosen(parser.parse_intermixed_args(words), "ours")


def test_a_stage_is_a_chain_of_one() -> None:
    found = meant("--stage", "512px", "seed=3", "--profile", "as-run", "runs=/scratch")
    assert [node.name for node in found.nodes] == ["512px-as-run"]
    assert (found.recipe, found.runs, found.nodes[0].work.seed) == ("", "/scratch", 3)  # type: ignore[union-attr]


def test_a_recipe_is_its_tasks_and_stages() -> None:
    found = meant("--recipe", "quickstart", "runs=/scratch")
    assert (found.recipe, found.runs, len(found.nodes)) == ("quickstart", "/scratch", 7)
    assert found.nodes[-1].work.makes == "/scratch/quickstart-64px/scores.json"  # type: ignore[union-attr]


def test_one_of_them_is_needed_and_no_more() -> None:
    for words in ([], ["--stage", "512px", "--recipe", "sd-v1"]):
        with pytest.raises(SystemExit):
            meant(*words)
    with pytest.raises(UsageError, match="nothing"):
        meant("--stage", "nothing")
