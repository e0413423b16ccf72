from dataclasses import replace
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.prep import latent_settings
from bigdiff.prep.latent_settings import Asked, Settings

NAMED = Asked(vae="v", tokenizer="t", output=Path("out"), resolution=8)


def test_a_stage_says_all_but_what_is_optional(toy: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"))
    settings, output = latent_settings.chosen(stage, Asked())
    assert output == toy / "latents"
    assert settings == Settings(vae=str(toy / "vae"), tokenizer=str(toy / "tokenizer"), resolution=8, text_length=12)
    asked = Asked(text_states=True, mirrored=True, mean_only=True, output=Path("other"))
    settings, output = latent_settings.chosen(stage, asked)
    assert (settings.text_encoder, settings.mirrored, settings.mean_only) == (str(toy / "text_encoder"), True, True)
    assert output == Path("other")
    flipping = load_stage(str(toy / "stage.yaml"), ["data.flip=0.5"])
    assert latent_settings.of_stage(flipping, Asked()).mirrored, "the stage could not read the set otherwise"


def test_the_cores_are_shared_out_to_the_gpus() -> None:
    assert [latent_settings.beside(cores, gpus) for cores, gpus in ((64, 0), (64, 1), (64, 8), (2, 1))] == [2, 63, 7, 2]


def test_the_shards_say_the_sizes_for_a_stage_of_buckets(toy: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"), ["data.buckets=true"])
    assert latent_settings.of_stage(stage, Asked()).resolution == 0


def test_the_number_of_crops_follows_the_stage_or_is_said(toy: Path) -> None:
    stage, drawing = (load_stage(str(toy / "stage.yaml"), [f"data.crop={crop}"]) for crop in ("center", "random"))
    assert latent_settings.of_stage(stage, Asked()).crops == 1
    assert latent_settings.of_stage(drawing, Asked()).crops == 3, "the stage could not read the set otherwise"
    assert {latent_settings.of_stage(one, Asked(crops=5)).crops for one in (stage, drawing)} == {5}
    assert latent_settings.of_stage(stage, Asked(crops=1)).crops == 1
    with pytest.raises(UsageError, match=r"stage toy has data.crop=random, which --crops 1 leaves nothing to draw"):
        latent_settings.of_stage(drawing, Asked(crops=1))
    assert latent_settings.chosen(None, NAMED)[0].crops == 1
    assert latent_settings.chosen(None, replace(NAMED, crops=9))[0].crops == 9


@pytest.mark.parametrize("crops", [-1, 0, 2, 8, 11])
def test_crops_without_a_centre_or_beyond_nine_are_refused(toy: Path, crops: int) -> None:
    for stage in (None, load_stage(str(toy / "stage.yaml"))):
        with pytest.raises(UsageError, match=f"--crops {crops} must be odd, so that one of them is the centre"):
            latent_settings.chosen(stage, replace(NAMED, crops=crops) if stage is None else Asked(crops=crops))


def test_names_say_it_without_a_stage() -> None:
    settings, output = latent_settings.chosen(None, replace(NAMED, text_encoder="e", text_states=True))
    assert settings == Settings(vae="v", tokenizer="t", resolution=8, text_encoder="e") and output == Path("out")
    assert latent_settings.chosen(None, replace(NAMED, resolution=None))[0].resolution == 0, "of buckets"


@pytest.mark.parametrize(
    ("asked", "stage", "overrides", "sentence"),
    [
        (Asked(), False, False, "give --vae, --tokenizer, --resolution and --output"),
        (replace(NAMED, output=None), False, False, "give --vae"),
        (NAMED, False, True, "no key=value"),
        (NAMED, True, False, "one or the other"),
        (Asked(text_encoder="e", text_states=True), True, False, "one or the other"),
        (replace(NAMED, text_states=True), False, False, "--text-states and --text-encoder go together"),
        (replace(NAMED, text_encoder="e"), False, False, "--text-states and --text-encoder go together"),
    ],
)
def test_what_conflicts_is_refused(asked: Asked, stage: bool, overrides: bool, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        asked.refuse_conflicts(stage, overrides)


def test_a_stage_whose_text_encoder_learns_stores_no_states(toy: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"), ["model.text.train=true"])
    with pytest.raises(UsageError, match="trains the text encoder, whose states would change"):
        latent_settings.of_stage(stage, Asked(text_states=True))
    assert latent_settings.of_stage(stage, Asked()).text_encoder == ""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["data.latents=", "data.images=pictures"], "reads pictures, no latents"),
        (["data={latents: '', sources: [{latents: a}, {latents: b}]}"], "reads a, b: say with --output"),
    ],
)
def test_a_stage_without_one_folder_needs_an_output(toy: Path, change: list[str], sentence: str) -> None:
    stage = load_stage(str(toy / "stage.yaml"), change)
    with pytest.raises(UsageError, match=sentence):
        latent_settings.output_of(stage)
