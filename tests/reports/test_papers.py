"""Papers' tables: claims come from the cards, what nobody found is no number, ours stand beside, with intervals."""

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest

from robench import catalog as content
from robench.attacks.build import build_attacks
from robench.attacks.pgd import PGD
from robench.catalog import find_suite
from robench.cli.main import main
from robench.core.errors import UsageError
from robench.engine.outcome import ResultWarning
from robench.records.record import SuiteFacts
from robench.records.samples import image_keys
from robench.reports.paper_files import find_paper, papers, read
from robench.reports.papers import grids, text
from robench.reports.table import FORMATS
from robench.statistics.accuracy import interval, paired_difference, percent
from robench.threats.threat import Threat
from tests.fabricate import make_run, weights_of

AUTOATTACK = ("apgd", 'apgd(loss="dlr", targets=9)', "fab(targets=9)", "square")


def cells(paper, records=()):
    """(table, row, column) -> text."""
    return {
        (grid.title, row[0], column): cell
        for grid in grids(paper, records)
        for row in grid.rows
        for column, cell in zip(grid.columns, row, strict=True)
    }


def test_every_claim_of_a_card_of_mimir_stands_in_its_tables():
    found = cells(find_paper("mimir"))
    printed = list(found.values())
    for card in content.cards().values():
        for claim in card.claims:
            assert f"{claim['clean']:.2f}" in printed and f"{claim['robust']:.2f}" in printed
    assert found["CIFAR-10, Linf 8/255", "ViT-B", "AutoAttack"] == "54.55"
    assert found["ImageNet, Linf 4/255", "Swin-L, PGD-3", "natural"] == "78.62"


def test_what_was_not_found_is_no_number():
    found = cells(find_paper("mimir"))
    assert found["CIFAR-10, Linf 8/255", "ViT-B", "PGD-20"] == "not found"
    assert {
        v for (table, _, column), v in found.items() if "Tiny" in table and column in ("natural", "PGD-20")
    } == {"not found"}
    maep = cells(find_paper("maep"))
    assert [maep[key] for key in maep if key[1:] == ("MAEP", "oblivious")] == ["87.29", "about 74", "–"]
    de3 = cells(find_paper("de3"))
    assert not any(value[0].isdigit() for value in de3.values())


def test_a_column_of_maep_holds_one_kind_of_attacker():
    """MAEP's own figures are oblivious ones; those of other purifiers that it cites are adaptive ones."""
    found = cells(find_paper("maep"))
    numbers = {key[1:]: cell for key, cell in found.items() if cell[:1].isdigit() or "about" in cell}
    assert {column for row, column in numbers if row == "MAEP"} == {"oblivious"}
    assert {column for row, column in numbers if row != "MAEP"} == {"full"}
    (cifar, imagenet, _) = find_paper("maep").tables
    assert found[cifar.title, "DiffPure", "full"] == "70.64"
    assert found[imagenet.title, "DiffPure", "full"] == "68.60"
    assert found[imagenet.title, "ScoreOpt", "full"] == "68.05"


# Linf radius and dataset of a table -> the step of its PGD, in pixels, as the authors' code has it.
PUBLISHED_STEPS = {
    ("mimir", "cifar10", "Linf:8/255"): 2 / 255,
    ("mimir", "imagenet", "Linf:2/255"): 1 / 255,
    ("mimir", "imagenet", "Linf:4/255"): 1 / 255,
    ("de3", "imagenet", "Linf:4/255"): 2 / 255,
}


@pytest.mark.parametrize("place", PUBLISHED_STEPS, ids="-".join)
def test_pgd_takes_the_published_step_and_judges_the_last_iterate(place):
    name, dataset, threat = place
    tables = [t for t in find_paper(name).tables if (t.dataset, t.threat) == (dataset, threat)]
    texts = {c.attack for table in tables for c in table.columns if c.name in ("PGD-20", "oblivious", "full")}
    assert texts
    radius = Threat.parse(threat)
    for spec in texts:
        ((_, pgd),) = build_attacks(find_suite(spec).specs("Linf"), radius)
        assert isinstance(pgd, PGD) and pgd.last
        assert pgd.rel_step_size * radius.eps == pytest.approx(PUBLISHED_STEPS[place])
    notes = " ".join(table.notes[0] if table.notes else "" for table in tables) + " ".join(
        find_paper(name).notes
    )
    assert "the last iterate alone counts" in notes


