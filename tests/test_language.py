"""Texts that people read use plain words: the documents, docstrings, comments and messages, and the cards."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Words with a plainer equivalent: again, warning, depends on, variants, no one, the first n, takes random steps, given.
WORDS = re.compile(
    r"\b(anew|doubts?|hangs? on|kin|nobody|so many|strolls?|told)\b",
    re.IGNORECASE,
)
# Code in a text keeps its names, and so do the arguments and attributes that a docstring lists.
CODE = re.compile(r"```.*?```|`[^`]*`|^ +\w+(, \w+)*:", re.DOTALL | re.MULTILINE)
FOLDERS = ("attacks", "benchmark", "defenses", "docs", "examples", "papers", "perf", "results", "robench")
SUFFIXES = (".html", ".md", ".py", ".toml")


def awkward_words(text: str) -> list[str]:
    """The words of a text that have a plainer equivalent."""
    return [match[0] for match in WORDS.finditer(CODE.sub("", text))]


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a file with their lines; of Python files the comments, and strings of several words."""
    content = path.read_text("utf-8")
    if path.suffix != ".py":
        yield 1, content
        return
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    # Comments stand in the content as they are, while texts may be joined from several strings.
    if not awkward_words(content):
        return
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@pytest.mark.parametrize("folder", [".", *FOLDERS])
def test_texts_use_plain_words(folder):
    files = (ROOT / folder).glob("*" if folder == "." else "**/*")
    files = [path for path in files if path.suffix in SUFFIXES]
    assert files
    lines = [
        f"{path.relative_to(ROOT)}:{line}: {word}"
        for path in sorted(files)
        for line, text in texts(path)
        for word in awkward_words(text)
    ]
    assert not lines, "\n".join(lines)


def test_words_are_found_in_comments_docstrings_and_messages(tmp_path):
    file = tmp_path / "module.py"
    file.write_text('told = "told"  # nobody\nmessage = f"{told} hangs on"\n"""Say it anew, `told`."""\n')
    assert sorted(word for _, text in texts(file) for word in awkward_words(text)) == [
        "anew",
        "hangs on",
        "nobody",
    ]
