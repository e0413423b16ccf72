from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest

from bigdiff.report.lines import STYLE, Chart, Series, count, drawn


def parts(svg: str, tag: str) -> list[dict[str, str]]:
    return [each.attrib for each in ElementTree.fromstring(svg).iter(tag)]


def places(line: dict[str, str]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line["points"].split())]


def series(*points: tuple[float, float], name: str = "a") -> Series:
    return Series(name=name, points=points, colour="c0")


def test_points_stand_in_proportion_on_a_linear_scale() -> None:
    (line,) = parts(drawn(Chart(name="n", series=[series((0, 0.0), (50, 1.0), (100, 2.0))], scale="zero")), "polyline")
    (x0, y0), (x1, y1), (x2, y2) = places(line)
    assert x1 - x0 == pytest.approx(x2 - x1) and y0 - y1 == pytest.approx(y1 - y2)
    assert x0 < x1 and y1 < y0


def test_values_that_differ_much_stand_on_a_logarithmic_scale_that_is_said() -> None:
    html = drawn(Chart(name="n", series=[series((1, 0.01), (2, 0.1), (3, 1.0))]))
    (_, y0), (_, y1), (_, y2) = places(parts(html, "polyline")[0])
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert "Logarithmic scale." in html
    assert "Logarithmic" not in drawn(Chart(name="n", series=[series((1, 1.0), (2, 2.0))]))
    assert "Logarithmic" not in drawn(Chart(name="n", series=[series((1, 0.0), (2, 2000.0))]))


def test_all_lines_share_a_scale_and_have_a_key() -> None:
    html = drawn(Chart(name="n", series=[series((1, 1.0), (2, 1.0)), series((1, 2.0), (2, 2.0), name="b")]))
    first, second = parts(html, "polyline")
    assert places(first)[0][1] > places(second)[0][1]
    assert "a: 1<" in html and "b: 2<" in html


def test_nothing_is_drawn_of_nothing_and_one_reading_is_a_dot() -> None:
    assert drawn(Chart(name="n", series=[])) == drawn(Chart(name="n", series=[series()])) == ""
    html = drawn(Chart(name="n", series=[series((5, 1.0))]))
    assert len(parts(html, "circle")) == 1 and not parts(html, "polyline")


@pytest.mark.parametrize(
    "values",
    [(0.0, 0.0), (1e-9, 1e-9), (1e12, 1e12), (-5.0, 5.0), (2e-9, 1.0), (1e-30, 1e30), (1e-30, 2e-30), (0.3, 0.1 * 3)],
)
def test_whatever_the_values_they_lie_within_the_picture(values: tuple[float, float]) -> None:
    for scale in ("auto", "linear", "zero"):
        chart: dict[str, Any] = {"name": "n", "series": [series((0, values[0]), (7, values[1]))], "scale": scale}
        html = drawn(Chart(**chart))
        for x, y in places(parts(html, "polyline")[0]):
            assert 0 <= x <= 460 and 0 <= y <= 200
        assert len(parts(html, "text")) < 25


def test_errors_are_a_band_around_their_line() -> None:
    one = Series(name="a", points=[(1, 1.0), (2, 1.0)], colour="c1", errors=[(1, 0.5, 1.5), (2, 0.5, 1.5)])
    html = drawn(Chart(name="n", series=[one]))
    ys = [y for _, y in places(parts(html, "polygon")[0])]
    (_, middle), _ = places(parts(html, "polyline")[0])
    assert max(ys) - middle == pytest.approx(middle - min(ys), abs=0.2) and max(ys) > middle


def test_names_are_escaped_and_every_colour_has_its_rule(parsed: Callable[[str], Any]) -> None:
    evil = "</svg><script>x</script>"
    html = drawn(Chart(name=evil, series=[series((1, 1.0), (2, 1.0), name=evil)], said=evil))
    assert "script" not in parsed(html).tags
    for index in range(10):
        assert f"svg .c{index} " in STYLE and f"svg .t{index} " in STYLE


def test_counts_are_short() -> None:
    assert [count(value) for value in (0, 999, 41_600, 2e9)] == ["0", "999", "41.6k", "2G"]
