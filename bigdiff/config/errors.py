"""What is wrong with the user's input, in one sentence, and the exit code that goes with it."""

import re
import sys
from collections.abc import Callable, Mapping
from typing import Final, NoReturn, Self

_NODE: Final = re.compile(r"\bnode (\S+): ")


class UsageError(Exception):
    """Unusable arguments, configuration or input: one sentence with the file, key or row and the mend (exit code 2)."""


class RunError(Exception):
    """A failure while running that the user should see as a sentence, not as a traceback (exit code 1)."""


class LastingError(RunError):
    """A RunError that comes again at each start until a person mends what it names: no job is started again for it."""


class NodeError(RunError):
    """A RunError that other nodes would not have: a job should start again without those that it names."""

    @classmethod
    def of(cls, faults: Mapping[str, str]) -> Self:
        """Of {node: what is wrong with it}."""
        return cls("; ".join(f"node {name}: {why}" for name, why in faults.items()))

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names in the sentence."""
        return tuple(_NODE.findall(str(self)))


def door(main: Callable[[], None]) -> NoReturn:
    """Run a command's `main` and exit 0, 1 on a failure while running, 2 on unusable input, 130 on Ctrl-C."""
    try:
        main()
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except RunError as error:
        sys.stderr.write(f"failed: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command again continues\n")
        sys.exit(130)
    sys.exit(0)
