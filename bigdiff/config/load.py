"""YAML files and `key=value` arguments to a frozen dataclass, strictly. The only user of OmegaConf."""

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Cluster, Stage, check

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
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
            layer = OmegaConf.from_dotlist([override])
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise UsageError(f"argument {override!r}: {_first_line(error)}") from error
        merged = _merge(merged, layer, f"argument {override!r}")
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        source = ", ".join(str(file) for file in files) or schema.__name__
        raise UsageError(f"{source}: no value for {missing[0]}; set it in the file or as {missing[0]}=...")
    return cast(T, OmegaConf.to_object(merged))


def load_stage(name: str, overrides: Sequence[str] = (), configs: Path = CONFIGS) -> Stage:
    """The stage `name` (a file under configs/stages, or a path to one): base.yaml <- its includes <- itself.

    Raises:
        UsageError: for an unknown stage or anything `load` or `check` refuses.
    """
    file = find(name, configs / "stages", "stage")
    files = [configs / "base.yaml", *[configs / include for include in includes(file)], file]
    return check(load(Stage, files, overrides))


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
    return str(yaml.safe_dump(_plain(asdict(config)), sort_keys=False, width=120))


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
        key = getattr(error, "full_key", None)
        where = f"{source}: {key}: " if key else f"{source}: "
        raise UsageError(where + _first_line(error)) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
