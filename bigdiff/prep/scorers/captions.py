"""Scores of a caption: its language and its length."""

from importlib.metadata import version
from typing import Final

import pyarrow as pa
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from bigdiff.models.probes import disc
from bigdiff.prep.scorers.scorer import Batch, column, refused

UNDETERMINED: Final = "und"
_VERSION: Final = 1
# Of the best language's share among all: below it the detector guesses ("Nike" has 0.03). The right answers on 90
# short captions in nine languages had 0.22 and more; 86 of the 90 were right.
_LEAST: Final = 0.15
_NO_LANGUAGE: Final = "zxx"
# The last three of the languages are Russian, Japanese and Chinese for: the old castle by the river in autumn
_KNOWN: Final = {
    "Vintage leather chair in the living room": "en",
    "THE OLD CASTLE BY THE RIVER IN AUTUMN": "en",
    "Das alte Schloss am Fluss im Herbst": "de",
    "Le vieux ch\u00e2teau au bord de la rivi\u00e8re": "fr",
    "El viejo castillo junto al r\u00edo en oto\u00f1o": "es",
    "Il vecchio castello sul fiume in autunno": "it",
    "\u0421\u0442\u0430\u0440\u044b\u0439 \u0437\u0430\u043c\u043e\u043a"
    " \u0443 \u0440\u0435\u043a\u0438 \u043e\u0441\u0435\u043d\u044c\u044e": "ru",
    "\u79cb\u306e\u5ddd\u6cbf\u3044\u306e\u53e4\u3044\u57ce": "ja",
    "\u79cb\u5929\u6cb3\u8fb9\u7684\u8001\u57ce\u5821": "zh",
    "": UNDETERMINED,
    "1234 - 5678": UNDETERMINED,
}


class Language:
    """The caption's language by py3langid, whose model comes with it: nothing is fetched."""

    name = column("language")
    arrow = pa.string()

    def __init__(self) -> None:
        self.fingerprint = f"language {_VERSION}, py3langid {version('py3langid')}, least {_LEAST:g}"
        self.identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        # Two-letter codes, which the metadata's `language` has, too: short captions of large languages are otherwise
        # taken for small neighbours (Chinese for Wu).
        self.identifier.set_languages(
            [code for code in self.identifier.labels if len(code) == 2 or code == _NO_LANGUAGE]
        )

    @property
    def codes(self) -> frozenset[str]:
        """What it can answer."""
        return frozenset(self.identifier.labels) - {_NO_LANGUAGE} | {UNDETERMINED}

    def score(self, batch: Batch) -> list[str]:
        """Of each caption: two letters (ISO 639-1), or "und" where it has no words or could be of any."""
        return [self._of(caption) for caption in batch.captions]

    def self_test(self) -> None:
        """Captions of eight languages are told apart.

        Raises:
            UsageError: naming the first that is not.
        """
        for caption, language in _KNOWN.items():
            found = self._of(caption)
            if found != language:
                raise refused(self.name, f"{caption!r} is taken for {found} in place of {language}")

    def _of(self, caption: str) -> str:
        if not any(each.isalpha() for each in caption):
            return UNDETERMINED
        found, share = self.identifier.classify(caption)
        return UNDETERMINED if share < _LEAST or found == _NO_LANGUAGE else str(found)


class CaptionLength:
    """Characters (Unicode code points) of the cleaned caption."""

    name = "caption_length"
    arrow = pa.int32()
    fingerprint = f"caption_length {_VERSION}"

    def score(self, batch: Batch) -> list[int]:
        """Of each caption."""
        return [len(caption) for caption in batch.captions]

    def self_test(self) -> None:
        """Characters, not bytes.

        Raises:
            UsageError: when they are not counted so.
        """
        lengths = self.score(Batch([disc((0, 0, 0))] * 3, ["", "a red circle", "\u79cb\u306e\u57ce"]))
        if lengths != [0, 12, 3]:
            raise refused(self.name, f"{lengths} in place of [0, 12, 3]")
