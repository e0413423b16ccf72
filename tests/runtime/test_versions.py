import re

from bigdiff.runtime import versions


def test_the_libraries_that_shape_a_result_are_named() -> None:
    found = versions.versions()
    assert found["python"].startswith("3.")
    assert re.match(r"\d+\.\d+", found["torch"])
    assert re.match(r"\d+\.\d+", found["deepspeed"])
    assert "absent" not in found.values()


def test_the_commit_is_a_hash_or_unknown() -> None:
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|unknown", versions.commit())
