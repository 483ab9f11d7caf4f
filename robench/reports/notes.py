"""Notes below tables: warnings, with the cells that they mark."""

import re
from collections.abc import Iterable, Sequence

from robench.core.sanitize import plain
from robench.engine.outcome import ResultWarning

# A row, a column (empty if the row has one figure), and the warnings of its record.
Marked = tuple[str, str, Sequence[ResultWarning]]
# A number by itself, not part of a name such as float16 or apgd-l1.
_NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w-])", re.ASCII)
_LETTERS = "NMKLPQ"
# Wordings in records of earlier versions, and those of today.
_REWORDED = {
    "a randomised defense": "a randomized defense",
    "of the steps: give it more": "of the steps: use more steps",
    "of the samples were not attacked, for most draws of the search had their clean image wrong, and most fresh "
    "draws have it right: an": "of the images were not attacked, because the clean image was misclassified in most "
    "draws of the search, although most fresh draws classify it correctly: an",
}


def warning_notes(marked: Iterable[Marked], mark: str = "! ") -> list[str]:
    """One note per warning, followed by lines with the rows and columns that it marks and their numbers.

    A warning of a single cell takes one line, and so does one with the same text for several rows without columns.

    Args:
        mark: text before each warning.
    """
    cells_by_meaning: dict[tuple[str, str], dict[tuple[str, str, str], None]] = {}
    for row, column, warnings in marked:
        for warning in warnings:
            text = current_wording(warning.text)
            meaning = plain(warning.code), _NUMBER.sub("0", text)
            cells_by_meaning.setdefault(meaning, {})[plain(row), plain(column), text] = None
    return [mark + _note(code, list(cells)) for (code, _), cells in cells_by_meaning.items()]


def current_wording(text: str) -> str:
    """The text of a warning, which a record of an earlier version may hold in other words."""
    text = plain(text)
    for earlier, current in _REWORDED.items():
        text = text.replace(earlier, current)
    return text


def _note(code: str, cells: list[tuple[str, str, str]]) -> str:
    """A warning whose texts differ at most in their numbers, and its cells (row, column, text)."""
    same_text = len({text for *_, text in cells}) == 1
    if len(cells) == 1 or (same_text and not any(column for _, column, _ in cells)):
        subjects = (_joined(", ", row, column) for row, column, _ in cells)
        return _joined(": ", _joined("; ", *subjects), code, cells[0][2])
    meaning, numbers = _apart([text for *_, text in cells])
    columns_by_row: dict[str, dict[str, list[str]]] = {}
    for (row, column, _), number in zip(cells, numbers, strict=True):
        columns_by_row.setdefault(row, {}).setdefault(number, []).append(column)
    rows_by_detail: dict[str, list[str]] = {}
    for row, columns_by_number in columns_by_row.items():
        details = (
            _joined(" ", ", ".join(filter(None, columns)), number and f"({number})")
            for number, columns in columns_by_number.items()
        )
        rows_by_detail.setdefault("; ".join(filter(None, details)), []).append(row)
    lines = (
        _joined(" " if detail.startswith("(") else ": ", _joined("; ", *rows), detail)
        for detail, rows in rows_by_detail.items()
    )
    return "\n".join([f"{code}: {meaning}", *lines])


def _apart(texts: list[str]) -> tuple[str, list[str]]:
    """The common text, with letters in place of the numbers that differ, and the numbers of each text."""
    matches = [list(_NUMBER.finditer(text)) for text in texts]
    differing = [i for i, same in enumerate(zip(*matches, strict=True)) if len({m[0] for m in same}) > 1]
    if not differing:
        return texts[0], [""] * len(texts)
    meaning = texts[0]
    for k, i in reversed([*enumerate(differing)]):
        start, end = matches[0][i].span()
        meaning = meaning[:start] + _LETTERS[min(k, len(_LETTERS) - 1)] + meaning[end:]
    first, last = differing[0], differing[-1]
    return meaning, [
        text[places[first].start() : places[last].end()] for text, places in zip(texts, matches, strict=True)
    ]


def _joined(separator: str, *parts: str) -> str:
    """The parts that are not empty."""
    return separator.join(filter(None, parts))
