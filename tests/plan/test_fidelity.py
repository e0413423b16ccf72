from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from bigdiff.config.facts import Departure, Departures, load_facts
from bigdiff.config.load import CONFIGS, load_stage
from bigdiff.config.recipe import Planned, load_recipe
from bigdiff.data import manifest
from bigdiff.data.contract import LatentContract
from bigdiff.plan.fidelity import Line, compare, same, subjects

FACTS, DEPARTURES = load_facts("sd-v1")
RECIPES = [f"sd-v1.{number}" for number in range(1, 6)]
CONTRACT = LatentContract(
    vae_sha256="0",
    vae_scaling_factor=0.18215,
    vae_factor=8,
    latent_channels=4,
    resolution=512,
    tokenizer_sha256="0",
    empty_tokens=(0,) * 77,
)
# another value for each setting that a fact is compared with; else yes and no are exchanged and numbers doubled
OTHER = {
    "diffusion.beta_schedule": "linear",
    "diffusion.beta_end": "0.02",
    "diffusion.prediction_type": "v_prediction",
    "diffusion.weighting": "min_snr diffusion.snr_gamma=5",
    "diffusion.timesteps": "logit_normal diffusion.logit_std=1",
    "diffusion.timestep_draws": "sobol",
    "diffusion.zero_terminal_snr": "true diffusion.prediction_type=v_prediction",
    "diffusion.offset_noise": "0.05",
    "diffusion.input_perturbation": "0.1",
    "model.unet.block_out_channels": "[320,640,640,1280]",
    "model.vae.factor": "4",
    "engine.precision": "bf16",
    "optim.beta1": "0.8",
    "optim.beta2": "0.99",
    "optim.grad_clip": "1.0",
    "optim.warmup_steps": "5000",
    "optim.schedule": "cosine optim.cycle_steps=0",
    "optim.cycle_steps": "500000",
    "text_dropout": "0.2",
    "init_weights": "ema",
    "batch.micro": "8",
}
SETTINGS = sorted({fact.key for fact in FACTS.facts if fact.compared == "setting"})


def lines(recipe: str, profile: str = "card", *overrides: str) -> dict[tuple[str, str], Line]:
    planned = load_recipe(recipe, overrides, profile=profile)[1]
    sections = compare(planned, profile, FACTS, DEPARTURES)
    return {(section.stage.name, line.fact.id): line for section in sections for line in section.lines}


@cache
def one(stage: str, profile: str = "card", *overrides: str) -> dict[str, Line]:
    planned = [Planned(file=stage, stage=load_stage(stage, overrides, profile=profile))]
    return {line.fact.id: line for line in compare(planned, profile, FACTS, DEPARTURES)[0].lines}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_cards_recipes_have_no_difference_but_the_listed_one(recipe: str) -> None:
    found = lines(recipe)
    assert {key: line.ours for key, line in found.items() if line.verdict == "DIFFERS"} == {}
    assert {fact for (_, fact), line in found.items() if line.verdict == "departs"} == {"checkpointing"}
    assert all(line.reason for line in found.values() if line.verdict == "departs")
    assert sum(line.verdict == "same" for line in found.values()) > 40 * len({stage for stage, _ in found})


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_as_run_recipes_differ_where_it_is_listed_alone(recipe: str) -> None:
    found = lines(recipe, "as-run")
    assert {key: line.ours for key, line in found.items() if line.verdict == "DIFFERS"} == {}
    assert {"crop", "reseeding", "batch"} <= {fact for (_, fact), line in found.items() if line.verdict == "departs"}


def test_every_departure_is_one() -> None:
    """One that is no longer needed would hide a difference one day."""
    used = set()
    for profile in ("card", "as-run"):
        for (stage, fact), line in lines("sd-v1", profile).items():
            if line.verdict == "departs":
                file = stage.removesuffix("-as-run")
                used |= {
                    number
                    for number, one in enumerate(DEPARTURES.departures)
                    if one.fact == fact and one.covers(line.fact, file, profile)
                }
    assert used == set(range(len(DEPARTURES.departures)))


@pytest.mark.parametrize("key", SETTINGS)
@pytest.mark.parametrize("profile", ["card", "as-run"])
def test_another_value_of_any_compared_setting_makes_a_difference(key: str, profile: str) -> None:
    told = {fact.id for fact in FACTS.facts if fact.key == key}
    for fact in FACTS.facts:
        for stage in fact.stages[:1] or ["512px"]:  # the others go the same way
            if fact.key != key or fact.about(stage, profile) is None:
                continue
            before = one(stage, profile)
            now = before[fact.id].ours
            other = OTHER.get(key) or (str(not now).lower() if isinstance(now, bool) else str(2 * now))
            assert str(now).lower() != other.split()[0], f"{key} of {stage} is {other} already"
            after = one(stage, profile, *f"{key}={other}".split())
            new = {name for name, line in after.items() if line.verdict in ("DIFFERS", "same") and line != before[name]}
            assert told & new, (stage, other)
            if before[fact.id].verdict == "same":
                assert after[fact.id].verdict == "DIFFERS"


def test_other_pictures_make_a_difference_in_name_and_selection() -> None:
    found = one("512px-aesthetics", "card", "data.latents=data/laion-aesthetics-v2-5plus/latents-512px")
    assert {name for name, line in found.items() if line.verdict == "DIFFERS"} == {
        "data", "min-width", "min-height", "aesthetic", "watermark",
    }  # fmt: skip
    found = one("512px-aesthetics", "card", "data.latents=/scratch/mine")
    assert found["data"].verdict == "DIFFERS"
    assert found["min-width"].verdict == "open"
    assert found["min-width"].ours == "decided by data_prep: unknown"


