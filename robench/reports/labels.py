"""Place labels beside points, without overlaps with other labels, points or the frame."""

from collections.abc import Sequence

# Offsets of a label from its point, (horizontal, vertical) in units of its size, best first.
_PLACES = [
    (x, y) for reach in (0.0, 0.8, 1.8) for x, y in ((0, 0), (-1, 0), (-0.5, 0.9 + reach), (-0.5, -0.9 - reach))
]  # fmt: skip
_NEAR = 7.0
# The most labels; more would be too dense.
_MOST = 40


def place_labels(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], frame: tuple[float, float]
) -> list[tuple[float, float] | None]:
    """The lower left corner of each label; None for a label that does not fit.

    Args:
        points: in the units of `frame`, the most important first.
        sizes: width and height of each label.
        frame: width and height of the frame, whose lower left corner is (0, 0).
    """
    taken = [(x - _NEAR / 2, y - _NEAR / 2, x + _NEAR / 2, y + _NEAR / 2) for x, y in points]
    corners: list[tuple[float, float] | None] = []
    for number, ((x, y), (width, height)) in enumerate(zip(points, sizes, strict=True)):
        corners.append(None)
        if number >= _MOST:
            continue
        for right, up in _PLACES:
            gap = _NEAR if right == 0 else -_NEAR if right == -1 else 0
            left, low = x + right * width + gap, y + (up - 0.5) * height
            box = (left, low, left + width, low + height)
            inside = left >= 0 and low >= 0 and box[2] <= frame[0] and box[3] <= frame[1]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                corners[-1] = (left, low)
                break
    return corners


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
