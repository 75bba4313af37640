"""What another library's error says fits into a line of ours."""

import pytest

from autocompress.vocabulary.errors import LONGEST_LINE, first_line, in_one_line


@pytest.mark.parametrize(
    ("said", "first", "whole"),
    [
        ("no such file", "no such file", "no such file"),
        ("\n  shapes differ\nat node 3\n", "shapes differ", "shapes differ at node 3"),
        (
            "can't load:\n  the file is empty\nstack",
            "can't load: the file is empty",
            "can't load: the file is empty stack",
        ),
        ("can't load:", "can't load:", "can't load:"),
        ("", "KeyError", "KeyError"),
        ("x" * 500, "x" * LONGEST_LINE, "x" * LONGEST_LINE),
    ],
)
def test_an_error_in_one_line(said: str, first: str, whole: str) -> None:
    class Said(Exception):
        def __str__(self) -> str:
            return said

    Said.__name__ = "KeyError"
    assert first_line(Said()) == first
    assert in_one_line(Said()) == whole


def test_lines_that_say_nothing_are_skipped() -> None:
    assert first_line(RuntimeError("relayed from afar\nno memory"), skipping="relayed") == "no memory"
    assert first_line(RuntimeError("relayed from afar"), skipping="relayed") == "RuntimeError"
