"""Tables of text, rendered for a terminal or as Markdown, CSV or LaTeX, with escaping."""

import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from textwrap import wrap

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robench.core.formatting import csv_text, latex, markdown, one_of
from robench.core.sanitize import plain

_FIGURE = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?( !)?( \[[\d., -]*\])?", re.ASCII)
FORMATS = ("text", "md", "csv", "latex")
# The columns of a board that its rows can be sorted by.
SORTS = ("robust", "clean", "claimed", "best-known", "defense", "n")
# The formats of a board.
BOARD_FORMATS = (*FORMATS, "json")
# The columns that --columns chooses from, with their headings.
COLUMNS = {
    "rank": "rank",
    "defense": "defense",
    "clean": "clean %",
    "robust": "robust %",
    "claimed": "claimed %",
    "best-known": "best known %",
    "warnings": "warnings",
    "suite": "suite",
    "knowledge": "knowledge",
    "n": "n",
    "architecture": "architecture",
    "parameters": "parameters",
    "paper": "paper",
    "date": "date",
}
# The fields that --only of a board accepts before "=".
FIELDS = ("defense", "dataset", "threat", "protocol", "suite", "knowledge")
WIDTH = 120
# Least width of a column of names. Headings of numeric columns wrap at it in a narrow table, otherwise at twice it.
_NAME = 8
Line = tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: title above the table.
        columns: names of the columns.
        groups: groups of rows, with one text per column; a text may have several lines.
        names: columns with text from records and cards, which must be escaped in Markdown.
        numbers: right-aligned columns.
        best: columns in which LaTeX shows the largest number of a group in bold.
        notes: text below the table; not in CSV. Lines after the first of a note are indented.
    """

    title: str
    columns: tuple[str, ...]
    groups: tuple[tuple[Line, ...], ...]
    names: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    best: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[Line]:
        return [row for group in self.groups for row in group]


def render(grid: Grid, format: str = "text", width: int = WIDTH, header: bool = True) -> str:
    """The table as text, ending in a newline.

    Args:
        format: "text", "md", "csv" or "latex" (for booktabs).
        width: width of the text in characters.
        header: False for the rows alone, without title, headings and notes.

    Raises:
        UsageError: for another format.
    """
    one_of("format", format, FORMATS)
    return _RENDERERS[format](grid, width) if header else _ROWS[format](grid)


def _text(grid: Grid, width: int) -> str:
    columns = _columns(grid, narrow=False)
    if _width(map(_longest, columns)) > width:
        columns = _columns(grid, narrow=True)
    least = [
        _longest(column) if name in grid.numbers else min(_longest(column), _NAME)
        for name, column in zip(grid.columns, columns, strict=True)
    ]
    table = _stacked(columns) if _width(least) > width else _side_by_side(grid, columns, least)
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(Text(plain(grid.title)), Text(), table, sep="\n")
    if grid.notes:
        console.print(Text(), *(Text(line) for line in _note_lines(grid, plain, "  ")), sep="\n")
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().rstrip().splitlines())


def _columns(grid: Grid, narrow: bool) -> list[list[str]]:
    """The heading and the cells of each column. In a narrow table, intervals are below their numbers."""
    columns = []
    for i, name in enumerate(grid.columns):
        heading, cells = plain(name), [_lines(row[i], plain, "\n") for row in grid.rows]
        if name in grid.numbers:
            # Numbers do not wrap, so their headings must.
            heading = "\n".join(wrap(heading, _NAME if narrow else 2 * _NAME, break_long_words=False))
            cells = [cell.replace(" [", "\n[") for cell in cells] if narrow else cells
        columns.append([heading, *cells])
    return columns


def _side_by_side(grid: Grid, columns: list[list[str]], least: list[int]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold"
    )
    for name, (heading, *_), width in zip(grid.columns, columns, least, strict=True):
        number = name in grid.numbers
        justify = "right" if number else "left"
        table.add_column(Text(heading), justify=justify, overflow="fold", no_wrap=number, min_width=width)
    rows = zip(*(cells for _, *cells in columns), strict=True)
    for group in grid.groups:
        for row in islice(rows, len(group)):
            table.add_row(*map(Text, row))
        table.add_section()
    return table


def _stacked(columns: list[list[str]]) -> Table:
    """The rows below each other, one line per cell, for a terminal that is too narrow for the columns."""
    table = Table.grid(padding=(0, 2, 0, 0))
    headings, *rows = zip(*columns, strict=True)
    for number, row in enumerate(rows):
        if number:
            table.add_row()
        for heading, cell in zip(headings, row, strict=True):
            if cell:
                table.add_row(Text(heading.replace("\n", " ")), Text(cell.replace("\n", " ")))
    return table


def _longest(column: list[str]) -> int:
    return max(cell_len(line) for text in column for line in text.split("\n"))


def _width(widths: Iterable[int]) -> int:
    """The width of a table with columns of these widths and gaps of two spaces."""
    return sum(width + 2 for width in widths) - 2


def _markdown_row(grid: Grid, row: Line) -> str:
    cells = (
        _lines(cell, markdown if name in grid.names else plain, "<br>")
        for name, cell in zip(grid.columns, row, strict=True)
    )
    return f"| {' | '.join(cells)} |"


def _markdown(grid: Grid, width: int) -> str:
    lines = [f"### {markdown(grid.title)}", "", f"| {' | '.join(map(markdown, grid.columns))} |"]
    lines.append("|" + "|".join("---:" if name in grid.numbers else "---" for name in grid.columns) + "|")
    for number, group in enumerate(grid.groups):
        # Markdown has no rules within a table.
        lines += [f"|{' |' * len(grid.columns)}"] if number else []
        lines += [_markdown_row(grid, row) for row in group]
    lines += ["", *_note_lines(grid, markdown, "  - ", "- ")] if grid.notes else []
    return "\n".join(lines) + "\n"


def _csv_rows(grid: Grid) -> str:
    return csv_text([[_lines(cell, _no_formula, " ") for cell in row] for row in grid.rows])


def _latex(grid: Grid, width: int) -> str:
    alignment = "".join("r" if name in grid.numbers else "l" for name in grid.columns)
    lines = [
        "% needs \\usepackage{booktabs}",
        f"% {plain(grid.title)}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
    ]
    lines.append(" & ".join(map(latex, grid.columns)) + r" \\")
    for group in grid.groups:
        lines += [r"\midrule", *_latex_rows(grid, group)]
    lines += [r"\bottomrule", r"\end{tabular}", *_note_lines(grid, plain, "%   ", "% ")]
    return "\n".join(lines) + "\n"


def _latex_rows(grid: Grid, group: tuple[Line, ...]) -> list[str]:
    lines = []
    largest = {
        i: max((value for row in group if (value := _number(row[i])) is not None), default=None)
        for i, name in enumerate(grid.columns)
        if name in grid.best
    }
    for row in group:
        cells = [_lines(cell, latex, " ") for cell in row]
        for i, best in largest.items():
            first, space, rest = cells[i].partition(" ")
            if len(group) > 1 and best is not None and _number(row[i]) == best:
                cells[i] = rf"\textbf{{{first}}}{space}{rest}"
        # LaTeX would read these as the argument of the preceding line break.
        empty = "{}" if cells[0][:1] in ("[", "*") else ""
        lines.append(empty + " & ".join(cells) + r" \\")
    return lines


def _note_lines(grid: Grid, escape: Callable[[str], str], indent: str, start: str = "") -> Iterator[str]:
    """The lines of the notes: the first of each after `start`, the others after `indent`."""
    for note in grid.notes:
        first, *others = map(escape, note.split("\n"))
        yield start + first
        yield from (indent + line for line in others)


def _lines(cell: str, escape: Callable[[str], str], separator: str) -> str:
    return separator.join(map(escape, cell.split("\n")))


def _no_formula(text: str) -> str:
    """The text, quoted if a spreadsheet would read it as a formula. Figures with intervals are not formulas."""
    text = plain(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not _FIGURE.fullmatch(text) else text


def _number(cell: str) -> float | None:
    try:
        return float(cell.split(maxsplit=1)[0])
    except (ValueError, IndexError):
        return None


_RENDERERS: dict[str, Callable[[Grid, int], str]] = {
    "text": _text,
    "md": _markdown,
    "csv": lambda grid, width: csv_text([list(map(_no_formula, grid.columns))]) + _csv_rows(grid),
    "latex": _latex,
}
_ROWS: dict[str, Callable[[Grid], str]] = {
    "text": lambda grid: "".join("\t".join(_lines(c, plain, " ") for c in row) + "\n" for row in grid.rows),
    "md": lambda grid: "".join(f"{_markdown_row(grid, row)}\n" for row in grid.rows),
    "csv": _csv_rows,
    "latex": lambda grid: "".join(f"{line}\n" for group in grid.groups for line in _latex_rows(grid, group)),
}