def test_without_a_purifier_gray_box_and_white_box_are_one_record(tmp_path):
    white = make_run(
        tmp_path,
        suite=SuiteFacts("de3-pgd-10", ("pgd(last=True, rel_step_size=0.5, steps=10)",)),
        threat="Linf:0.1",
        defense="de3-classifier-digits",
    ).record()
    table = grids(find_paper("de3"), [white])[-1]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row[""] == "De^3, sigma off"
    assert row["oblivious"] == row["full"] != "–"
    assert not any("de3-classifier-digits" in note for note in table.notes if note.startswith("–"))
    # A purifier's white box says nothing of its gray box.
    assert dict(zip(table.columns, table.rows[2], strict=True))["oblivious"] == "–"
    commands = [note for note in grids(find_paper("de3"), [])[-1].notes if note.startswith("–")]
    assert not any("classifier" in note and "oblivious" in note for note in commands)


@pytest.mark.parametrize("name", ["mimir", "maep", "de3"])
def test_every_number_has_its_source_beneath(name):
    for grid in grids(find_paper(name), ()):
        numbers = [
            row[0] for row in grid.rows if any(cell[:1].isdigit() or "about" in cell for cell in row[1:])
        ]
        sources = [note for note in grid.notes if note.startswith("published, ")]
        assert all(any(row in note for note in sources) for row in numbers)


def measured(root, **changes):
    """A fabricated record of mimir-digits under AutoAttack in the table of digits."""
    run = make_run(root, suite=SuiteFacts("autoattack", AUTOATTACK), threat="Linf:0.13", **changes)
    return run.record()


def test_ours_stand_beside_with_intervals_and_missing_ones_say_the_command(tmp_path):
    record = measured(tmp_path)
    table = grids(find_paper("mimir"), [record])[-1]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["AutoAttack"] == f"{percent(record.robust_accuracy)}\n{interval(record.robust_accuracy)}"
    assert row["natural"].startswith(percent(record.clean_accuracy))
    assert row["PGD-20"] == "–"
    assert "our results, n = 30, 95 % intervals: MIMIR" in table.notes
    assert "–: robench run --defense mimir-digits --attack mimir-pgd-20 --protocol digits-linf" in table.notes


def test_numbers_of_images_are_said_of_columns_where_each_has_one_and_otherwise_of_rows(tmp_path):
    def note(*records):
        table = grids(find_paper("mimir"), list(records))[-1]
        return [
            text.removeprefix("our results, ") for text in table.notes if text.startswith("our results, ")
        ]

    pgd = SuiteFacts("mimir-pgd-20", ("pgd(last=True, rel_step_size=0.25)",))
    attacked = measured(tmp_path)
    few = make_run(tmp_path, suite=pgd, threat="Linf:0.13", n=20).record()
    assert note(attacked, few) == [
        "n = 20, 95 % intervals: PGD-20",
        "n = 30, 95 % intervals: natural; AutoAttack",
    ]
    other = measured(tmp_path, n=20, defense="pgd-at-digits")
    assert note(attacked, other) == [
        "n = 20, 95 % intervals: no pre-training",
        "n = 30, 95 % intervals: MIMIR",
    ]
    assert note(attacked, few, other) == [
        "n = 20, 95 % intervals: MIMIR (PGD-20); no pre-training",
        "n = 30, 95 % intervals: MIMIR (natural, AutoAttack)",
    ]


def test_a_record_of_other_weights_fills_no_cell(tmp_path):
    record = measured(tmp_path)
    facts = dataclasses.replace(record.job.defense, checkpoint_sha256="c" * 64)
    other = dataclasses.replace(record, job=dataclasses.replace(record.job, defense=facts))
    cells = [
        dict(zip(table.columns, table.rows[0], strict=True))["AutoAttack"]
        for table in (grids(find_paper("mimir"), [given])[-1] for given in (record, other))
    ]
    assert cells[0] != "–" and cells[1] == "–"


def test_a_table_of_clean_columns_names_a_command_too(tmp_path):
    (tmp_path / "own.toml").write_text(ROW + 'rows = [{ name = "r", defense = "mimir-digits" }]')
    (table,) = grids(read(tmp_path / "own.toml"), [])
    assert any("robench run --defense mimir-digits --attack fgsm" in note for note in table.notes)
    own = (tmp_path / "own.toml").read_text().replace("Linf:0.1", "L1:8")
    (tmp_path / "own.toml").write_text(own)
    (table,) = grids(read(tmp_path / "own.toml"), [])
    assert not any("fgsm" in note for note in table.notes), "FGSM is not defined in L1"


@pytest.mark.parametrize(
    "changes",
    [{"knowledge": "oblivious"}, {"threat": "Linf:0.1"}, {"suite": SuiteFacts("autoattack", ("apgd",))}],
)
def test_another_knowledge_threat_or_attack_fills_no_cell(tmp_path, changes):
    record = measured(tmp_path)
    record = dataclasses.replace(record, job=dataclasses.replace(record.job, **changes))
    table = grids(find_paper("mimir"), [record])[-1]
    assert dict(zip(table.columns, table.rows[0], strict=True))["AutoAttack"] == "–"


