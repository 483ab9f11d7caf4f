"""Formatting of numbers and names, shared by every table, board and plot."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from robench.core.errors import UsageError, some
from robench.core.sanitize import plain

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$])")
_LATEX = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "—": "---",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "÷": r"$\div$",
    "±": r"$\pm$",
    "…": r"\ldots{}",
    "σ": r"$\sigma$",
}
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def install(extra: str) -> str:
    """How to install the packages of an extra; robench itself is not on PyPI."""
    return f'pip install ".[{extra}]" in a checkout of robench'


def markdown(text: str) -> str:
    """Escape a name for a Markdown table: one line, no markup."""
    return _MARKDOWN.sub(r"\\\1", plain(text))


def latex(text: str) -> str:
    """Escape a name for LaTeX; letters missing from its standard fonts become question marks."""
    return "".join(
        _LATEX.get(char, char if char.isascii() or "À" <= char <= "ÿ" else "?") for char in plain(text)
    )


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def count(number: float) -> str:
    """Format a number with two or three significant digits: 0.5, 999, 12.3k, 4.56M."""
    for size, unit in _UNITS:
        # 999,950 would be written 1000k.
        if number >= size * 0.9995:
            return f"{number / size:.3g}{unit}" if number < 999.5 * size else f"{number / size:.0f}{unit}"
    return f"{number:.0f}" if number >= 9.5 or number == int(number) else f"{number:.2g}"


def duration(seconds: float) -> str:
    """Format a duration: 0.42 s, 12.3 s, 4 min 05 s, 3 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: int) -> str:
    """Format a number of bytes: 0 B, 12.3 KiB, 4.56 GiB."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}"


def location(path: Path | str | None) -> str:
    """Format a path for messages: relative to the working directory if inside it."""
    if path is None:
        return ""
    path = Path(path)
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def one_of(kind: str, name: str, known: tuple[str, ...]) -> str:
    """Return `name` if it is one of `known`.

    Raises:
        UsageError: otherwise, listing the known names.
    """
    if name not in known:
        raise UsageError(f'unknown {kind} "{name}": expected one of {some(known, name)}')
    return name
