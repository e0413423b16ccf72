import duckdb
import pytest

from bigdiff.config.prep import Select
from bigdiff.prep.rules import Bound, rules, threshold

COLUMNS = "url, caption, width, height, similarity, pwatermark, punsafe, aesthetic, language"


def passes(select: Select, row: dict[str, object], allow_private: bool = False) -> dict[str, bool]:
    """Rule name -> outcome for one row; columns that are not given are null."""
    picked = ", ".join(
        f"?::{'VARCHAR' if name in ('url', 'caption', 'language') else 'DOUBLE'} AS {name}"
        for name in COLUMNS.split(", ")
    )
    values = [row.get(name) for name in COLUMNS.split(", ")]
    outcome = {}
    for rule in rules(select, allow_private):
        found = duckdb.execute(f"SELECT {rule.sql} FROM (SELECT {picked})", values).fetchone()
        assert found is not None
        outcome[rule.name] = found[0]
    return outcome


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("http://example.com/a.jpg", True),
        ("https://user@example.com:8080/a.jpg?x=http://127.0.0.1/", True),
        ("http://8.8.8.8/a.jpg", True),
        ("http://[2606:4700::1111]/a.jpg", True),
        ("http://100dresses.com/a.jpg", True),
        ("http://10times.com/a.jpg", True),
        ("http://localhost/a.jpg", False),
        ("http://LOCALHOST:80/a.jpg", False),
        ("http://127.0.0.1:8937/a.jpg", False),
        ("http://evil@127.0.0.1/a.jpg", False),
        ("http://10.1.2.3/a.jpg", False),
        ("http://172.20.0.1/a.jpg", False),
        ("http://192.168.1.1/a.jpg", False),
        ("http://169.254.169.254/latest/meta-data", False),
        ("http://100.64.0.1/a.jpg", False),
        ("http://2130706433/a.jpg", False),
        ("http://0x7f000001/a.jpg", False),
        ("http://0177.0.0.1/a.jpg", False),
        ("http://[::1]/a.jpg", False),
        ("http://[::ffff:10.0.0.1]/a.jpg", False),
        ("http://[fd00::1]/a.jpg", False),
        ("http://printer.local/a.jpg", False),
        ("http://127.0.0.1@example.com/a.jpg", True),
        ("http://127.0.0.1:80@example.com/a.jpg", True),
        ("http://x@10.0.0.1@example.com/a.jpg", True),
        ("http://a:b@c@127.0.0.1/a.jpg", False),
        ("http://@127.0.0.1", False),
        ("http://127.0.0.1:port/a.jpg", False),
        ("http://127.0.0.1?a", False),
        ("http://PRINTER.Internal./a.jpg", False),
        ("http://internal.example.com/.local", True),
        ("http://example.com/@127.0.0.1/", True),
        ("HTTPS://[FE80::1]:8080/a.jpg", False),
        ("http://127.0.0.1.example.com/a.jpg", False),  # over-careful, as any name that begins like such an address
        ("http://[::1]x:y/a.jpg", False),
        ("http://[::1]@example.com/a.jpg", True),
        ("http://239.1.2.3/a.jpg", False),
        ("http://240.example.com/a.jpg", True),
    ],
)
def test_private_hosts_are_refused_unless_allowed(url: str, public: bool) -> None:
    assert passes(Select(), {"url": url, "caption": "x"})["url is public"] is public
    assert "url is public" not in passes(Select(), {"url": url, "caption": "x"}, allow_private=True)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "data:image/png;base64,AA", "ftp://example.com/a", "http:///a", "x"]
)
def test_only_http_and_https(url: str) -> None:
    assert not passes(Select(), {"url": url, "caption": "x"})["url is http or https"]


def test_bounds_are_those_of_their_names() -> None:
    select = Select(aesthetic_above=5.0, pwatermark_below=0.5, min_width=512, max_aspect=2.0)
    edge = passes(select, {"aesthetic": 5.0, "pwatermark": 0.5, "width": 512, "height": 1024})
    assert [edge[name] for name in ("aesthetic > 5", "pwatermark < 0.5", "width >= 512", "aspect <= 2")] == [
        False,
        False,
        True,
        True,
    ]
    inside = passes(select, {"aesthetic": 5.001, "pwatermark": 0.499, "width": 511, "height": 1023})
    assert [inside[name] for name in ("aesthetic > 5", "pwatermark < 0.5", "width >= 512", "aspect <= 2")] == [
        True,
        True,
        False,
        False,
    ]
    assert passes(Select(aesthetic_at_least=5.0), {"aesthetic": 5.0})["aesthetic >= 5"]


def test_what_is_absent_passes_no_rule_that_asks_for_it() -> None:
    select = Select(aesthetic_above=-100.0, punsafe_below=2.0, languages=("en",), min_width=0, max_aspect=9.0)
    assert not any(passes(select, {}).values())


@pytest.mark.parametrize(
    ("width", "height", "passed"), [(30, 20, True), (20, 41, False), (-20, 20, False), (0, 20, False), (-5, -5, False)]
)
def test_an_aspect_is_of_positive_sides(width: int, height: int, passed: bool) -> None:
    assert passes(Select(max_aspect=2.0), {"width": width, "height": height})["aspect <= 2"] is passed


def test_bounds_that_hold_at_their_value() -> None:
    select = Select(similarity_at_least=0.243, pwatermark_at_most=0.4)
    edge = passes(select, {"similarity": 0.243, "pwatermark": 0.4})
    assert edge["similarity >= 0.243"]
    assert edge["pwatermark <= 0.4"]
    outside = passes(select, {"similarity": 0.2429, "pwatermark": 0.4001})
    assert not outside["similarity >= 0.243"]
    assert not outside["pwatermark <= 0.4"]
    assert threshold(select, "pwatermark") == 0.4


def test_what_is_read_early_is_only_what_compares_one_column() -> None:
    select = Select(min_width=5, max_aspect=2.0, min_caption_length=3, punsafe_below=0.5, languages=("en",))
    bounds = [rule.bound for rule in rules(select, False) if rule.bound]
    assert bounds == [
        Bound(column="width", comparison=">=", value=5),
        Bound(column="punsafe", comparison="<", value=0.5),
    ]


def test_a_quote_in_a_language_is_text() -> None:
    name = "language is o'x"
    assert passes(Select(languages=("o'x",)), {"language": "O'X"})[name]
    assert not passes(Select(languages=("o'x",)), {"language": "en"})[name]


def test_the_threshold_that_is_drawn() -> None:
    assert threshold(Select(aesthetic_at_least=4.5), "aesthetic") == 4.5
    assert threshold(Select(), "aesthetic") is None
