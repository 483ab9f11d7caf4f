"""The table of DiffBreak: the worst draw and the majority vote of randomized purifiers."""

from pathlib import Path

import pytest

from robench.cli.main import main
from robench.core.errors import UsageError
from robench.records.collection import collect
from robench.records.record import read_record
from robench.reports.diffbreak import diffbreak
from robench.reports.table import FORMATS, render
from tests.reports.test_notes import names_cell

SHIPPED = Path(__file__).resolve().parents[2] / "results" / "shipped" / "digits-linf-0.1"
ATTACKS = {
    "bpda": "pgd@bpda",
    "bpda+EOT": "pgd-eot-5@bpda",
    "full": "pgd",
    "full+EOT": "pgd-eot-5",
    "known-noise": "pgd-eot-10@known-noise",
}


@pytest.fixture(scope="module")
def table():
    (table,) = diffbreak(collect([SHIPPED / name for name in ("diffpure-digits", "maep-digits")]))
    return table


def test_each_attack_on_the_purifier_has_a_row_with_both_figures(table):
    assert [row[:2] for row in table.rows] == [("diffpure-digits", attack) for attack in ATTACKS]
    for row, folder in zip(table.rows, ATTACKS.values(), strict=True):
        if not (SHIPPED / "diffpure-digits" / folder).is_dir():
            assert set(row[2:]) == {"–"}
            continue
        figures = read_record(SHIPPED / "diffpure-digits" / folder).extra["stochastic"]
        expected = [
            figures[images][name]["value"]
            for images in ("clean", "robust")
            for name in ("worst_draw", "majority")
        ]
        assert [float(cell.split()[0]) for cell in row[2:]] == pytest.approx([100 * v for v in expected])


def test_the_worst_draw_is_at_most_the_majority(table):
    cells = [[float(cell.split()[0]) for cell in row[2:]] for row in table.rows if row[2] != "–"]
    assert len(cells) >= 4
    assert all(worst <= vote and robust <= worst for worst, vote, robust, _ in cells)


def test_marked_cells_are_robust_ones_and_named_below(table):
    marked = [(row[1], i) for row in table.rows for i, cell in enumerate(row[2:]) if " !" in cell]
    assert marked and {i for _, i in marked} == {2, 3}
    assert all(
        any(names_cell(note, "diffpure-digits", attack) for note in table.notes) for attack, _ in marked
    )


def test_a_deterministic_purifier_has_no_row():
    assert diffbreak(collect([SHIPPED / "maep-digits"])) == []


def test_a_suite_without_rungs_is_refused():
    with pytest.raises(UsageError, match='no ladder "autoattack"'):
        diffbreak([], "autoattack")


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_has_the_attacks(table, format):
    text = render(table, format).replace("\\", "")
    assert all(attack in text for attack in ATTACKS)


def test_the_command_prints_it(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["table", "diffbreak", str(SHIPPED / "diffpure-digits")])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and "majority" in out and "known-noise" in out
    # The published figures and their source, once, below the last table.
    assert out.count("arXiv 2411.16598") == 1 and "32.8" in out
