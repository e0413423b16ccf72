"""YAML files and `key=value` arguments to a frozen dataclass, strictly. The only user of OmegaConf."""

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bigdiff.config.cluster import Cluster
from bigdiff.config.errors import UsageError
from bigdiff.config.rules import check
from bigdiff.config.schema import Stage

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CARD = "card"  # the profile that the stage files themselves are: what the model cards say
T = TypeVar("T")


def load(schema: type[T], files: Sequence[Path], overrides: Sequence[str] = ()) -> T:
    """Merge `schema`'s defaults <- `files` in order <- `key=value` overrides into a frozen `schema` object.

    Raises:
        UsageError: for an unreadable file, an unknown key, a value of the wrong type or a missing one.
    """
    merged = OmegaConf.structured(schema)
    for file in files:
        merged = _merge(merged, _read(file), str(file))
    for override in overrides:
        if "=" not in override or override.startswith("="):
            raise UsageError(f"argument {override!r} is not of the form key=value")
        try:
            layer = OmegaConf.from_dotlist([f"{override}''" if override.endswith("=") else override])  # key= is ""
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise UsageError(f"argument {override!r}: {_first_line(error)}") from error
        merged = _merge(merged, layer, f"argument {override!r}")
    return cast(T, _object(merged, ", ".join(str(file) for file in files) or schema.__name__))


def restore(schema: type[T], text: str, source: str) -> T:
    """What `dump` gave `text` for, maybe another version's: a key that was not there then has its default.

    Raises:
        UsageError: naming `source`, as `load`.
    """
    try:
        layer = OmegaConf.create(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{source}: {_first_line(error)}") from error
    return cast(T, _object(_merge(OmegaConf.structured(schema), layer, source), source))


def _object(merged: Any, source: str) -> Any:  # noqa: ANN401 (OmegaConf's node types)
    try:
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UsageError(f"{source}: no value for {missing[0]}; set it in the file or as {missing[0]}=...")
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # a ${...} that names nothing
        raise UsageError(f"{source}: {_first_line(error)}") from error


def load_stage(name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS, profile: str = CARD) -> Stage:
    """The stage `name` (a file under configs/stages, or a path to one): base.yaml <- its includes <- itself <- profile.

    Another profile than "card" is a file of the same name beside the stages: configs/profiles/as-run/512px.yaml.

    Raises:
        UsageError: for an unknown stage, one that has no such profile, or anything `load` or `check` refuses.
    """
    file = find(name, configs / "stages", "stage")
    layers = [file] if profile == CARD else [file, _profiled(file, profile)]
    files = [configs / "base.yaml"]
    for layer in layers:
        files += [*[configs / include for include in includes(layer)], layer]
    return check(load(Stage, files, overrides))


def _profiled(stage: Path, profile: str) -> Path:
    folder = stage.absolute().parent.parent / "profiles"
    file = folder / profile / stage.name
    if not file.is_file():
        found = sorted(other.parent.name for other in folder.glob(f"*/{stage.name}"))
        raise UsageError(f"stage {stage.stem} has no profile {profile!r}: it has {', '.join([CARD, *found])}")
    if "name" not in _content(file):
        raise UsageError(f"{file}: no name; a profile needs one of its own, so that its run folder is not the card's")
    return file


def load_cluster(name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS) -> Cluster:
    """The cluster `name` (a file under configs/cluster, or a path to one)."""
    return load(Cluster, [find(name, configs / "cluster", "cluster")], overrides)


def find(name: str, folder: Path, kind: str) -> Path:
    """The YAML file of `name`: a path as given, or `folder`/`name`.yaml.

    Raises:
        UsageError: naming the choices when there is no such file.
    """
    given = Path(name)
    if given.suffix in (".yaml", ".yml"):
        if not given.is_file():
            raise UsageError(f"{kind} file {name} does not exist")
        return given
    file = folder / f"{name}.yaml"
    if not file.is_file():
        choices = ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"
        raise UsageError(f"unknown {kind} {name!r}: {folder} has {choices}")
    return file


def includes(file: Path) -> tuple[str, ...]:
    """The files named by `include:` in `file`, relative to the configs folder, merged before it."""
    content = _content(file)
    named = content.get("include", [])
    if not isinstance(named, list) or not all(isinstance(item, str) for item in named):
        raise UsageError(f"{file}: include must be a list of file names")
    return tuple(named)


def dump(config: Any) -> str:  # noqa: ANN401 (any of the schema's dataclasses)
    """`config` (a dataclass of the schema) as YAML that `load` reads back to an equal object."""
    assert is_dataclass(config) and not isinstance(config, type)
    return str(yaml.dump(_plain(asdict(config)), Dumper=_Dumper, sort_keys=False, width=120))


class _Dumper(yaml.SafeDumper):  # type: ignore[misc] # PyYAML is untyped
    """Quotes texts such as 1e5, which OmegaConf reads as numbers and YAML 1.1 does not."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    try:
        float(value)
    except ValueError:
        return dumper.represent_str(value)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="'")


_Dumper.add_representer(str, _text)


def _plain(value: Any) -> Any:  # noqa: ANN401 (a tree of plain values)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _content(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text()) or {}
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{file} is not YAML: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file} must be a mapping of keys to values")
    return content


def _read(file: Path) -> Any:  # noqa: ANN401 (OmegaConf's node types)
    _content(file)  # plain YAML first: its messages name the line
    try:
        layer: Any = OmegaConf.load(file)  # reads 1e-4 as a number, which YAML 1.1 does not
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UsageError(f"{file}: {_first_line(error)}") from error
    if "include" in layer:
        del layer["include"]
    return layer


def _merge(below: Any, above: Any, source: str) -> Any:  # noqa: ANN401 (OmegaConf's node types)
    try:
        return OmegaConf.merge(below, above)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or _culprit(below, above)
        raise UsageError(f"{source}: {key}: {_first_line(error)}") from error


def _culprit(below: Any, above: Any) -> str:  # noqa: ANN401 (OmegaConf's node types)
    """The first key of `above` that does not merge, for the errors that do not name theirs."""
    for key in above:
        try:
            OmegaConf.merge(below, {key: above[key]})
        except OmegaConfBaseException:
            nested = OmegaConf.is_dict(above[key]) and OmegaConf.is_dict(below[key])
            return f"{key}.{_culprit(below[key], above[key])}" if nested else str(key)
    return "?"


def _first_line(error: Exception) -> str:
    # OmegaConf forgets to fill in this message of its own for items of lists
    return str(error).strip().splitlines()[0].replace("Value '$VALUE' of type '$VALUE_TYPE'", "an item")
