import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import dump, load
from bigdiff.config.scoring import Scorer, Scoring, check_scoring, only

AESTHETIC = Scorer(kind="aesthetic_v2", weights="v2.pth", at_least=5.0)
SHARP = Scorer(kind="sharpness", above=50.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    score: Scoring = field(default_factory=Scoring)


def test_no_scorers_and_a_full_set_pass() -> None:
    full = Scoring(
        scorers=[
            Scorer(kind="aesthetic_v1", weights="v1.pth", above=7.0),
            AESTHETIC,
            Scorer(kind="nsfw", weights="nsfw.npz", below=0.5),
            Scorer(kind="watermark", weights="watermark.pt", below=0.8),
            Scorer(kind="clip_similarity", at_least=0.28, below=1.0),
            Scorer(kind="language", languages=("en", "und")),
            Scorer(kind="caption_length", at_least=5),
            SHARP,
            Scorer(kind="flatness", below=0.9),
        ],
        clip="ViT-L-14.safetensors",
    )
    assert check_scoring(full) is full
    assert check_scoring(Scoring()) == Scoring()


REFUSED = {
    "batch": (Scoring(batch=0, scorers=[SHARP]), "score.batch is 0"),
    "two of a kind": (Scoring(scorers=[SHARP, SHARP]), r"scorers\[1\] \(sharpness\) is there twice"),
    "weights are missing": (Scoring(scorers=[Scorer(kind="watermark")]), "needs its weights"),
    "weights of one without": (Scoring(scorers=[Scorer(kind="flatness", weights="a.pt")]), "remove weights=a.pt"),
    "weights of similarity": (
        Scoring(scorers=[Scorer(kind="clip_similarity", weights="a.pt")], clip="openai"),
        "no weights of its own",
    ),
    "CLIP is missing": (Scoring(scorers=[AESTHETIC]), "score.clip is missing: aesthetic_v2"),
    "CLIP without a use": (Scoring(scorers=[SHARP], clip="openai"), "score.clip=openai has no effect"),
    "CLIP without scorers": (Scoring(clip="openai"), "has no effect"),
    "a precision without a use": (Scoring(scorers=[SHARP], precision="fp16"), "score.precision=fp16 has no effect"),
    "a kernel without a use": (Scoring(scorers=[SHARP], activation="fused"), "score.activation=fused has no effect"),
    "a kernel in fp32": (
        Scoring(scorers=[AESTHETIC], clip="x.pt", activation="fused"),
        "score.activation=fused is for score.precision=fp16",
    ),
    "a model without a use": (Scoring(scorers=[SHARP], clip_model="ViT-B-32"), "score.clip_model=ViT-B-32 has no"),
    "a model beside its own": (
        Scoring(scorers=[Scorer(kind="clip_similarity")], clip="hf-hub:a/b", clip_model="ViT-B-32"),
        "says itself what it is",
    ),
    "the GELU trap of the heads": (
        Scoring(scorers=[AESTHETIC], clip="x.pt", clip_model="ViT-L-14"),
        "leave it at ViT-L-14-quickgelu",
    ),
    "the GELU trap of similarity": (
        Scoring(scorers=[Scorer(kind="clip_similarity")], clip="openai", clip_model="ViT-B-32"),
        "name ViT-B-32-quickgelu",
    ),
    "languages of another kind": (Scoring(scorers=[Scorer(kind="sharpness", languages=("en",))]), "no language"),
    "a language that is none": (Scoring(scorers=[Scorer(kind="language", languages=("English",))]), "two small"),
    "a language twice": (Scoring(scorers=[Scorer(kind="language", languages=("en", "en"))]), "twice"),
    "a threshold of languages": (Scoring(scorers=[Scorer(kind="language", below=1.0)]), "is no number"),
    "two lower bounds": (Scoring(scorers=[Scorer(kind="sharpness", above=1, at_least=2)]), "at_least and above"),
    "nothing can pass": (Scoring(scorers=[Scorer(kind="sharpness", above=5, below=5)]), "nothing passes"),
    "not finite": (Scoring(scorers=[Scorer(kind="sharpness", above=float("nan"))]), "finite"),
    "a percentage": (Scoring(scorers=[Scorer(kind="watermark", weights="w.pt", below=80)]), "values are 0 to 1"),
    "what all reach": (Scoring(scorers=[Scorer(kind="flatness", at_least=0.0)]), "all or none"),
    "what none reach": (Scoring(scorers=[Scorer(kind="flatness", above=1.0)]), "none reach"),
}


@pytest.mark.parametrize(("scoring", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_setting_without_effect_is_refused(scoring: Scoring, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_scoring(scoring)


def test_yaml_is_read_strictly_and_dumped_back(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "score:\n  clip: openai\n  scorers:\n"
        "  - {kind: aesthetic_v2, weights: v2.pth, at_least: 5}\n  - {kind: language, languages: [en, de]}\n"
    )
    job = load(Job, [file])
    assert job.score.scorers == [AESTHETIC, Scorer(kind="language", languages=("en", "de"))]
    file.write_text(dump(job))
    assert load(Job, [file]) == job


@pytest.mark.parametrize("item", ["{kind: beauty}", "{kind: sharpness, at_last: 3}", "{weights: x}", "7"])
def test_a_scorer_that_is_none_is_refused_by_the_loader(tmp_path: Path, item: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"score:\n  scorers:\n  - {item}\n")
    with pytest.raises(UsageError):
        load(Job, [file])


def test_settings_and_plain_scorers_import_no_torch() -> None:
    code = (
        "import sys; from bigdiff.config.scoring import *; from bigdiff.prep.scorers.loading import load;"
        "load(Scoring(scorers=[Scorer(kind='sharpness'), Scorer(kind='language')])).self_test();"
        "found = {'torch', 'timm', 'open_clip'} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_part_of_the_scorers_takes_clip_along_only_where_it_is_needed() -> None:
    similar, sharp = Scorer(kind="clip_similarity"), Scorer(kind="sharpness")
    whole = Scoring(scorers=[similar, sharp], clip="openai", batch=7)
    assert check_scoring(only(whole, [sharp])) == Scoring(scorers=[sharp], batch=7)
    assert check_scoring(only(whole, [similar])) == replace(whole, scorers=[similar])
    kept = replace(whole, embeddings=True)
    assert check_scoring(only(kept, [])) == replace(kept, scorers=[])


def test_embeddings_need_clip() -> None:
    with pytest.raises(UsageError, match=r"score\.clip is missing: score\.embeddings needs"):
        check_scoring(Scoring(embeddings=True))
