from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.evaluate.batchfile import Line, read


def test_a_line_says_what_it_says_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    text = '{"prompt": " a caf\u00e9\\u2028 "}\n{"seed": -3, "negative": "", "prompt": "b\u2028c"}'
    for end in ("", "\n", "\r\n"):
        file.write_bytes((text + end).encode())
        assert read(file) == [Line(prompt="a caf\u00e9"), Line(prompt="b\u2028c", negative="", seed=-3)]


def test_any_other_file_is_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "many.txt"
    file.write_text('a red circle\n{"prompt": "b"}\n')
    assert read(file) == [Line(prompt="a red circle"), Line(prompt='{"prompt": "b"}')]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ('{"prompt": "b"', "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('"b"', "is no object"),
        ('{"prompt": "b", "prompt": "c"}', "a key is there twice"),
        ('{"prompt": "b", "sed": 3}', "unknown key 'sed'; known are prompt, negative, seed"),
        ('{"seed": 3}', "prompt must be a text"),
        ('{"prompt": " "}', "prompt is empty"),
        ('{"prompt": ["b"]}', "prompt must be a text"),
        ('{"prompt": "b", "negative": null}', "negative must be a text"),
        (r'{"prompt": "b\ud83d"}', "prompt has half of a surrogate pair"),
        (r'{"prompt": "b", "negative": "\udc00"}', "negative has half of a surrogate pair"),
        ('{"prompt": "b", "seed": "3"}', "seed must be a whole number"),
        ('{"prompt": "b", "seed": 3.0}', "seed must be a whole number"),
        ('{"prompt": "b", "seed": true}', "seed must be a whole number"),
        ('{"prompt": "b", "seed": null}', "seed must be a whole number"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n{line}\n{{"prompt": "c"}}\n')
    with pytest.raises(UsageError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file} line 2") and sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_lines_or_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    for content, sentence in ((b"", "holds no prompts"), (b"\xff\xfe", "cannot read"), (b"\n", "line 1 is empty")):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=sentence):
            read(file)
    with pytest.raises(UsageError, match="cannot read"):
        read(tmp_path / "none.jsonl")
