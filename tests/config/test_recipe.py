from dataclasses import replace
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import CONFIGS, load_stage
from bigdiff.config.recipe import Recipe, check_order, load_recipe

NAMES = ("256px", "512px", "512px-aesthetics", "512px-cfg")
STAGES = tuple(load_stage(name) for name in NAMES)
RECIPE = Recipe(name="r", stages=NAMES)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "recipes").glob("*.yaml")))
def test_every_shipped_recipe_hands_over(name: str) -> None:
    recipe, stages = load_recipe(name)
    assert recipe.name == name
    assert tuple(stage.name for stage in stages) == recipe.stages
    assert [stage.init_from for stage in stages] == ["", *recipe.stages[:-1]]


def test_sd_v1_5_is_the_cards_four_stages() -> None:
    recipe, stages = load_recipe("sd-v1.5")
    assert recipe.stages == NAMES
    assert sum(stage.steps for stage in stages) == 1_541_000


def test_arguments_go_to_every_stage() -> None:
    _, stages = load_recipe("sd-v1.5", ["runs=elsewhere", "seed=5"])
    assert {(stage.runs, stage.seed) for stage in stages} == {("elsewhere", 5)}


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ((), "has no stages"),
        ((STAGES[0], STAGES[0]), "256px occurs more than once"),
        ((STAGES[1],), 'init_from=256px, it must be "": it is the first'),
        ((STAGES[0], STAGES[2]), 'init_from=512px, it must be "" or 256px'),
        ((STAGES[1], STAGES[0]), "init_from=256px"),
        ((STAGES[0], replace(STAGES[1], runs="x")), "runs=x is not that stage's runs"),
        (
            (
                STAGES[0],
                replace(
                    STAGES[1],
                    model=replace(STAGES[1].model, unet=replace(STAGES[1].model.unet, layers_per_block=1)),
                ),
            ),
            "model.unet differ",
        ),
    ],
)
def test_stages_that_cannot_be_handed_over_are_refused(stages: tuple, sentence: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UsageError, match=r"^recipe r") as caught:
        check_order(RECIPE, stages)
    assert sentence in str(caught.value)


def test_a_stage_may_start_afresh() -> None:
    stages = (STAGES[0], replace(STAGES[1], init_from=""))
    assert check_order(RECIPE, stages) is stages


def test_a_recipe_file_is_as_strict_as_any(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "r.yaml").write_text("name: r\nstagess: [256px]\n")
    with pytest.raises(UsageError, match="stagess"):
        load_recipe("r", configs=tmp_path)
    with pytest.raises(UsageError, match=r"unknown recipe 'q'.* has r"):
        load_recipe("q", configs=tmp_path)
