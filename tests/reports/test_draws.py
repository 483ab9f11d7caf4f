"""The table of randomized defenses below a leaderboard."""

from pathlib import Path

import pytest

from robench.records.collection import collect
from robench.records.randomized import draws_label
from robench.reports.board import Choice, board
from robench.reports.draws import draws_grids
from robench.reports.page import write_page

SHIPPED = Path(__file__).resolve().parents[2] / "results" / "shipped" / "digits-linf"


@pytest.fixture(scope="module")
def records():
    return collect([SHIPPED / name for name in ("nim-mim-digits", "mimir-digits")])


def test_randomised_defenses_have_one_row_each(records):
    text = board(records, choice=Choice(only=["suite=autoattack"]))
    main, _, below = text.partition("Randomized defenses: ")
    assert "nim-mim-digits" in main and "mimir-digits" in main and "fresh draws" not in main
    (line,) = [line for line in below.splitlines() if "10 fresh" in line]
    assert line.split()[0] == "nim-mim-digits" and "mimir-digits " not in below.replace("nim-mim-digits", "")
    (record,) = [
        record for record in records if record.job.suite.name == "autoattack" and "stochastic" in record.extra
    ]
    vote = record.extra["stochastic"]
    assert (
        f"{100 * vote['robust']['majority']['value']:.2f} ({100 * vote['clean']['majority']['value']:.2f})"
        in line
    )


def test_no_table_without_a_randomised_defense(records):
    assert draws_grids([(r.job.defense.name, r) for r in records if "stochastic" not in r.extra]) == []


def test_draws_that_the_attacker_knew_are_not_called_fresh():
    purifier = SHIPPED.parent / "digits-linf-0.1" / "de3-digits"
    labels = {
        record.job.knowledge: draws_label(record)
        for record in collect([purifier / "pgd-eot-5", purifier / "pgd-eot-10@known-noise"])
    }
    assert labels == {"full": "10 fresh draws", "known-noise": "10 known draws"}


@pytest.mark.parametrize("format", ["text", "md", "latex"])
def test_every_format_has_the_table(records, format):
    assert "Randomized defenses: " in board(records, format, choice=Choice(only=["suite=autoattack"]))


def test_the_page_has_the_table_and_so_has_the_page_of_the_defense(records, tmp_path):
    index = write_page(records, tmp_path / "board", pictures=False)
    page = (index.parent / "defense" / "nim-mim-digits.html").read_text("utf-8")
    other = (index.parent / "defense" / "mimir-digits.html").read_text("utf-8")
    title = "Randomized defenses: "
    assert title in index.read_text("utf-8") and title in page and title not in other
    # Warnings of earlier versions are in today's words on every page.
    assert "a randomized defense under attacks without EOT" in page and "randomised" not in page
    assert '<th scope="row"><bdi>autoattack, Linf:0.13, 100</bdi></th><td>10 fresh</td>' in page
