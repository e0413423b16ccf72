"""The house rules that a linter does not know: sizes, names, mirrored tests, documented modules."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path for path in (ROOT / "bigdiff").rglob("*.py"))
DOORS = sorted([*(ROOT / "launch").glob("*.py"), *(ROOT / "data_prep").glob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FORBIDDEN = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "handler"}
TOP_LEVEL = {"pyproject.toml", "README.md", "bigdiff", "launch", "data_prep", "configs", "tests"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*MODULES, *DOORS, *TESTS], ids=name)
def test_a_file_answers_one_question(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350


@pytest.mark.parametrize("path", DOORS, ids=name)
def test_a_door_has_no_logic(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60


@pytest.mark.parametrize("path", [*MODULES, *DOORS, *TESTS], ids=name)
def test_a_function_fits_a_screen(path: Path) -> None:
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = [f"{node.name}: {(node.end_lineno or 0) - node.lineno + 1}" for node in functions]
    assert [line for line in long if int(line.split(": ")[1]) > 60] == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_are_nouns_of_the_field(path: Path) -> None:
    assert not FORBIDDEN & set(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.name not in ("__init__.py", "__main__.py")], ids=name
)
def test_every_module_has_its_test_at_the_mirrored_path(path: Path) -> None:
    relative = path.relative_to(ROOT / "bigdiff")
    assert (ROOT / "tests" / relative.parent / f"test_{relative.name}").is_file()


@pytest.mark.parametrize("path", [*MODULES, *DOORS], ids=name)
def test_modules_say_what_they_are_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_top_level_the_user_asked_for() -> None:
    assert {path.name for path in ROOT.iterdir()} >= TOP_LEVEL
