"""What is published about the stages of a recipe, and where ours differ on purpose: configs/fidelity/NAME/*.yaml."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bigdiff.config.errors import UsageError
from bigdiff.config.load import CARD, CONFIGS, load

Compared = Literal["setting", "selection", "latents", "computed", "nothing"]
Certainty = Literal["certain", "likely", "unproven"]
Source = Literal["card", "yaml", "code", "launch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """A published value."""

    value: Any  # a number, a text, a truth value or a list of them
    source: Source
    certainty: Certainty = "certain"
    note: str = ""  # where in the source, in its words


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """Something published, and what of a stage it is compared with."""

    id: str  # departures name it
    says: str  # for a person
    compared: Compared = "setting"
    key: str = ""  # of the stage, of its data's selection, of its latents' contract, or what is computed
    stages: list[str] = field(default_factory=list)  # stage files; empty: all
    values: dict[str, Statement]  # by profile; one without has the card's

    def about(self, file: str, profile: str) -> Statement | None:
        """What is published for the stage of `file` in `profile`; None for nothing."""
        if self.stages and file not in self.stages:
            return None
        return self.values.get(profile, self.values.get(CARD))


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All facts about a family of models."""

    name: str
    sources: dict[str, str]  # what each source is
    facts: list[Fact]


@dataclass(frozen=True, kw_only=True, slots=True)
class Departure:
    """Where our stages differ from a fact on purpose; it holds for the value `ours` alone."""

    fact: str
    profiles: list[str] = field(default_factory=list)  # empty: all
    stages: list[str] = field(default_factory=list)  # stage files; empty: all
    ours: Any
    reason: str

    def covers(self, fact: Fact, file: str, profile: str) -> bool:
        """Whether it is about `fact` in the stage of `file` and `profile`."""
        here = (not self.profiles or profile in self.profiles) and (not self.stages or file in self.stages)
        return self.fact == fact.id and here


@dataclass(frozen=True, kw_only=True, slots=True)
class Departures:
    """All departures of a family of models."""

    departures: list[Departure] = field(default_factory=list)


def load_facts(name: str, configs: Path = CONFIGS) -> tuple[Facts, Departures]:
    """The facts and departures under configs/fidelity/`name`.

    Raises:
        UsageError: for an unknown name, an unusable file, or a departure from no fact.
    """
    folder = configs / "fidelity" / name
    if not name or not folder.is_dir():
        known = ", ".join(sorted(path.name for path in (configs / "fidelity").glob("*"))) or "none"
        raise UsageError(f"no facts named {name!r} under {configs / 'fidelity'}: set `facts` of the recipe to {known}")
    facts = load(Facts, [folder / "facts.yaml"])
    departures = load(Departures, [folder / "departures.yaml"])
    known_ids = {fact.id for fact in facts.facts}
    for one in departures.departures:
        if one.fact not in known_ids:
            raise UsageError(f"{folder / 'departures.yaml'}: fact {one.fact} is none of facts.yaml")
    for fact in facts.facts:
        if bool(fact.key) == (fact.compared == "nothing"):
            raise UsageError(f"{folder / 'facts.yaml'}: fact {fact.id} needs a key, and compared=nothing needs none")
        unknown = {statement.source for statement in fact.values.values()} - facts.sources.keys()
        if unknown:
            raise UsageError(
                f"{folder / 'facts.yaml'}: fact {fact.id} has source {unknown.pop()}, which is not explained"
            )
    return facts, departures
