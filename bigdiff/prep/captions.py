"""A caption as it is stored: one line of normalised text without invisible characters."""

import unicodedata
from typing import Final

# Characters that change the direction of the text around them, byte-order marks and the like. The joiners U+200C and
# U+200D stay: Persian, the Indic scripts and emoji need them.
_INVISIBLE: Final = dict.fromkeys(
    [0x00AD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF, *range(0xFFF0, 0xFFFC)]
)


def clean(caption: str, cut: int) -> str:
    """NFC, controls and runs of white space to one space, no invisible characters, at most `cut` characters.

    May be empty.
    """
    visible = unicodedata.normalize("NFC", caption).translate(_INVISIBLE)
    spaced = "".join(" " if unicodedata.category(each) in ("Cc", "Cs", "Cn") else each for each in visible)
    return " ".join(spaced.split())[:cut].rstrip()