def test_of_several_records_the_one_of_most_images_counts_and_among_those_the_lowest(tmp_path):
    records = [measured(tmp_path, n=n, draw=draw) for n, draw in ((20, 0), (40, 1), (40, 2))]
    lowest = min(records[1:], key=lambda r: r.robust_accuracy.value)
    table = grids(find_paper("mimir"), records)[-1]
    assert table.rows[0][3].startswith(percent(lowest.robust_accuracy))


@pytest.mark.parametrize("name", ["mimir", "maep", "de3"])
def test_every_format_is_written(name):
    for form in FORMATS:
        made = text(find_paper(name), (), form)
        assert "not found" in made and made.endswith("\n")
    rows = list(csv.DictReader(io.StringIO(text(find_paper(name), (), "csv"))))
    assert {tuple(row) for row in rows} == {("table", "row", "column", "value")}


def test_every_defense_of_a_table_is_known():
    from robench.defenses import find_card

    for paper in papers().values():
        for table in paper.tables:
            for row in table.rows:
                assert not row.defense or find_card(row.defense, table.dataset)


ROW = 'title = "a"\n[[tables]]\ntitle = "t"\ndataset = "digits"\nthreat = "Linf:0.1"\ncolumns = [{ name = "clean" }]\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('title = "a"\n', "expected either tables"),
        ('title = "a"\nladder = "x"\n[[tables]]\n', "expected either tables"),
        (ROW + 'rows = [{ name = "r", published = { robust = 1 }, source = "s" }]', "expected one of clean"),
        (ROW + 'rows = [{ name = "r", published = { clean = 101 }, source = "s" }]', "expected a percentage"),
        (
            ROW + 'rows = [{ name = "r", published = { clean = "many" }, source = "s" }]',
            "expected a percentage",
        ),
        (ROW + 'rows = [{ name = "r", published = { clean = 1 } }]', "no source"),
        (ROW + 'rows = [{ name = "r", colour = 1 }]', 'unknown field "colour"'),
        (ROW + "rows = [1]", "expected a table"),
        (ROW.replace("Linf:0.1", "Linf"), "malformed threat"),
        (ROW + 'rows = [{ name = "r", published = { clean = [1] }, source = "s" }]', "expected a percentage"),
        (
            ROW + 'rows = [{ name = "r", published = { clean = true }, source = "s" }]',
            "expected a percentage",
        ),
        (ROW.replace('"clean"', '"clean", knowledge = "bogus"'), 'unknown knowledge level "bogus"'),
        (ROW.replace('"clean" }', '"clean" }, { name = "clean" }'), 'two columns are called "clean"'),
        (ROW.replace('"clean"', '"clean", attack = "nothing"'), 'unknown attack "nothing"'),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "own.toml"
    path.write_text(content if "rows" in content or "tables" not in content else content + "rows = []")
    with pytest.raises(UsageError, match=said) as caught:
        read(path)
    assert "\n" not in str(caught.value)


PAIR = """
title = "t"
[[tables]]
title = "pair"
dataset = "digits"
threat = "Linf:0.13"
differences = [["first", "second"]]
columns = [{ name = "clean" }, { name = "AA", attack = "autoattack" }]
rows = [{ name = "first", defense = "mimir-digits" }, { name = "second", defense = "pgd-at-digits" }]
"""


def pair(root, **second):
    """The tables of two fabricated records, and the records."""
    records = []
    for name, changes in (("mimir-digits", {}), ("pgd-at-digits", second)):
        run = make_run(root / name, suite=SuiteFacts("autoattack", AUTOATTACK), threat="Linf:0.13", **changes)
        facts = dataclasses.replace(run.job.defense, name=name, checkpoint_sha256=weights_of(name))
        job = dataclasses.replace(run.job, defense=facts)
        records.append(dataclasses.replace(run, job=job).write())
    (root / "pair.toml").write_text(PAIR)
    return grids(read(root / "pair.toml"), records), records


def test_the_difference_of_two_rows_is_of_the_same_images(tmp_path):
    (_, table), records = pair(tmp_path)
    assert table.title == "pair: differences" and [row[0] for row in table.rows] == ["first minus second"]
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    # The same outcome twice.
    assert cells["clean"].splitlines()[0] == cells["AA"].splitlines()[0] == "+0.00"
    assert cells["AA"].endswith("p = 1.000") and records[0].job.n == 30


