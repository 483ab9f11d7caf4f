"""A table of texts, written for a terminal, as Markdown, CSV or LaTeX, with names made safe for each."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robench.results.wording import latex, markdown, one_of, plain

FORMATS = ("text", "md", "csv", "latex")
WIDTH = 120


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: above it.
        columns: their names; numbers: those that stand to the right.
        rows: one text a column.
        notes: lines below it; CSV leaves them out.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[str] = frozenset()
    notes: tuple[str, ...] = field(default=())


def render(grid: Grid, format: str = "text", width: int = WIDTH) -> str:
    """The table as text, ending in a newline.

    Args:
        format: "text", "md", "csv" or "latex" (for booktabs).
        width: of the text, in characters.

    Raises:
        UsageError: for another format.
    """
    return _RENDERERS[one_of("format", format, FORMATS)](grid, width)


def _text(grid: Grid, width: int) -> str:
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold"
    )
    for name in grid.columns:
        table.add_column(name, justify="right" if name in grid.numbers else "left", overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text("\n".join(map(plain, cell.split("\n")))) for cell in row))
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(Text(plain(grid.title)), Text(), table, sep="\n")
    if grid.notes:
        console.print(Text(), *(Text(plain(note)) for note in grid.notes), sep="\n")
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def _markdown(grid: Grid, width: int) -> str:
    lines = [f"### {markdown(grid.title)}", "", f"| {' | '.join(map(markdown, grid.columns))} |"]
    lines.append("|" + "|".join("---:" if name in grid.numbers else "---" for name in grid.columns) + "|")
    for row in grid.rows:
        cells = ("<br>".join(map(markdown, cell.split("\n"))) for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {markdown(note)}" for note in grid.notes)] if grid.notes else []
    return "\n".join(lines) + "\n"


def _csv(grid: Grid, width: int) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(plain, grid.columns))
    writer.writerows([plain(cell.replace("\n", " ")) for cell in row] for row in grid.rows)
    return buffer.getvalue()


def _latex(grid: Grid, width: int) -> str:
    shape = "".join("r" if name in grid.numbers else "l" for name in grid.columns)
    lines = [
        r"% \usepackage{booktabs}",
        f"% {plain(grid.title)}",
        rf"\begin{{tabular}}{{{shape}}}",
        r"\toprule",
    ]
    lines += [" & ".join(map(latex, grid.columns)) + r" \\", r"\midrule"]
    lines += [" & ".join(latex(cell.replace("\n", " ")) for cell in row) + r" \\" for row in grid.rows]
    lines += [r"\bottomrule", r"\end{tabular}", *(f"% {plain(note)}" for note in grid.notes)]
    return "\n".join(lines) + "\n"


_RENDERERS: dict[str, Callable[[Grid, int], str]] = {
    "text": _text,
    "md": _markdown,
    "csv": _csv,
    "latex": _latex,
}
