"""Texts of errors in one line."""

import pytest

from robench.core.errors import one_line

LONG = "Repository Not Found: " + "please make sure that you named it as it is " * 10


@pytest.mark.parametrize(
    ("text", "most", "line"),
    [
        ("two\n  lines", 200, "two lines"),
        ("", 200, "ValueError"),
        ("a few words", 11, "a few words"),
        ("a few more words", 14, "a few more..."),
        ("y" * 300, 200, "y" * 197 + "..."),
        (LONG, None, LONG.strip()),
    ],
)
def test_an_error_is_one_line_that_ends_after_a_word(text, most, line):
    assert one_line(ValueError(text), most) == line


@pytest.mark.parametrize("most", range(10, 60))
def test_a_cut_line_has_the_length_that_was_asked(most):
    line = one_line(ValueError(LONG), most)
    assert len(line) <= most and line.endswith("...") and LONG.startswith(line.removesuffix("..."))
