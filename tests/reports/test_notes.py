"""Warnings below tables: each is stated once, and each marked cell is named."""

import re
from functools import partial
from pathlib import Path

import pytest

from robench.catalog import find_suite
from robench.engine.outcome import ResultWarning
from robench.records.collection import collect
from robench.reports.cells import lowest
from robench.reports.dataset_transfer import transfer
from robench.reports.diffbreak import diffbreak
from robench.reports.notes import warning_notes
from robench.reports.purifiers import purifiers, rows_of
from robench.reports.table import Grid, render
from robench.reports.unforeseen import unforeseen

SHIPPED = Path(__file__).resolve().parents[2] / "results" / "shipped"


def flat(bad, rows):
    return ResultWarning("loss-not-increasing", f"in {bad} of {rows} rows no step raised the loss")


RANDOM = ResultWarning("deterministic-attack", "a randomized defense under attacks without EOT")


def test_a_warning_of_one_cell_takes_one_line():
    notes = warning_notes([("a", "BPDA", [flat(2, 21)]), ("b", "exact", [])])
    assert notes == ["! a, BPDA: loss-not-increasing: in 2 of 21 rows no step raised the loss"]


def test_a_warning_of_several_cells_is_stated_once_with_the_numbers_of_each():
    cells = [
        ("a", "oblivious", [flat(2, 21)]),
        ("a", "BPDA", [RANDOM, flat(2, 21)]),
        ("a", "exact", [flat(4, 9)]),
        ("b", "BPDA", [RANDOM]),
        ("c", "exact", [flat(1, 9)]),
    ]
    assert warning_notes(cells) == [
        "! loss-not-increasing: in N of M rows no step raised the loss\n"
        "a: oblivious, BPDA (2 of 21); exact (4 of 9)\n"
        "c: exact (1 of 9)",
        "! deterministic-attack: a randomized defense under attacks without EOT\na; b: BPDA",
    ]


def test_rows_with_one_figure_have_no_column():
    cells = [("a", "", [RANDOM, flat(1, 9)]), ("b", "", [RANDOM, flat(2, 9)])]
    assert warning_notes(cells, mark="") == [
        f"a; b: {RANDOM}",
        "loss-not-increasing: in N of 9 rows no step raised the loss\na (1)\nb (2)",
    ]


def test_a_warning_without_a_cell_is_stated_alone():
    assert warning_notes([("", "", [RANDOM])]) == [f"! {RANDOM}"]


@pytest.mark.parametrize(
    ("texts", "meaning", "numbers"),
    [
        (["float16 in 3 answers", "float16 in 4 answers"], "float16 in N answers", ["3", "4"]),
        (["up to 1e-05 of 2", "up to 0.5 of 2"], "up to N of 2", ["1e-05", "0.5"]),
        (["cut off at -6.9", "cut off at -7"], "cut off at N", ["-6.9", "-7"]),
        (
            ["1 2 3 4 5 6 7 8", "2 3 4 5 6 7 8 9"],
            "N M K L P Q Q Q",
            ["1 2 3 4 5 6 7 8", "2 3 4 5 6 7 8 9"],
        ),
    ],
)
def test_only_numbers_that_differ_become_letters(texts, meaning, numbers):
    cells = [(f"row{i}", "", [ResultWarning("code", text)]) for i, text in enumerate(texts)]
    (note,) = warning_notes(cells)
    assert note.split("\n") == [f"! code: {meaning}", *(f"row{i} ({n})" for i, n in enumerate(numbers))]


def test_other_texts_of_a_code_are_stated_apart():
    other = ResultWarning(RANDOM.code, "no attack averages over the noise")
    assert len(warning_notes([("a", "BPDA", [RANDOM]), ("b", "BPDA", [other])])) == 2


def test_wordings_of_earlier_versions_are_stated_with_those_of_today():
    earlier = ResultWarning(RANDOM.code, RANDOM.text.replace("randomized", "randomised"))
    assert warning_notes([("a", "BPDA", [earlier]), ("b", "BPDA", [RANDOM])]) == [f"! {RANDOM}\na; b: BPDA"]


def test_text_of_a_record_adds_no_line():
    broken = ResultWarning("co\nde", "te\nxt")
    notes = warning_notes([("a\nb", "c\nd", [broken]), ("e", "c\nd", [broken])])
    assert notes == ["! co\ufffdde: te\ufffdxt\na\ufffdb; e: c\ufffdd"]


@pytest.mark.parametrize(
    ("format", "lines"),
    [
        ("text", ["plain", "! deterministic-attack: a_b", "  row; other: BPDA"]),
        ("md", ["- plain", r"- \! deterministic-attack: a\_b", "  - row; other: BPDA"]),
        ("latex", ["% plain", "% ! deterministic-attack: a_b", "%   row; other: BPDA"]),
    ],
)
def test_lines_after_the_first_are_indented(format, lines):
    notes = ("plain", "! deterministic-attack: a_b\nrow; other: BPDA")
    table = Grid("title", ("name",), ((("x",),),), notes=notes)
    assert render(table, format).splitlines()[-3:] == lines


@pytest.fixture(scope="module")
def records():
    return collect([SHIPPED])


def names_cell(note: str, row: str, column: str) -> bool:
    """Whether one line of a note has both names in full."""
    row, column = (rf"(^|[!,;:] ){re.escape(name)}(, |: |; | \(|$)" for name in (row, column))
    return any(re.search(row, line) and re.search(column, line) for line in note.split("\n"))


def test_every_warning_of_a_purifier_is_in_the_notes_with_its_numbers(records):
    notes = [note for table in purifiers(records, "purifier-cheap") for note in table.notes]
    rows = list(rows_of(records, find_suite("purifier-cheap")))
    count = 0
    for row in rows:
        for column, candidates in row.records.items():
            record = lowest(candidates)
            for warning in record.health if record else ():
                count += 1
                name = row.purified.job.defense.name
                cells = [note for note in notes if warning.code in note and names_cell(note, name, column)]
                numbers = [n for n in re.findall(r"\d+", warning.text) if n != "0"]
                assert cells and all(any(n in note for note in cells) for n in numbers)
    assert count > 50 and sum(note.startswith("! ") for note in notes) < 15


@pytest.mark.parametrize("ladder", ["purifier-cheap", "purifier"])
def test_every_marked_cell_of_a_purifier_is_named_below_the_table(records, ladder):
    marked = 0
    for table in purifiers(records, ladder):
        warnings = [note for note in table.notes if note.startswith("! ")]
        for row in table.rows:
            for column, cell in zip(table.columns, row, strict=True):
                if " !" in cell:
                    marked += 1
                    assert any(names_cell(note, row[0], column) for note in warnings), (row[0], column)
    assert marked > (20 if ladder == "purifier-cheap" else 0)


@pytest.mark.parametrize(
    "tables", [partial(purifiers, ladder="purifier-cheap"), diffbreak, transfer, unforeseen]
)
def test_tables_state_no_warning_twice(records, tables):
    for table in tables(records):
        codes = [re.search(r"[a-z]+(-[a-z]+)+: .*", note) for note in table.notes if note[0] == "!"]
        texts = [re.sub(r"\d+", "", code[0].split("\n")[0]) for code in codes if code]
        assert len(texts) == len(set(texts)) == len(codes)
