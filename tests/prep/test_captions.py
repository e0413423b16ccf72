import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigdiff.prep.captions import clean


@pytest.mark.parametrize(
    ("raw", "stored"),
    [
        ("  a\tred \r\n circle\x00 ", "a red circle"),
        ("cafe\u0301", "caf\u00e9"),
        ("\ufeffleft\u202eright\u200b", "leftright"),
        ("\U0001f469\u200d\U0001f680 in space", "\U0001f469\u200d\U0001f680 in space"),  # the joiner of an emoji stays
        ("\x00\u200b \n", ""),
        ("\ud800broken", "broken"),
    ],
)
def test_what_is_stored(raw: str, stored: str) -> None:
    assert clean(raw, 100) == stored


@given(st.text(), st.integers(1, 50))
def test_one_short_line_that_can_be_written_and_needs_no_more_cleaning(raw: str, cut: int) -> None:
    stored = clean(raw, cut)
    assert len(stored) <= cut
    assert len(stored.splitlines()) <= 1
    assert stored == stored.strip()
    stored.encode()
    assert clean(stored, cut) == stored
