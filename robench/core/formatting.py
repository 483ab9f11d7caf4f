"""How figures and names are written, the same in every table, board and picture."""

import re
from pathlib import Path

from robench.core.errors import UsageError
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


def markdown(text: str) -> str:
    """A name made safe for a Markdown table: one line, no markup."""
    return _MARKDOWN.sub(r"\\\1", plain(text))


def latex(text: str) -> str:
    """A name made safe for LaTeX; letters that its standard fonts lack become question marks."""
    return "".join(
        _LATEX.get(char, char if char.isascii() or "À" <= char <= "ÿ" else "?") for char in plain(text)
    )


def count(number: float) -> str:
    """A number in two or three figures: 0.5, 999, 12.3k, 4.56M."""
    for size, unit in _UNITS:
        # 999,950 would be written 1000k.
        if number >= size * 0.9995:
            return f"{number / size:.3g}{unit}" if number < 999.5 * size else f"{number / size:.0f}{unit}"
    return f"{number:.0f}" if number >= 9.5 or number == int(number) else f"{number:.2g}"


def duration(seconds: float) -> str:
    """0.42 s, 12.3 s, 4 min 05 s, 3 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: int) -> str:
    """A number of bytes: 0 B, 12.3 KiB, 4.56 GiB."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}"


def location(path: Path | str | None) -> str:
    """A path for people: relative to the working folder where it lies inside."""
    if path is None:
        return ""
    path = Path(path)
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def one_of(kind: str, asked: str, known: tuple[str, ...]) -> str:
    """`asked`, if it is known.

    Raises:
        UsageError: naming what is.
    """
    if asked not in known:
        raise UsageError(f'unknown {kind} "{asked}": expected one of {", ".join(known)}')
    return asked
