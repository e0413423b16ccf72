from bigdiff.config.prep import load_prep
from bigdiff.prep.plan import DUPLICATE
from bigdiff.prep.rules import DUPLICATE as DUPLICATE_URL
from bigdiff.prep.rules import rules
from bigdiff.quickstart.faults import AWKWARD, FAULTY, fewer


def test_each_kind_has_a_name_of_its_own_and_a_number() -> None:
    names = [kind.name for kind in (*AWKWARD, *FAULTY)]
    assert len(set(names)) == len(names)
    assert all(kind.count > 0 for kind in (*AWKWARD, *FAULTY))


def test_what_becomes_of_each_kind_is_what_the_quickstart_is_set_to() -> None:
    prep = load_prep("quickstart")
    names = {rule.name for rule in rules(prep.select, prep.download.allow_private_addresses)} | {DUPLICATE_URL}
    assert {kind.step for kind in AWKWARD} == {"kept"}
    assert {kind.cause for kind in FAULTY if kind.step == "select"} <= names
    assert {kind.cause for kind in FAULTY if kind.step == "duplicate"} == {DUPLICATE}
    opt_outs = {kind.cause.rpartition(" ")[2] for kind in FAULTY if "X-Robots-Tag" in kind.cause}
    assert opt_outs <= set(prep.download.optout_directives)


def test_fewer_of_each() -> None:
    assert {kind.count for kind in fewer(FAULTY, 2)} == {1, 2}
    assert [kind.name for kind in fewer(FAULTY, 2)] == [kind.name for kind in FAULTY]
