from pathlib import Path

import pytest
import yaml

from bigdiff.config.errors import UsageError
from bigdiff.config.facts import Departure, Fact, Statement, load_facts
from bigdiff.config.load import CONFIGS
from bigdiff.config.recipe import load_recipe

CARD, RUN = Statement(value=1, source="card"), Statement(value=2, source="launch", certainty="unproven")
FACTS = {"name": "f", "sources": {"card": "cards"}, "facts": []}
ONE = {"id": "a", "says": "a", "key": "steps", "values": {"card": {"value": 1, "source": "card"}}}


def test_a_profile_without_a_line_has_the_cards() -> None:
    fact = Fact(id="a", says="a", key="steps", values={"card": CARD})
    assert fact.about("512px", "as-run") is CARD
    fact = Fact(id="a", says="a", key="steps", values={"card": CARD, "as-run": RUN}, stages=["512px"])
    assert fact.about("512px", "as-run") is RUN
    assert fact.about("256px", "card") is None
    assert Fact(id="a", says="a", key="steps", values={"as-run": RUN}).about("512px", "card") is None


def test_a_departure_is_about_its_profiles_and_stages_alone() -> None:
    fact = Fact(id="a", says="a", key="steps", values={"card": CARD})
    assert Departure(fact="a", ours=1, reason="r").covers(fact, "512px", "as-run")
    assert not Departure(fact="b", ours=1, reason="r").covers(fact, "512px", "card")
    one = Departure(fact="a", profiles=["card"], stages=["512px"], ours=1, reason="r")
    assert one.covers(fact, "512px", "card")
    assert not one.covers(fact, "512px", "as-run")
    assert not one.covers(fact, "256px", "card")


def test_the_shipped_facts_are_about_shipped_stages_and_have_reasons_for_departing() -> None:
    facts, departures = load_facts("sd-v1")
    files = {one.file for one in load_recipe("sd-v1")[1]}
    assert {name for fact in facts.facts for name in fact.stages} == files
    assert {name for one in departures.departures for name in one.stages} <= files
    assert all(one.reason for one in departures.departures)
    for file in files:  # a stage has each fact once
        for profile in ("card", "as-run"):
            told = [fact.id for fact in facts.facts if fact.about(file, profile)]
            assert len(told) == len(set(told))


def test_the_facts_say_what_recipes_are_known_for() -> None:
    """The table of the model cards, typed again: a slip in facts.yaml would make the report agree with nothing."""
    facts = load_facts("sd-v1")[0].facts
    stated = {
        (fact.id, name): fact.values["card"].value for fact in facts if "card" in fact.values for name in fact.stages
    }
    steps = {name: value for (fact, name), value in stated.items() if fact == "steps"}
    assert steps == {
        "256px": 237_000,
        "512px": 194_000,
        "512px-aesthetics": 515_000,
        "512px-cfg-v1-3": 195_000,
        "512px-cfg-v1-4": 225_000,
        "512px-cfg": 595_000,
    }
    for name in steps:
        assert stated["images", name] == steps[name] * 2048
        assert stated["dropout", name] == (0.1 if "cfg" in name else 0.0)


@pytest.mark.parametrize(
    ("facts", "departures", "sentence"),
    [
        ({**FACTS, "factss": []}, {}, "factss"),
        (FACTS, {"departures": [{"fact": "a", "ours": 1, "reason": "r"}]}, "fact a is none of facts.yaml"),
        ({**FACTS, "facts": [{**ONE, "key": ""}]}, {}, "fact a needs a key"),
        ({**FACTS, "facts": [{**ONE, "compared": "nothing"}]}, {}, "compared=nothing needs none"),
        ({**FACTS, "facts": [{**ONE, "compared": "guess"}]}, {}, "guess"),
        ({**FACTS, "sources": {}, "facts": [ONE]}, {}, "source card, which is not explained"),
    ],
)
def test_unusable_facts_are_refused(tmp_path: Path, facts: object, departures: object, sentence: str) -> None:
    folder = tmp_path / "fidelity" / "f"
    folder.mkdir(parents=True)
    (folder / "facts.yaml").write_text(yaml.safe_dump(facts))
    (folder / "departures.yaml").write_text(yaml.safe_dump(departures))
    with pytest.raises(UsageError) as caught:
        load_facts("f", tmp_path)
    assert sentence in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_recipe_without_facts_says_where_they_would_be() -> None:
    for name in ("", "sd-v9"):
        with pytest.raises(UsageError, match="set `facts` of the recipe to sd-v1"):
            load_facts(name, CONFIGS)
