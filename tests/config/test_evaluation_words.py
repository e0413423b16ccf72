import pytest

from bigdiff.config.evaluation import asked
from bigdiff.config.evaluation_words import inside, parser

FULL = ["--pipeline", "p", "--prompts", "t", "--clip", "c", "--output", "o"]


def test_a_job_has_all_words_but_those_that_ask_for_it() -> None:
    given = ["--async", *FULL[:4], "--cluster", "--async", *FULL[4:], "--cluster=ours", "--guidance", "1,3"]
    assert list(inside(given)) == [*FULL, "--guidance", "1,3"]
    assert inside(FULL) == tuple(FULL)


def test_the_words_become_an_evaluation_and_may_not_be_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    here, there = (asked(vars(parser("about").parse_args(words))) for words in (FULL, ["--async", *FULL]))
    assert here == there and str(here.output) == "o"
    with pytest.raises(SystemExit):
        parser("about").parse_args([*FULL, "--asyn"])
    assert "unrecognized arguments: --asyn" in capsys.readouterr().err
