from dataclasses import replace
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import CONFIGS, load_stage
from bigdiff.config.recipe import Planned, in_order, load_recipe
from bigdiff.config.schema import Stage

SHARED = ("256px", "512px", "512px-aesthetics")
VERSIONS = {  # of the model cards: the stages and all steps
    "sd-v1.1": (SHARED[:2], 431_000),
    "sd-v1.2": (SHARED, 946_000),
    "sd-v1.3": ((*SHARED, "512px-cfg-v1-3"), 1_141_000),
    "sd-v1.4": ((*SHARED, "512px-cfg-v1-4"), 1_171_000),
    "sd-v1.5": ((*SHARED, "512px-cfg"), 1_541_000),
}
STAGES = {name: load_stage(name) for name in (*SHARED, "512px-cfg")}
PROFILED = sorted(path.stem for path in (CONFIGS / "profiles" / "as-run").glob("*.yaml"))


def planned(*stages: Stage) -> list[Planned]:
    return [Planned(file=stage.name, stage=stage) for stage in stages]


def names(stages: tuple[Planned, ...]) -> list[str]:
    return [one.stage.name for one in stages]


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "recipes").glob("*.yaml")))
def test_every_shipped_recipe_hands_over(name: str) -> None:
    recipe, stages = load_recipe(name)
    assert recipe.name == name
    assert sorted(one.file for one in stages) == sorted(recipe.stages)
    for number, one in enumerate(stages):
        assert one.stage.init_from in {"", *names(stages[:number])}


@pytest.mark.parametrize(("name", "card"), VERSIONS.items())
def test_each_version_is_the_part_of_the_graph_that_its_card_names(name: str, card: tuple[tuple[str], int]) -> None:
    stages = load_recipe(name)[1]
    assert tuple(names(stages)) == card[0]
    assert sum(one.stage.steps for one in stages) == card[1]


def test_all_versions_together_share_the_early_stages() -> None:
    stages = load_recipe("sd-v1")[1]
    assert {one.stage.name for one in stages} == {name for shown, _ in VERSIONS.values() for name in shown}
    branches = [one.stage.name for one in stages if one.stage.init_from == "512px-aesthetics"]
    assert branches == ["512px-cfg-v1-3", "512px-cfg-v1-4", "512px-cfg"]


@pytest.mark.parametrize("name", [*VERSIONS, "sd-v1"])
def test_the_profiles_have_the_same_graph_and_no_run_folder_in_common(name: str) -> None:
    card, as_run = load_recipe(name)[1], load_recipe(name, profile="as-run")[1]
    assert [one.file for one in as_run] == [one.file for one in card]
    assert not set(names(card)) & set(names(as_run))
    file_of = {one.stage.name: one.file for one in (*card, *as_run)}
    starts = [[file_of.get(one.stage.init_from, "") for one in stages] for stages in (card, as_run)]
    assert starts[0] == starts[1]


def test_every_profile_belongs_to_a_stage_and_differs_from_it() -> None:
    assert sorted(one.file for one in load_recipe("sd-v1")[1]) == PROFILED
    for name in PROFILED:
        assert load_stage(name, profile="as-run").recipe != load_stage(name).recipe


def test_arguments_go_to_every_stage() -> None:
    stages = load_recipe("sd-v1.5", ["runs=elsewhere", "seed=5"])[1]
    assert {(one.stage.runs, one.stage.seed) for one in stages} == {("elsewhere", 5)}


def test_stages_are_sorted_by_what_they_start_from() -> None:
    listed = planned(STAGES["512px-cfg"], STAGES["512px-aesthetics"], STAGES["256px"], STAGES["512px"])
    assert names(in_order("r", listed)) == ["256px", "512px", "512px-aesthetics", "512px-cfg"]
    in_file_order = planned(*STAGES.values())
    assert in_order("r", in_file_order) == tuple(in_file_order)


def test_a_stage_may_start_afresh_and_several_from_one() -> None:
    afresh = planned(STAGES["256px"], replace(STAGES["512px"], init_from=""))
    assert in_order("r", afresh) == tuple(afresh)
    twins = planned(STAGES["256px"], STAGES["512px"], replace(STAGES["512px"], name="other"))
    assert in_order("r", twins) == tuple(twins)


SMALL = replace(
    STAGES["512px"], model=replace(STAGES["512px"].model, unet=replace(STAGES["512px"].model.unet, layers_per_block=1))
)


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ((), "has no stages"),
        ((STAGES["256px"], STAGES["256px"]), "256px occurs more than once"),
        ((STAGES["512px"],), "512px has init_from=256px, which is not among its stages (512px)"),
        ((STAGES["256px"], STAGES["512px-aesthetics"]), "init_from=512px, which is not among"),
        ((replace(STAGES["256px"], init_from="512px"), STAGES["512px"]), "256px, 512px start from each other"),
        ((STAGES["256px"], replace(STAGES["512px"], runs="x")), "runs=x is not that stage's runs"),
        ((STAGES["256px"], replace(STAGES["512px"], init_step=237_001)), "step 237001 of 256px, which has 237000"),
        ((STAGES["256px"], SMALL), "model.unet differ"),
    ],
)
def test_stages_that_cannot_be_handed_over_are_refused(stages: tuple[Stage, ...], sentence: str) -> None:
    with pytest.raises(UsageError, match=r"^recipe r") as caught:
        in_order("r", planned(*stages))
    assert sentence in str(caught.value)


def test_a_recipe_file_is_as_strict_as_any(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "r.yaml").write_text("name: r\nstagess: [256px]\n")
    with pytest.raises(UsageError, match="stagess"):
        load_recipe("r", configs=tmp_path)
    with pytest.raises(UsageError, match=r"unknown recipe 'q'.* has r"):
        load_recipe("q", configs=tmp_path)
