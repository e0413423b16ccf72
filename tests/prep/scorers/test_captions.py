import pytest
from PIL import Image

from bigdiff.config.errors import UsageError
from bigdiff.prep.scorers.captions import CaptionLength, Language
from bigdiff.prep.scorers.scorer import Batch

# What people write under pictures on the web, in eight languages and three scripts.
CAPTIONS = {
    "en": ["Portrait of a young woman", "Black and white photo of New York", "Sunset over the ocean wallpaper"],
    "de": ["Alter Ledersessel im Wohnzimmer", "Schwarzweißfoto von Berlin", "Süße Katze schläft"],
    "fr": ["un cercle rouge sur fond bleu", "Fauteuil en cuir dans le salon", "Coucher de soleil sur la mer"],
    "es": ["Sillón de cuero en la sala", "Retrato de una mujer joven", "Cómo pintar un paisaje"],
    "it": ["Ritratto di una giovane donna", "Tavolo da cucina in legno", "Scarpe da corsa da uomo"],
    "ru": ["Портрет молодой женщины", "Деревянный кухонный стол", "Мужские кроссовки для бега"],  # noqa: RUF001
    "ja": ["青い背景に赤い円", "東京の白黒写真", "メンズランニングシューズ"],
    "zh": ["蓝色背景上的红色圆圈", "北京的黑白照片", "男士跑鞋"],
}


def batch(*captions: str) -> Batch:
    return Batch([Image.new("RGB", (2, 2))] * len(captions), captions)


@pytest.fixture(scope="module")
def language() -> Language:
    return Language()


@pytest.mark.parametrize("code", CAPTIONS)
def test_short_captions_are_told_apart(language: Language, code: str) -> None:
    assert language.score(batch(*CAPTIONS[code])) == [code] * 3
    assert language.score(batch(*[caption.upper() for caption in CAPTIONS[code]])) == [code] * 3


def test_what_has_no_words_or_is_a_guess_is_undetermined(language: Language) -> None:
    assert language.score(batch("", "   ", "12345", "!?", "\U0001f642", "IMG_2041.jpg", "Nike")) == ["und"] * 7


def test_answers_are_two_letters_or_und(language: Language) -> None:
    assert {"en", "de", "zh", "und"} <= language.codes
    assert all(len(code) == 2 for code in language.codes - {"und"})
    found = language.score(batch(*[each for group in CAPTIONS.values() for each in group]))
    assert set(found) <= language.codes


def test_the_answer_does_not_depend_on_the_batch(language: Language) -> None:
    every = [each for group in CAPTIONS.values() for each in group]
    assert language.score(batch(*every)) == [language.score(batch(each))[0] for each in every]


def test_a_broken_detector_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    language = Language()
    language.self_test()
    language.identifier.set_languages(["en", "de"])
    with pytest.raises(UsageError, match=r"scorer detected_language does not give .* taken for .* in place of fr"):
        language.self_test()


def test_lengths_are_counted_in_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    length = CaptionLength()
    length.self_test()
    assert length.score(batch("", "a b", "Süße")) == [0, 3, 4]
    monkeypatch.setattr(length, "score", lambda batch: [len(one.encode()) for one in batch.captions], raising=False)
    with pytest.raises(UsageError, match="scorer caption_length"):
        length.self_test()
