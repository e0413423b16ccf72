"""How far the stages of a recipe are from what is published: each fact beside this config's value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from bigdiff.config.facts import Departure, Departures, Fact, Facts, Statement
from bigdiff.config.load import CONFIGS
from bigdiff.config.prep import Prep, load_prep
from bigdiff.config.recipe import Planned
from bigdiff.config.schema import Stage, on_images, sources
from bigdiff.data import manifest, pixels
from bigdiff.plan import computed
from bigdiff.plan.computed import UNKNOWN, Subject

Verdict = Literal["same", "departs", "DIFFERS", "open", "-"]
VERDICTS: Final[dict[Verdict, str]] = {
    "same": "as published",
    "departs": "depart for a listed reason",
    "DIFFERS": "differ",
    "open": "are decided by data_prep, which has not run",
    "-": "are not settings",
}
UNDECIDED: Final = "decided by data_prep: "  # and the name under configs/data
_TOLERANCE: Final = 1e-5  # relative; published numbers are rounded


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A fact beside a stage's value."""

    fact: Fact
    stated: Statement
    ours: Any  # the stage's value; a text where there is none
    verdict: Verdict
    reason: str = ""  # of a departure


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """All facts about one stage."""

    stage: Stage
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ours:
    """A stage's value, or what will decide it."""

    value: Any
    open: bool = False


def compare(
    planned: Sequence[Planned], profile: str, facts: Facts, departures: Departures, configs: Path = CONFIGS
) -> tuple[Section, ...]:
    """Every fact about each of the stages, which are in an order that they can be trained in.

    Raises:
        UsageError: for a fact whose key names nothing, or a latent set that is there but cannot be read.
    """
    found = subjects(planned, configs)
    names = {name for subject in found for name in subject.data if name != UNKNOWN}
    preps = {name: load_prep(name, configs=configs) for name in sorted(names)}
    sections = []
    for subject in found:
        lines = []
        for fact in facts.facts:
            stated = fact.about(subject.planned.file, profile)
            if stated is not None:
                listed = [one for one in departures.departures if one.covers(fact, subject.planned.file, profile)]
                lines.append(_line(fact, stated, subject, listed, preps))
        sections.append(Section(stage=subject.stage, lines=tuple(lines)))
    return tuple(sections)


def subjects(planned: Sequence[Planned], configs: Path = CONFIGS) -> tuple[Subject, ...]:
    """The stages with what they start from and what their pictures are made with."""
    found: dict[str, Subject] = {}
    for one in planned:
        before = found.get(one.stage.init_from)
        subject = Subject(planned=one, before=before.planned if before else None, data=tuple(_data(one.stage, configs)))
        if before and one.stage.init_schedule:
            subject = replace(subject, began=before.began + (one.stage.init_step or before.stage.steps))
        found[one.stage.name] = subject
    return tuple(found.values())


def _data(stage: Stage, configs: Path) -> list[str]:
    """The preparation of each set, by the name of its folder: data/NAME/latents-512px."""
    named = [Path(source.location).parent.name for source in sources(stage.data)]
    return [name if name and (configs / "data" / f"{name}.yaml").is_file() else UNKNOWN for name in named]


def _line(
    fact: Fact, stated: Statement, subject: Subject, listed: Sequence[Departure], preps: Mapping[str, Prep]
) -> Line:
    if fact.compared == "nothing":
        return Line(fact=fact, stated=stated, ours="", verdict="-", reason=listed[0].reason if listed else "")
    ours = _ours(fact, subject, preps)
    if not ours.open and same(ours.value, stated.value):
        return Line(fact=fact, stated=stated, ours=ours.value, verdict="same")
    for one in listed:
        if ours.open or same(ours.value, one.ours):
            return Line(fact=fact, stated=stated, ours=ours.value, verdict="departs", reason=one.reason)
    return Line(fact=fact, stated=stated, ours=ours.value, verdict="open" if ours.open else "DIFFERS")


def _ours(fact: Fact, subject: Subject, preps: Mapping[str, Prep]) -> _Ours:
    if fact.compared == "computed":
        return _Ours(value=computed.value(fact.key, subject))
    if fact.compared == "setting":
        return _Ours(value=_setting(subject.stage, fact.key))
    if fact.compared == "selection":
        if UNKNOWN in subject.data:
            return _Ours(value=f"{UNDECIDED}{UNKNOWN}", open=True)
        return _Ours(value=_one([_setting(preps[name], fact.key) for name in subject.data]))
    if on_images(subject.stage.data):
        return _pictures(fact.key, subject)
    folders = [Path(source.latents) for source in sources(subject.stage.data)]
    if not all((folder / manifest.NAME).is_file() for folder in folders):
        return _Ours(value=f"{UNDECIDED}{', '.join(subject.data)}", open=True)
    contracts = [manifest.read(folder, "latents").contract for folder in folders]
    if fact.key == "crop" and subject.stage.data.crop == "random":
        return _Ours(value=_one([f"one of {contract.get('crops', 1)} boxes" for contract in contracts]))
    return _Ours(value=_one([contract.get(fact.key) for contract in contracts]))


def _pictures(key: str, subject: Subject) -> _Ours:
    """What the contract of latents would say, of a stage that makes them while it trains."""
    data = subject.stage.data
    known = {
        "stored": "moments",  # the posterior is sampled at each visit, as from stored moments
        "pixel_range": "[-1, 1]",
        "resize": pixels.RESIZE,
        "crop": data.crop,
        "mirror": data.flip > 0,
    }
    return _Ours(value=known[key]) if key in known else _Ours(value="decided by model.vae", open=True)


def _one(values: list[Any]) -> Any:  # noqa: ANN401 (a tree of plain values)
    """The value of all, or all values when they are not the same."""
    return values[0] if all(value == values[0] for value in values) else values


def _setting(config: Any, key: str) -> Any:  # noqa: ANN401 (any of the schema's dataclasses)
    for name in key.split("."):
        config = None if config is None else getattr(config, name)  # model.text may be absent
    return config


def same(ours: Any, stated: Any) -> bool:  # noqa: ANN401 (plain values)
    """Whether two plain values are equal, numbers to the accuracy that they are published with."""
    if isinstance(stated, bool) or isinstance(ours, bool):
        return ours is stated
    if isinstance(stated, (int, float)) and isinstance(ours, (int, float)):
        return math.isclose(ours, stated, rel_tol=_TOLERANCE if isinstance(stated, float) else 0.0)
    if isinstance(stated, (list, tuple)) and isinstance(ours, (list, tuple)):
        return len(ours) == len(stated) and all(same(a, b) for a, b in zip(ours, stated, strict=True))
    return bool(ours == stated)
