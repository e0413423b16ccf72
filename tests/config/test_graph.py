from dataclasses import replace
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.graph import at, beside, chain, graph, place
from bigdiff.config.load import load_stage
from bigdiff.config.recipe import Recipe, Task, load_recipe
from bigdiff.config.schema import Stage


def make(name: str, **more: object) -> Task:
    return replace(Task(name=name, run=("-m", "x"), makes=f"sets/{name}"), **more)  # type: ignore[arg-type]


def stages() -> list[Stage]:
    one = load_stage("quickstart-32px", ["data.latents=sets/./latents/"])
    return [one, load_stage("quickstart-64px", ["data.latents=sets/other"])]


def order(*tasks: Task) -> dict[str, tuple[str, ...]]:
    recipe = Recipe(name="r", stages=("quickstart-32px", "quickstart-64px"), tasks=list(tasks))
    return {node.name: node.after for node in graph(recipe, stages(), "ours")}


def test_a_stage_waits_for_its_predecessor_and_for_what_makes_its_sets() -> None:
    found = order(make("judge", after=("quickstart-32px",)), make("latents", after=("images",)), make("images"))
    assert found == {
        "images": (),
        "latents": ("images",),
        "quickstart-32px": ("latents",),
        "judge": ("quickstart-32px",),
        "quickstart-64px": ("quickstart-32px",),
    }
    assert list(found).index("images") < list(found).index("latents") < list(found).index("quickstart-32px")


def test_a_chain_waits_for_stages_of_its_own_alone() -> None:
    one, two = stages()
    assert [node.after for node in chain([one, two])] == [(), ("quickstart-32px",)]
    assert [node.after for node in chain([two])] == [()]


def test_words_name_the_runs_and_the_cluster() -> None:
    task = make("t", run=("launch/x.py", "--to", "{runs}/y", "--cluster", "{cluster}"), makes="{runs}/y")
    recipe = Recipe(name="r", stages=(), tasks=[task])
    (node, *_) = graph(recipe, [load_stage("quickstart-32px", ["runs=/scratch"])], "ours")
    assert isinstance(node.work, Task)
    assert (
        node.work.run == ("launch/x.py", "--to", "/scratch/y", "--cluster", "ours") and node.work.makes == "/scratch/y"
    )


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        ([make("a"), make("a")], "a occurs more than once"),
        ([make("quickstart-32px")], "quickstart-32px occurs more than once"),
        ([make("a", after=("b",))], "task a is after b, which is none of a, quickstart-32px, quickstart-64px"),
        ([make("a", after=("b",)), make("b", after=("a",))], "a, b wait for each other"),
        (
            [make("latents", after=("quickstart-64px",))],
            "latents, quickstart-32px, quickstart-64px wait for",
        ),
        ([make("a", run=())], "needs `run`"),
        ([make("a", makes="")], "needs `run`"),
        ([make("../a")], "a name becomes a folder's"),
        ([make("a", gpus=-1)], "gpus=-1 must not be negative"),
        ([make("a", every=-1)], "every=-1 must not be negative"),
    ],
)
def test_what_cannot_be_run_is_refused(tasks: list[Task], sentence: str) -> None:
    with pytest.raises(UsageError, match="recipe r") as error:
        order(*tasks)
    assert sentence in str(error.value)


KEPT = ["checkpoint.every=10", "checkpoint.keep_every=20", "data.latents=sets/latents"]
EVERY = Task(
    name="judge",
    run=("launch/x.py", "--step", "{step}", "--runs", "{runs}"),
    makes="{runs}/scores-{step}.json",
    after=("quickstart-32px",),
    every=40,
)


def test_a_task_at_checkpoints_is_beside_the_graph_and_no_part_of_it() -> None:
    stage = load_stage("quickstart-32px", [*KEPT, "runs=/r"])
    recipe = Recipe(name="r", stages=(), tasks=[EVERY, make("latents")])
    assert [node.name for node in graph(recipe, [stage], "ours")] == ["latents", "quickstart-32px"]
    (task,) = beside(recipe, [stage], "ours")
    found = at(task, 80)
    assert (found.name, found.after, found.every) == ("judge-80", (), 0)
    assert found.run == ("launch/x.py", "--step", "80", "--runs", "/r") and found.makes == "/r/scores-80.json"


@pytest.mark.parametrize(
    ("task", "kept", "sentence"),
    [
        (replace(EVERY, after=()), KEPT, "needs `after` to be one stage"),
        (replace(EVERY, after=("quickstart-32px", "quickstart-32px")), KEPT, "needs `after` to be one stage"),
        (replace(EVERY, makes="x"), KEPT, "needs {step} in `run` and in `makes`"),
        (replace(EVERY, run=("x",)), KEPT, "needs {step} in `run` and in `makes`"),
        (replace(EVERY, every=30), KEPT, "checkpoint.keep_every=20, and that not 0"),
        (replace(EVERY, every=7000), KEPT, "never reached in the 500 steps"),
        (EVERY, [KEPT[0], "checkpoint.keep_every=0", KEPT[2]], "checkpoint.keep_every=0, and that not 0"),
    ],
)
def test_a_task_whose_checkpoints_would_not_be_there_is_refused(task: Task, kept: list[str], sentence: str) -> None:
    stage = load_stage("quickstart-32px", kept)
    with pytest.raises(UsageError, match="recipe r: task judge, with every=") as error:
        beside(Recipe(name="r", stages=(), tasks=[task]), [stage], "ours")
    assert sentence in str(error.value)


def test_no_other_waits_for_a_task_at_checkpoints() -> None:
    stage = load_stage("quickstart-32px", KEPT)
    recipe = Recipe(name="r", stages=(), tasks=[EVERY, make("a", after=("judge",))])
    with pytest.raises(UsageError, match="task a is after judge, which is none of a, quickstart-32px"):
        graph(recipe, [stage], "ours")


def test_the_spelling_of_a_place_does_not_matter() -> None:
    assert place("a//b/./c/") == place("a/b/c") == "a/b/c"
    assert place("s3://bucket/a/") == "s3://bucket/a" != place("s3:/bucket/a")


def test_an_unknown_key_of_a_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "name: r\nstages: [quickstart-32px]\ntasks: [{name: a, run: [x], makes: y, when: now}]\n"
    )
    with pytest.raises(UsageError, match="when"):
        load_recipe(str(tmp_path / "r.yaml"))


def test_the_quickstarts_recipe_is_a_graph() -> None:
    recipe, planned = load_recipe("quickstart")
    found = {node.name: node.after for node in graph(recipe, [one.stage for one in planned], "ours")}
    assert found["quickstart-64px"] == ("quickstart-32px", "latents-64px")
    assert found["judge-64px"] == ("quickstart-64px",)
