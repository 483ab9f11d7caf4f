"""Tables on terminals of any width."""

import pytest

from robench.reports.table import Grid, render

GRID = Grid(
    title="digits · Linf:0.13",
    columns=("rank", "defense", "clean %", "robust %", "best known %", "warnings"),
    groups=(
        (
            ("1", "mae-at-digits", "98.00 [93.0, 99.4]", "46.00 [36.6, 55.7]", "46.00", ""),
            ("–", "nim-mim-digits", "98.00 [93.0, 99.4]", "0.00 [0.0, 3.7]", "0.00", "not ranked: a-warning"),
        ),
    ),
    names=frozenset(("defense", "warnings")),
    numbers=frozenset(("rank", "clean %", "robust %", "best known %")),
    notes=("a note",),
)
NUMBERS = ("98.00", "[93.0, 99.4]", "46.00", "[36.6, 55.7]", "[0.0, 3.7]")


@pytest.mark.parametrize("width", [40, 50, 60, 70, 80, 100, 120, 500])
def test_no_column_disappears_and_no_number_is_broken(width):
    text = render(GRID, "text", width)
    assert all(number in text for number in NUMBERS)
    assert text.count("98.00") == 2 and max(map(len, text.splitlines())) <= width
    words = "".join(text.split())
    assert all(heading.replace(" ", "") in words for heading in ("rank", "defense", "warnings", "clean %"))


def test_rows_are_one_line_where_they_fit_and_a_list_where_columns_do_not():
    assert "mae-at-digits   98.00 [93.0, 99.4]  46.00 [36.6, 55.7]" in render(GRID, "text", 120)
    assert "mae-at-digits          98.00         46.00    46.00" in render(GRID, "text", 80)
    narrow = render(GRID, "text", 50).splitlines()
    assert "defense       mae-at-digits" in narrow and "robust %      46.00 [36.6, 55.7]" in narrow