def test_a_changed_selection_makes_a_difference(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    text = (CONFIGS / "data" / "laion-improved-aesthetics.yaml").read_text()
    (tmp_path / "data" / "laion-improved-aesthetics.yaml").write_text(text.replace("above: 5.0", "above: 4.5"))
    planned = [Planned(file="512px-aesthetics", stage=load_stage("512px-aesthetics"))]
    found = compare(planned, "card", FACTS, DEPARTURES, tmp_path)[0].lines
    assert [line.fact.id for line in found if line.verdict == "DIFFERS"] == ["aesthetic"]


def with_set(folder: Path, contract: LatentContract) -> str:
    shard = manifest.Shard(name="00000", samples=1, bytes=1, sha256="0")
    manifest.write(folder, manifest.Manifest(kind="latents", shards=(shard,), contract=contract.lines()))
    return f"data.latents={folder}"


def test_what_only_the_latents_show_is_read_from_them_once_they_are_there(tmp_path: Path) -> None:
    told = {"latent-scale", "posterior", "pixel-range", "resize", "mirror"}
    without = one("512px")
    assert {name for name, line in without.items() if line.verdict == "open"} == told
    assert without["posterior"].ours == "decided by data_prep: laion-high-resolution"
    found = one("512px", "card", with_set(tmp_path / "laion-high-resolution" / "latents", CONTRACT))
    assert {found[name].verdict for name in told} == {"same"}
    assert found["data"].verdict == "same"
    sampled = replace(CONTRACT, stored="sample", pixel_range="[0, 1]")
    found = one("512px", "card", with_set(tmp_path / "sampled", sampled))
    assert {name for name in told if found[name].verdict == "DIFFERS"} == {"posterior", "pixel-range"}


def test_the_crop_departs_with_a_set_and_without_and_another_crop_differs(tmp_path: Path) -> None:
    assert one("512px", "as-run")["crop"].verdict == "departs"
    found = one("512px", "as-run", with_set(tmp_path / "center", CONTRACT))["crop"]
    assert (found.verdict, found.ours) == ("departs", "center")
    found = one("512px", "as-run", with_set(tmp_path / "corner", replace(CONTRACT, crop="corner")))["crop"]
    assert found.verdict == "DIFFERS"
    assert (
        one("512px", "as-run", with_set(tmp_path / "random", replace(CONTRACT, crop="random")))["crop"].verdict
        == "same"
    )


def test_a_stage_on_whole_pictures_can_crop_as_the_run_did() -> None:
    on_pictures = ("data.latents=", "data.images=data/whole")
    found = {crop: one("512px", "as-run", *on_pictures, f"data.crop={crop}")["crop"] for crop in ("random", "center")}
    assert {crop: line.verdict for crop, line in found.items()} == {"random": "same", "center": "departs"}
    assert "pack.crop=none" in found["center"].reason


def test_a_crop_of_stored_boxes_is_no_random_crop(tmp_path: Path) -> None:
    chosen = with_set(tmp_path / "boxes", replace(CONTRACT, crops=3))
    found = one("512px", "as-run", chosen, "data.crop=random")["crop"]
    assert (found.verdict, found.ours) == ("DIFFERS", "one of 3 boxes")
    assert one("512px", "as-run", chosen)["crop"].ours == "center"


def test_a_departure_holds_for_its_value_alone() -> None:
    assert one("512px", "as-run")["micro"].verdict == "departs"
    assert one("512px", "as-run", "batch.micro=10")["micro"].verdict == "DIFFERS"
    none = compare([Planned(file="512px", stage=load_stage("512px"))], "card", FACTS, Departures())
    assert Counter(line.verdict for line in none[0].lines)["DIFFERS"] == 1
    wrong = Departures(departures=[Departure(fact="checkpointing", ours=True, reason="r")])
    assert (
        Counter(
            line.verdict
            for line in compare([Planned(file="512px", stage=load_stage("512px"))], "card", FACTS, wrong)[0].lines
        )["DIFFERS"]
        == 1
    )


def test_a_schedule_that_goes_on_begins_where_the_stage_before_ends_or_is_left() -> None:
    recipe = load_recipe("sd-v1.5", profile="as-run")[1]
    assert [one.began for one in subjects(recipe)] == [0, 0, 0, 465_000]
    at_the_end = replace(recipe[-1], stage=replace(recipe[-1].stage, init_step=0))
    assert subjects([*recipe[:-1], at_the_end])[-1].began == 515_000
    again = replace(at_the_end, stage=replace(at_the_end.stage, name="again", init_from="512px-cfg-as-run"))
    assert subjects([*recipe[:-1], at_the_end, again])[-1].began == 515_000 + 595_000


@pytest.mark.parametrize(
    ("ours", "stated", "equal"),
    [
        (1, 1, True),
        (1.0, 1, True),
        (True, 1, False),
        (0, False, False),
        (1e-4, 0.00010000001, True),
        (1e-4, 1.01e-4, False),
        (859_520_963, 859_520_964, False),
        ((1, 2), [1, 2], True),
        ((1, 2), [1], False),
        ("a", "a", True),
        (None, 5.0, False),
        ("1", 1, False),
    ],
)
def test_values_are_equal_as_a_person_reads_them(ours: object, stated: object, equal: bool) -> None:
    assert same(ours, stated) is equal
