from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Literal

import pytest

from bigdiff.config.cluster import Cluster
from bigdiff.config.errors import UsageError
from bigdiff.config.load import CONFIGS, dump, find, includes, load, load_cluster, load_stage, restore
from bigdiff.config.schema import Stage

STAGES = sorted(path.stem for path in (CONFIGS / "stages").glob("*.yaml"))
CLUSTERS = sorted(path.stem for path in (CONFIGS / "cluster").glob("*.yaml"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    name: str
    count: int = 3
    flag: bool = False
    mode: Literal["a", "b"] = "a"
    inner: Inner = Inner()


def written(folder: Path, text: str) -> Path:
    file = folder / "x.yaml"
    file.write_text(text)
    return file


def test_defaults_files_and_arguments_in_this_order(tmp_path: Path) -> None:
    file = written(tmp_path, "name: x\ncount: 4\ninner: {rate: 1e-4}\n")
    assert load(Outer, [file]) == Outer(name="x", count=4, inner=Inner(rate=1e-4))
    again = load(Outer, [file], ["inner.rate=2", "inner.sizes=[7]", "flag=true", "mode=b"])
    assert again == Outer(name="x", count=4, flag=True, mode="b", inner=Inner(rate=2.0, sizes=(7,)))


def test_an_empty_argument_is_an_empty_text(tmp_path: Path) -> None:
    assert load(Outer, [written(tmp_path, "name: x")], ["name="]).name == ""
    with pytest.raises(UsageError, match=r"^argument 'count='"):
        load(Outer, [written(tmp_path, "name: x")], ["count="])


def test_the_result_is_frozen(tmp_path: Path) -> None:
    config = load(Outer, [written(tmp_path, "name: x")])
    with pytest.raises(FrozenInstanceError):
        config.count = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name: x\ncuont: 4", ("x.yaml", "cuont")),
        ("name: x\ninner: {rat: 4}", ("x.yaml", "inner.rat")),
        ("name: x\ncount: many", ("x.yaml", "count", "many")),
        ("name: x\ncount: 1.5", ("x.yaml", "count")),
        ("name: x\nflag: 3.5", ("x.yaml", "flag")),
        ("name: x\nmode: c", ("x.yaml", "mode", "'c'")),
        ("name: x\ninner: 4", ("x.yaml", "inner")),
        ("name: x\ninner: {sizes: 4}", ("x.yaml", "inner.sizes")),
        ("name: x\ninner: {sizes: [a]}", ("x.yaml", "inner.sizes", "an item could not be converted")),
        ("name: ${nope}", ("x.yaml", "name", "nope")),
        ("count: 4", ("x.yaml", "no value for name", "name=...")),
        ("name: [", ("x.yaml", "not YAML")),
        ("- a\n- b", ("x.yaml", "mapping")),
        ("name: x\nname: y", ("x.yaml", "name")),
    ],
)
def test_what_is_wrong_is_named_in_one_sentence(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        load(Outer, [written(tmp_path, text)])
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("argument", ["count", "=4", "cuont=4", "count=many", "mode=c", "inner.sizes=[1", "inner=4"])
def test_a_wrong_argument_is_named(tmp_path: Path, argument: str) -> None:
    with pytest.raises(UsageError, match=r"^argument '"):
        load(Outer, [written(tmp_path, "name: x")], [argument])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*gone\.yaml: No such file"):
        load(Outer, [tmp_path / "gone.yaml"])


def test_a_close_name_is_suggested() -> None:
    with pytest.raises(UsageError, match=r"Did you mean: 'lr'"):
        load_stage("512px", ["optim.lrr=1"])


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(UsageError, match=r"unknown stage '512'.* has .*512px"):
        load_stage("512")
    with pytest.raises(UsageError, match=r"unknown cluster 'x'.* has .*local"):
        load_cluster("x")
    with pytest.raises(UsageError, match=r"stage file nowhere/a\.yaml does not exist"):
        load_stage("nowhere/a.yaml")


def test_a_stage_is_base_then_includes_then_itself(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "base.yaml").write_text("seed: 1\nresolution: 1\nsteps: 20000\n")
    (tmp_path / "shared.yaml").write_text(
        "resolution: 128\nsteps: 30000\nmodel: {vae: {source: v}, text: {encoder: e, tokenizer: t}}\n"
    )
    (tmp_path / "stages" / "s.yaml").write_text("include: [shared.yaml]\nname: s\nsteps: 40000\ndata: {latents: l}\n")
    stage = load_stage("s", configs=tmp_path)
    assert (stage.seed, stage.resolution, stage.steps, stage.latent_size) == (1, 128, 40000, 16)
    assert load_stage(str(tmp_path / "stages" / "s.yaml"), ["steps=50000"], tmp_path).steps == 50000
    (tmp_path / "stages" / "s.yaml").write_text("include: shared.yaml\n")
    with pytest.raises(UsageError, match="include must be a list"):
        load_stage("s", configs=tmp_path)


def test_a_profile_is_a_layer_over_the_stage_with_a_name_of_its_own(tmp_path: Path) -> None:
    for folder in ("stages", "profiles/fast"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "base.yaml").write_text("resolution: 64\nmodel: {vae: {source: v}, text: {encoder: e, tokenizer: t}}\n")
    (tmp_path / "shared.yaml").write_text("seed: 7\nsteps: 30000\n")
    (tmp_path / "stages" / "s.yaml").write_text("name: s\nsteps: 40000\ndata: {latents: l}\n")
    profile = tmp_path / "profiles" / "fast" / "s.yaml"
    profile.write_text("include: [shared.yaml]\nname: s-fast\n")
    assert load_stage("s", configs=tmp_path).steps == 40000
    fast = load_stage("s", ["seed=9"], tmp_path, "fast")
    assert (fast.name, fast.steps, fast.seed, fast.resolution) == ("s-fast", 30000, 9, 64)
    assert load_stage(str(tmp_path / "stages" / "s.yaml"), (), tmp_path, "fast").name == "s-fast"
    with pytest.raises(UsageError, match=r"stage s has no profile 'slow': it has card, fast"):
        load_stage("s", (), tmp_path, "slow")
    profile.write_text("steps: 30000\n")
    with pytest.raises(UsageError, match=r"profiles/fast/s\.yaml: no name"):
        load_stage("s", (), tmp_path, "fast")


def test_find_takes_a_path_or_a_name(tmp_path: Path) -> None:
    file = written(tmp_path, "")
    assert find(str(file), tmp_path / "elsewhere", "thing") == file
    assert find("x", tmp_path, "thing") == file


@pytest.mark.parametrize("name", STAGES)
def test_every_shipped_stage_is_valid_and_reads_back_from_its_dump(name: str, tmp_path: Path) -> None:
    stage = load_stage(name)
    assert stage.name == name
    assert load(Stage, [written(tmp_path, dump(stage))]) == stage
    for include in includes(CONFIGS / "stages" / f"{name}.yaml"):
        assert (CONFIGS / include).is_file()


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_shipped_cluster_is_valid_and_reads_back_from_its_dump(name: str, tmp_path: Path) -> None:
    cluster = load_cluster(name)
    assert cluster.name == name
    assert load(Cluster, [written(tmp_path, dump(cluster))]) == cluster


@pytest.mark.parametrize("name", ["1e5", "no", "null", "007", "1_000", "nan", "on: # \u00fc", " a ", "", "x" * 300])
def test_a_dump_keeps_awkward_texts_and_numbers(tmp_path: Path, name: str) -> None:
    config = Outer(name=name, inner=Inner(rate=1e-30, sizes=()))
    assert load(Outer, [written(tmp_path, dump(config))]) == config


def test_the_card_profile_is_what_the_cards_say() -> None:
    facts = {
        name: (stage.resolution, stage.steps, stage.init_from, stage.text_dropout)
        for name in ("256px", "512px", "512px-aesthetics", "512px-cfg")
        for stage in [load_stage(name)]
    }
    assert facts == {
        "256px": (256, 237_000, "", 0.0),
        "512px": (512, 194_000, "256px", 0.0),
        "512px-aesthetics": (512, 515_000, "512px", 0.0),
        "512px-cfg": (512, 595_000, "512px-aesthetics", 0.1),
    }
    for name in facts:
        stage = load_stage(name)
        assert (stage.batch.total, stage.optim.lr, stage.optim.warmup_steps, stage.ema.decays) == (
            2048,
            1e-4,
            10_000,
            [0.9999],
        )


@pytest.mark.parametrize("text", ["{name: a", "name: a\nnmae: b\n", "steps: many\n"])
def test_a_dump_that_was_damaged_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"^runs/a/config\.yaml"):
        restore(Stage, text, "runs/a/config.yaml")
