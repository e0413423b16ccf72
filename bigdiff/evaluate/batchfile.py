"""A file of what is to be drawn: a prompt a line, or JSON lines with a prompt, a negative prompt and a seed each."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bigdiff.config.errors import UsageError
from bigdiff.evaluate.sampling import read_prompts

SUFFIX: Final = ".jsonl"
_KEYS: Final = ("prompt", "negative", "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line; what it does not say is None, and the command's."""

    prompt: str
    negative: str | None = None
    seed: int | None = None


def read(path: Path) -> list[Line]:
    """The lines of a .jsonl file, or of any other as prompts.

    Raises:
        UsageError: with the line, when the file cannot be read as UTF-8, holds none, or has a line that is empty, no
            JSON object, without a prompt, or with a key that is unknown, there twice or of another type.
    """
    if path.suffix != SUFFIX:
        return [Line(prompt=prompt) for prompt in read_prompts(path)]
    try:
        texts = path.read_text(encoding="utf-8").split("\n")  # JSON may hold the other ends of lines of Unicode
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the prompts in {path}: {error}") from error
    if texts[-1] == "":
        texts.pop()
    if not texts:
        raise UsageError(f'{path} holds no prompts: write a line such as {{"prompt": "a red circle"}} for each')
    return [_line(text, f"{path} line {number}") for number, text in enumerate(texts, 1)]


def _line(text: str, where: str) -> Line:
    if not text.strip():
        raise UsageError(f"{where} is empty: remove it")
    try:
        values = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is no JSON ({error}): write an object with a prompt") from None
    if not isinstance(values, dict):
        raise UsageError(f'{where} is no object: write one such as {{"prompt": "a red circle"}}')
    for key in values:
        if key not in _KEYS:
            raise UsageError(f"{where}: unknown key {key!r}; known are {', '.join(_KEYS)}")
    prompt = _text(values.get("prompt"), f"{where}: prompt").strip()
    if not prompt:
        raise UsageError(f"{where}: prompt is empty: say what the picture shows")
    negative = _text(values["negative"], f"{where}: negative") if "negative" in values else None
    seed = values.get("seed")
    if "seed" in values and type(seed) is not int:  # true is an int, too
        raise UsageError(f"{where}: seed must be a whole number")
    return Line(prompt=prompt, negative=negative, seed=seed)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{what} must be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} has half of a surrogate pair, which is no character") from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found
