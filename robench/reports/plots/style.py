"""The style of all plots (colors, markers, hatches, font), and how they are saved as PNG, SVG and PDF.

The same figure gives the same bytes, without date, version or random ids. Colors are distinguishable in gray and for
colour-blind readers (Paul Tol's medium-contrast scheme and black). Markers and hatches differ as well.
"""

from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from robench.core.errors import UsageError
from robench.core.io import write_file
from robench.core.sanitize import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
DPI = 150
INK, QUIET, WRONG, LINE = "#1b1f24", "#6a737d", "#b3261e", "#d0d7de"
COLOURS = ("#000000", "#6699CC", "#994455", "#EE99AA", "#004488", "#997700", "#EECC66")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
# Lightness increases with the value, so the order is visible in print.
SHADES = "cividis"
_NOTHING: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def marker(i: int) -> str:
    """A marker, shifted by one when the colors repeat."""
    return MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]


def dash(i: int) -> str:
    return DASHES[i // len(COLOURS) % len(DASHES)]


def literal(text: str) -> str:
    """Text for matplotlib without math mode, control characters or characters that the font does not have."""
    lines = ("".join(c if ord(c) in _letters() else "�" for c in plain(line)) for line in text.split("\n"))
    return "\n".join(lines).replace("$", r"\$")


def label(text: str) -> str:
    """The label of a line. matplotlib leaves labels that begin with an underscore out of legends."""
    shown = literal(text)
    return f"\u200a{shown}" if shown.startswith("_") else shown


@cache
def _letters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def figure(width: float, height: float, **options) -> "Figure":
    """An empty figure, with sizes in inches. Without pyplot, no global state or display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    empty = Figure(figsize=(width, height), facecolor="white", **options)
    FigureCanvasAgg(empty)
    return empty


def frame(axes: "Axes", title: str = "", x: str = "", y: str = "") -> None:
    """Set titles and a light grid, and remove the box."""
    axes.set_title(literal(title), fontsize=10, loc="left")
    axes.set_xlabel(literal(x))
    axes.set_ylabel(literal(y))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def encode(figure: "Figure", format: str = "png") -> bytes:
    """The content of the file.

    Raises:
        UsageError: for a format that is not one of `FORMATS`.
    """
    import matplotlib

    if format not in FORMATS:
        raise UsageError(f'unknown plot format "{format}": expected one of {", ".join(FORMATS)}')
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "robench", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=format, dpi=DPI, metadata=_NOTHING[format])
    return buffer.getvalue()


def save(figure: "Figure", path: Path | str) -> Path:
    """Write the figure in the format given by the file extension.

    Raises:
        UsageError: when the extension is not one of `FORMATS`.
        ResourceError: when the file cannot be written.
    """
    path = Path(path)
    write_file(path, encode(figure, path.suffix.lower().removeprefix(".")))
    return path
