from dataclasses import replace
from xml.etree import ElementTree

import pytest

from bigdiff.prep.chart import Bars, Curve, Mark, curve, histogram

ABOVE, BELOW = Mark(value=5.0, below=False), Mark(value=5.0, below=True)
DRAWN = Bars(name="a<b", low=0.0, high=10.0, counts=(4, 0, 2, 1, 0), said="7 rows, 3 without", marks=(ABOVE,))
LINE = Curve(name="a<b", points=((0.0, 0.8), (5.0, 0.4), (10.0, 0.0)), chosen=(5.0, 0.4))


def parts(svg: str, tag: str) -> list[dict[str, str]]:
    return [each.attrib for each in ElementTree.fromstring(svg).iter(tag)]


def text(svg: str) -> str:
    return " ".join(ElementTree.fromstring(svg).itertext())


def test_heights_are_in_proportion_and_the_wrong_side_is_pale() -> None:
    drawn = parts(histogram(DRAWN), "rect")
    heights = [float(each["height"]) for each in drawn]
    assert heights[0] == 2 * heights[2] == 4 * heights[3]
    assert heights[1] == 0
    assert [each["class"] for each in drawn] == ["off", "off", "on", "on", "on"]
    other = parts(histogram(replace(DRAWN, marks=(BELOW,))), "rect")
    assert [each["class"] for each in other] == ["on", "on", "off", "off", "off"]
    both = parts(histogram(replace(DRAWN, marks=(Mark(value=2.0, below=False), Mark(value=8.0, below=True)))), "rect")
    assert [each["class"] for each in both] == ["off", "on", "on", "on", "off"]


def test_the_threshold_stands_where_it_belongs() -> None:
    (mark,) = (each for each in parts(histogram(DRAWN), "line") if each["class"] == "mark")
    assert mark["x1"] == "210.00"
    assert "7 rows, 3 without" in text(histogram(DRAWN))
    assert "a<b" in text(histogram(DRAWN))
    outside = histogram(replace(DRAWN, marks=(Mark(value=11.0, below=False),)))
    assert [each["class"] for each in parts(outside, "line")] == ["axis"]


def test_one_value_only_can_be_drawn() -> None:
    single = Bars(name="a", low=2.0, high=2.0, counts=(9, 0), said="")
    assert float(parts(histogram(single), "rect")[0]["height"]) > 0
    assert parts(curve(Curve(name="a", points=((2.0, 1.0),), chosen=(2.0, 1.0)), ""), "circle")


def test_a_curve_goes_through_its_points_and_marks_the_chosen_one() -> None:
    drawn = curve(LINE, "said")
    line = [tuple(map(float, point.split(","))) for point in parts(drawn, "polyline")[0]["points"].split()]
    assert [x for x, _ in line] == [0.0, 210.0, 420.0]
    bottom = line[2][1]
    assert bottom - line[0][1] == pytest.approx(2 * (bottom - line[1][1]))
    (dot,) = parts(drawn, "circle")
    assert (float(dot["cx"]), float(dot["cy"])) == line[1]
    assert "5: 40.0%" in text(drawn)


@pytest.mark.parametrize(("share", "top"), [(0.8, "100%"), (0.4, "50%"), (0.03, "5%"), (0.0004, "0.1%")])
def test_small_shares_are_drawn_large(share: float, top: str) -> None:
    drawn = curve(Curve(name="a", points=((0.0, share), (1.0, 0.0)), chosen=(0.9, 0.0)), "")
    assert top in text(drawn).split()
