import re
from xml.etree import ElementTree

from bigdiff.prep.chart import bar, histogram
from bigdiff.prep.select import Histogram

DRAWN = Histogram(score="a<b", low=0.0, high=10.0, counts=(4, 0, 2, 1, 0), absent=3, threshold=5.0)


def rectangles(svg: str) -> list[dict[str, str]]:
    figure = ElementTree.fromstring(svg)
    return [each.attrib for each in figure.iter("rect")]


def test_heights_are_in_proportion_and_the_wrong_side_is_pale() -> None:
    drawn = rectangles(histogram(DRAWN, below=False))
    heights = [float(each["height"]) for each in drawn]
    assert heights[0] == 2 * heights[2] == 4 * heights[3]
    assert heights[1] == 0
    assert [each["class"] for each in drawn] == ["off", "off", "on", "on", "on"]
    assert [each["class"] for each in rectangles(histogram(DRAWN, below=True))] == ["on", "on", "off", "off", "off"]


def test_the_threshold_stands_where_it_belongs() -> None:
    figure = ElementTree.fromstring(histogram(DRAWN, below=False))
    mark = next(each for each in figure.iter("line") if each.attrib["class"] == "mark")
    assert mark.attrib["x1"] == "210.00"
    text = "".join(figure.itertext())
    assert "7 rows, 3 without" in text
    assert "a<b" in text


def test_one_value_only_can_be_drawn() -> None:
    single = Histogram(score="a", low=2.0, high=2.0, counts=(9, 0), absent=0, threshold=None)
    assert float(rectangles(histogram(single, below=False))[0]["height"]) > 0


def test_a_bar_is_a_share_and_never_invisible() -> None:
    def width(part: int, whole: int) -> float:
        found = re.search(r"width:([\d.]+)%", bar(part, whole))
        assert found is not None
        return float(found.group(1))

    assert width(1, 4) == 25.0
    assert width(1, 10**9) > 0
    assert width(0, 4) == width(0, 0) == 0.0
