from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.evaluation import FEATURES, Evaluation, Judges, asked, check, refuse_few

CLIP = Judges(clip="clip.pt")
DRAWN = Evaluation(output=Path("out"), judges=CLIP, pipeline=Path("p"), prompts=Path("t"))
FULL = replace(DRAWN, judges=Judges(inception="i", clip="c", cmmd_clip="m"), real="real")


def arguments(wanted: Evaluation, **changed: object) -> dict[str, object]:
    """As a door's parser has them."""
    plain = {field.name: getattr(wanted, field.name) for field in fields(Evaluation) if field.name != "judges"}
    return {**plain, **asdict(wanted.judges), "guidance": "3", **changed}


def test_arguments_become_an_evaluation() -> None:
    assert asked(arguments(FULL)) == FULL
    assert asked(arguments(DRAWN, guidance="1.5, 3,7.5")) == replace(DRAWN, guidance=(1.5, 3.0, 7.5))
    folder = replace(DRAWN, pipeline=None, pictures=Path("folder"))
    assert asked(arguments(folder)) == folder
    saved = replace(DRAWN, pipeline=None, checkpoint=Path("step-7"), weights="raw", tensorboard=Path("board"))
    assert asked(arguments(saved)) == saved


@pytest.mark.parametrize(
    ("guidance", "sentence"),
    [
        ("", "must be numbers"),
        ("3;5", "'3;5' must be numbers with commas"),
        ("3,0.5", "0.5 must be at least 1"),
        ("nan", "nan must be at least 1"),
        ("3,5,3.0", "names 3 twice"),
    ],
)
def test_scales_that_are_none_are_refused(guidance: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=rf"^--guidance .*{sentence}"):
        asked(arguments(DRAWN, guidance=guidance))


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (replace(DRAWN, pictures=Path("folder")), "give --pipeline or --checkpoint"),
        (replace(DRAWN, checkpoint=Path("step-7")), "give --pipeline or --checkpoint"),
        (replace(DRAWN, pipeline=None), "give --pipeline or --checkpoint"),
        (replace(DRAWN, weights="raw"), "--weights has no effect"),
        (
            replace(DRAWN, pipeline=None, checkpoint=Path("step-7"), tensorboard=Path("t"), samples_seen=3),
            "--samples-seen has no effect",
        ),
        (replace(DRAWN, judges=Judges()), "nothing would be computed: name weights with --inception"),
        (replace(FULL, real=""), "--inception compares with real pictures: name them with --real"),
        (replace(DRAWN, judges=Judges(cmmd_clip="m")), "--cmmd-clip compares with real pictures"),
        (replace(DRAWN, real="real"), "--real has no effect without --inception"),
        (replace(DRAWN, prompts=None), "--clip compares pictures with their captions"),
        (replace(DRAWN, judges=Judges(clip="c", resize="legacy")), "--resize has no effect"),
        (replace(DRAWN, few_images=True), "--few-images has no effect"),
        (replace(FULL, judges=Judges(inception="i", clip_model="x")), "--clip-model has no effect"),
        (replace(FULL, judges=Judges(inception="i", clip_prefix="x")), "--clip-prefix has no effect"),
        (replace(DRAWN, judges=Judges(clip="c", cmmd_model="x")), "--cmmd-model has no effect"),
        (replace(DRAWN, real_crop="none"), "--real-crop has no effect"),
        (replace(DRAWN, cache=Path("c")), "--cache has no effect"),
        (replace(FULL, judges=Judges(inception="i"), prompts=None, column="x"), "--column has no effect"),
        (replace(DRAWN, samples_seen=3), "--samples-seen has no effect"),
        (replace(DRAWN, tensorboard=Path("b")), "--tensorboard needs --samples-seen"),
        (replace(DRAWN, tensorboard=Path("b"), samples_seen=-1), "--samples-seen -1 must not be negative"),
        (replace(DRAWN, images=-1), "--images -1"),
        (replace(DRAWN, processes=-2), "--processes -2"),
        (replace(DRAWN, size=-8), "--size -8"),
        (replace(DRAWN, steps=0), "--steps 0 must be positive"),
        (replace(DRAWN, batch=0), "--batch 0 must be positive"),
        (replace(DRAWN, batch=65), "--batch 65 is more than the 64 pictures"),
        (replace(DRAWN, pipeline=None, pictures=Path("f"), steps=3), "--steps has no effect"),
        (replace(DRAWN, pipeline=None, pictures=Path("f"), guidance=(2.0,)), "--guidance has no effect"),
        (replace(DRAWN, pipeline=None, pictures=Path("f"), keep=True), "--keep has no effect"),
        (
            replace(FULL, pipeline=None, pictures=Path("f"), judges=Judges(inception="i")),
            "--prompts has no effect",
        ),
    ],
)
def test_what_cannot_have_an_effect_is_refused(wanted: Evaluation, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        check(wanted)


def test_a_covariance_of_too_few_pictures_is_refused_unless_it_is_wanted() -> None:
    refuse_few(FULL, FEATURES + 1, "--images")
    refuse_few(DRAWN, 1, "--images")  # no covariance is taken
    with pytest.raises(
        UsageError, match=r"^--images are 2,048 pictures, whose covariance of 2,048 .* say --few-images"
    ):
        refuse_few(FULL, FEATURES, "--images")
    few = replace(FULL, few_images=True)
    refuse_few(few, 5, "--images")
    with pytest.raises(UsageError, match="--images are 4 pictures: precision, recall and FID need 5"):
        refuse_few(few, 4, "--images")