def test_the_difference_counts_the_images_that_one_defense_has_right(tmp_path, monkeypatch):
    n = 30
    robust = {"mimir-digits": np.arange(n) < 20, "pgd-at-digits": (np.arange(n) >= 5) & (np.arange(n) < 17)}
    monkeypatch.setattr("robench.reports.differences.held", lambda record: robust[record.job.defense.name])
    (_, table), _ = pair(tmp_path)
    difference, ends, p = table.rows[0][2].splitlines()
    # 8 images are right in the first alone, none in the second alone.
    low, high = (100 * end for end in paired_difference(8, 0, n))
    assert (difference, ends, p) == ("+26.67", f"[{low:.1f}, {high:.1f}]", "p = 0.008")


def test_the_difference_of_records_of_different_size_is_on_the_images_of_both(tmp_path, monkeypatch):
    robust = {"mimir-digits": np.arange(30) < 28, "pgd-at-digits": np.arange(20) < 14}
    monkeypatch.setattr("robench.reports.differences.held", lambda record: robust[record.job.defense.name])
    shared = [(i, f"digest {i}") for i in range(30)]
    keys = {"mimir-digits": shared, "pgd-at-digits": shared[5:25]}
    monkeypatch.setattr(
        "robench.reports.differences.image_keys", lambda record: keys[record.job.defense.name]
    )
    (_, table), records = pair(tmp_path, n=20)
    assert [record.job.n for record in records] == [30, 20]
    difference, ends, p, shown = table.rows[0][2].splitlines()
    # Images 5 to 24: the first has all 20 right, the second 14 of them.
    low, high = (100 * end for end in paired_difference(6, 0, 20))
    assert (difference, ends, p, shown) == ("+30.00", f"[{low:.1f}, {high:.1f}]", "p = 0.031", "n = 20")


def test_other_images_have_no_difference(tmp_path):
    tables, records = pair(tmp_path, draw=1)
    assert len(tables) == 1
    first, second = map(image_keys, records)
    assert first is not None and second is not None and len(set(first)) == len(set(second)) == 30
    assert not {*first} & {*second}


@pytest.mark.parametrize("value", ['[["first", "third"]]', '[["first"]]', '[["first", "first"]]'])
def test_differences_of_rows_that_do_not_exist_are_refused(tmp_path, value):
    (tmp_path / "pair.toml").write_text(PAIR.replace('[["first", "second"]]', value))
    with pytest.raises(UsageError, match="expected pairs of two rows of first, second"):
        read(tmp_path / "pair.toml")


def test_a_difference_of_a_marked_figure_is_marked(tmp_path):
    records = pair(tmp_path)[1]
    marked = dataclasses.replace(records[0], health=[ResultWarning("zero-gradients", "7 of 30")])
    (_, table) = grids(read(tmp_path / "pair.toml"), [marked, records[1]])
    clean, robust = (cell.splitlines()[0] for cell in table.rows[0][1:])
    assert clean == "+0.00" and robust == "+0.00 !"


@pytest.mark.parametrize(
    ("attack", "reason"), [("pgd(steps=0)", "steps=0"), ("apgd-l1", "Linf:0.13 is not among")]
)
def test_attacks_of_a_table_of_ones_own_are_built(tmp_path, monkeypatch, attack, reason):
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text(PAIR.replace('attack = "autoattack"', f'attack = "{attack}"'))
    with pytest.raises(UsageError, match=reason):
        find_paper("own.toml")


def test_facts_are_columns_and_tables_without_published_figures_have_half_the_columns(tmp_path):
    own = PAIR.replace(
        'defense = "mimir-digits"', 'defense = "mimir-digits", ours = true, facts = { minutes = "3" }'
    )
    (tmp_path / "pair.toml").write_text(own.replace('"pgd-at-digits"', '"pgd-at-digits", ours = true'))
    (table,) = grids(read(tmp_path / "pair.toml"), [])
    assert table.columns == ("", "minutes", "clean", "AA")
    assert [*table.rows] == [("first", "3", "–", "–"), ("second", "–", "–", "–")]


def test_the_command_takes_a_name_or_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "own.toml").write_text(
        ROW + 'rows = [{ name = "r[bold]", published = { clean = 1 }, source = "s" }]'
    )
    for arguments, expected in ((["table", "mimir"], "54.55"), (["table", "own.toml"], "r[bold]   1.00")):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0 and expected in capsys.readouterr().out
    for arguments, said in (
        (["table", "mimr"], 'unknown paper "mimr": did you mean mimir?'),
        (["table", "mimir", "--suite", "purifier"], "omit --suite"),
        (["table", "none.toml"], "none.toml: No such file"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code in (2, 3) and said in capsys.readouterr().err
