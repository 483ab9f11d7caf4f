"""Place labels beside points, without overlaps with other labels, points or the frame."""

import re
from collections.abc import Sequence

# Offsets of a label from its point, (horizontal, vertical) in units of its size, best first: diagonal, because the
# intervals of a point are horizontal and vertical lines through it, then beside, above and below it.
_PLACES = [
    *((x, y) for reach in (0.7, 1.6, 2.5, 3.4) for y in (reach, -reach) for x in (0, -1)),
    *((x, 0) for x in (0, -1)),
    *((-0.5, y) for reach in (0.9, 1.7, 2.7) for y in (reach, -reach)),
]  # fmt: skip
_NEAR = 7.0
# The most labels; more would be too dense.
_MOST = 40
_ARGUMENTS = re.compile(r"\([^()]*\)")
# Arguments with a text keep only the text.
_TEXTS = re.compile(r"\w+=\"([^\"]*)\"")


def short_names(names: Sequence[str]) -> list[str]:
    """The names of defenses without arguments, or with short ones where several names differ only in them."""
    bare = [_ARGUMENTS.sub("", name) for name in names]
    return [
        short if bare.count(short) == 1 else _TEXTS.sub(r"\1", name)
        for name, short in zip(names, bare, strict=True)
    ]


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: tuple[float, float],
    lines: Sequence[tuple[float, float, float, float]] = (),
) -> list[tuple[float, float] | None]:
    """The lower left corner of each label; None for a label that does not fit.

    Args:
        points: in the units of `frame`, the most important first.
        sizes: width and height of each label.
        frame: width and height of the frame, whose lower left corner is (0, 0).
        lines: (left, low, right, high) of lines that labels do not cross if there is room elsewhere.
    """
    taken = [(x - _NEAR / 2, y - _NEAR / 2, x + _NEAR / 2, y + _NEAR / 2) for x, y in points]
    corners: list[tuple[float, float] | None] = []
    for number, ((x, y), (width, height)) in enumerate(zip(points, sizes, strict=True)):
        corners.append(None)
        if number >= _MOST:
            continue
        free: list[tuple[float, tuple[float, float, float, float]]] = []
        for right, up in _PLACES:
            gap = _NEAR if right == 0 else -_NEAR if right == -1 else 0
            left, low = x + right * width + gap, y + (up - 0.5) * height
            box = (left, low, left + width, low + height)
            inside = left >= 0 and low >= 0 and box[2] <= frame[0] and box[3] <= frame[1]
            if inside and not any(_overlap(box, other) for other in taken):
                # A line that crosses a name is as bad as two lines of text between the name and its point.
                free.append((sum(_overlap(box, line) for line in lines) + 0.5 * abs(up), box))
        if free:
            box = min(free, key=lambda place: place[0])[1]
            taken.append(box)
            corners[-1] = box[:2]
    return corners


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
