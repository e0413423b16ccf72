"""What a sample's scores must reach, as rules of the funnel: scored once, a set can be cut anew with other bounds."""

from typing import Final

from bigdiff.config.scoring import Scorer, Scoring
from bigdiff.prep.rules import Bound, Rule
from bigdiff.prep.scorers.scorer import column

_COMPARISONS: Final = {"at_least": ">=", "above": ">", "below": "<"}


def rules(scoring: Scoring) -> tuple[Rule, ...]:
    """A rule for each threshold, in the order of the scorers; a score that is absent or not finite does not pass."""
    found = []
    for number, scorer in enumerate(scoring.scorers):
        found += [
            _compared(scorer, number, setting) for setting in _COMPARISONS if getattr(scorer, setting) is not None
        ]
        if scorer.languages:
            found.append(_spoken(scorer, number))
    return tuple(found)


def _compared(scorer: Scorer, number: int, setting: str) -> Rule:
    name, sign, value = column(scorer.kind), _COMPARISONS[setting], float(getattr(scorer, setting))
    return Rule(
        name=f"{name} {sign} {value:g}",
        # to DuckDB, NaN is above every number
        sql=f"COALESCE(isfinite({name}::DOUBLE) AND {name}::DOUBLE {sign} {value!r}::DOUBLE, FALSE)",
        columns=(name,),
        setting=f"score.scorers[{number}].{setting}",
        bound=Bound(column=name, comparison=sign, value=value),
    )


def _spoken(scorer: Scorer, number: int) -> Rule:
    name = column(scorer.kind)
    codes = ", ".join(f"'{code}'" for code in scorer.languages)  # letters alone: checked with the settings
    return Rule(
        name=f"{name} is {' or '.join(scorer.languages)}",
        sql=f"COALESCE({name} IN ({codes}), FALSE)",
        columns=(name,),
        setting=f"score.scorers[{number}].languages",
    )
