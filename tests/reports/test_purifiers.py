"""The ladder of attackers that a purifier faces, and the table of purifiers made from its records."""

from dataclasses import replace

import pytest
import torch

from robench import catalog
from robench.catalog import Rung, find_suite
from robench.cli.main import main
from robench.core import registry
from robench.core.errors import ResourceError, UsageError
from robench.core.rng import normal_like
from robench.defenses import Purifier
from robench.evaluation.protocol import choose_protocol
from robench.evaluation.run import Options, run_all
from robench.records.collection import collect
from robench.reports.purifiers import purifiers
from robench.reports.table import FORMATS, render


class Levels(Purifier):
    """Gray levels, which no gradient passes; noise on demand."""

    def __init__(self, sigma: float = 0.0):
        super().__init__()
        self.sigma, self.stochastic = sigma, sigma > 0

    def forward(self, x):
        x = x + self.sigma * normal_like(x) if self.sigma else x
        return (x.clamp(0, 1) * 3).round() / 3


@pytest.fixture(autouse=True, scope="module")
def levels():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.purifiers._builders, "levels", Levels)
        patch.setitem(registry.purifiers._holders, "levels", "tests.Levels")
        yield


@pytest.fixture(autouse=True, scope="module")
def short_rungs():
    """The rungs of purifier-cheap with fewer steps and draws."""
    suite = find_suite("purifier-cheap")
    rungs = [
        replace(rung, attack=rung.attack.replace("20", "8").replace("eot=5", "eot=2")) for rung in suite.rungs
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalog.suites(), suite.name, replace(suite, rungs=rungs))
        yield


def climb(place, defense, suite="purifier-cheap", samples=20):
    protocol = choose_protocol(None, None, "Linf:0.1", samples)
    notes = []
    records = list(run_all([defense], [suite], protocol, None, Options(results=place, note=notes.append)))
    return records, notes


@pytest.fixture(scope="module")
def climbed(levels, short_rungs, tmp_path_factory):
    """The records of a deterministic purifier, and their folder."""
    place = tmp_path_factory.mktemp("climbed")
    return climb(place, "levels+standard-digits")[0], place


def test_each_rung_is_a_record_and_a_cell(climbed):
    records, place = climbed
    assert [record.job.knowledge for record in records] == [
        "full",
        "oblivious",
        "transfer:standard",
        "bpda",
        "full",
    ]
    assert records[0].job.defense.name == "standard-digits" and records[0].job.defense.classifier == ""
    assert records[1].job.defense.classifier == "standard-digits"
    (table,) = purifiers(collect([place]), "purifier-cheap")
    (row,) = table.rows
    cells = dict(zip(table.columns, row, strict=True))
    assert cells["purifier"] == "levels+standard-digits"
    for name, record in zip(("undefended", "oblivious", "transfer", "bpda", "full"), records, strict=True):
        assert cells[name].startswith(f"{100 * record.robust_accuracy.value:.2f}")
    assert cells["bpda+EOT"] == cells["full+EOT"] == "–" and "zero-gradients" in " ".join(table.notes)
    # No gradient passes the gray levels: what BPDA finds, the exact gradient does not.
    assert float(cells["bpda"].split()[0]) < float(cells["full"].split()[0])


@pytest.mark.slow
def test_a_randomised_purifier_has_more_rungs_and_an_average(tmp_path):
    records, _ = climb(tmp_path, "levels(sigma=0.1)+standard-digits", samples=6)
    assert len(records) == 7
    (table,) = purifiers(collect([tmp_path]), "purifier-cheap")
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert not records[1].health and not records[2].health  # who sees no noise cannot average over it
    assert "avg" in cells["full+EOT"] and "avg" not in cells["undefended"]
    # Clean accuracy is held against robust accuracy by the same measure, not by the vote.
    clean = records[1].extra["stochastic"]["clean"]
    assert cells["clean"].startswith(f"{100 * clean['worst_draw']['value']:.2f}\n")
    assert cells["clean"].endswith(f"avg {100 * clean['average']['value']:.2f}")
    assert clean["worst_draw"]["value"] < clean["majority"]["value"] == records[1].clean_accuracy.value
    for form in FORMATS:
        text = render(table, form)
        assert "levels" in text and text.endswith("\n")
    assert r"\toprule" in render(table, "latex") and "undefended" in render(table, "latex")
    assert len(render(table, "csv").splitlines()) == 2


def test_missing_cells_say_which_command_fills_them(tmp_path):
    protocol = choose_protocol(None, None, "Linf:0.1", 5)
    list(
        run_all(
            ["levels+standard-digits"], ["pgd(steps=8)"], protocol, ["oblivious"], Options(results=tmp_path)
        )
    )
    (table,) = purifiers(collect([tmp_path]), "purifier-cheap")
    assert table.notes[1] == (
        "undefended, transfer, bpda, full of levels+standard-digits: robench run --defense levels+standard-digits "
        "--attack purifier-cheap --dataset digits --threat Linf:0.1 --samples 5"
    )
    assert table.rows[0][-1] == "–"


def test_a_rung_that_cannot_be_played_is_not_asked_for(tmp_path, monkeypatch):
    protocol = choose_protocol(None, None, "Linf:0.1", 5)
    options = Options(results=tmp_path)
    list(run_all(["levels+standard-digits"], ["pgd(steps=8)"], protocol, ["oblivious"], options))
    others = {name: card for name, card in catalog.cards().items() if card.family != "standard"}
    monkeypatch.setattr(catalog, "cards", lambda: others)
    (table,) = purifiers(collect([tmp_path]), "purifier-cheap")
    assert table.notes[1].startswith("undefended, bpda, full of levels+standard-digits: ")


def test_a_purifier_that_was_on_no_rung_has_no_row(tmp_path):
    protocol = choose_protocol(None, None, "Linf:0.1", 5)
    list(run_all(["levels+standard-digits"], ["pgd(steps=2)"], protocol, None, Options(results=tmp_path)))
    assert purifiers(collect([tmp_path]), "purifier-cheap") == []


def test_a_ladder_wants_a_purifier_and_says_itself_what_is_known(tmp_path):
    with pytest.raises(UsageError, match="needs a defense with a purifier, but mimir-digits has none"):
        climb(tmp_path, "mimir-digits")
    protocol = choose_protocol(None, None, "Linf:0.1", 5)
    with pytest.raises(UsageError, match="remove --knowledge"):
        list(run_all(["levels+mimir-digits"], ["purifier"], protocol, ["bpda"], Options(results=tmp_path)))
    import robench

    with pytest.raises(UsageError, match="ladder of several runs"):
        robench.attack(
            "purifier", torch.nn.Flatten(), torch.zeros(1, 3, 2, 2), torch.tensor([0]), threat="Linf:0.1"
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('attacks = ["pgd"]\n[[rungs]]\nname = "a"\nattack = "pgd"\n', "either attacks"),
        ("", "either attacks"),
        ('[[rungs]]\nname = "a"\n', "the field attack is missing"),
        ('[[rungs]]\nname = "a"\nattack = "pgd"\nsubject = "me"\n', "expected defense or classifier"),
        ("rungs = [1]\n", "expected tables"),
    ],
)
def test_a_ladder_that_is_none_is_refused(tmp_path, text, said):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises((UsageError, ResourceError), match=said):
        catalog.read(catalog.Suite, tmp_path / "own.toml")


def test_the_command_prints_it(climbed, capsys):
    place = str(climbed[1])
    with pytest.raises(SystemExit) as ended:
        main(["table", "purifiers", place, "--suite", "purifier-cheap", "--format", "md"])
    assert ended.value.code == 0 and "| levels\\+standard-digits |" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["table", "purifiers", place])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and said.startswith("No records") and "--suite purifier-cheap" in said
    with pytest.raises(SystemExit) as ended:
        main(["table", "purifiers", place, "--suite", "autoattack"])
    assert ended.value.code == 2 and 'no ladder "autoattack"' in capsys.readouterr().err


def test_suites_with_the_earlier_spelling_of_randomized_are_read():
    rung = Rung("full+EOT", "pgd(eot=5)", stochastic="randomised")
    assert rung == Rung("full+EOT", "pgd(eot=5)", stochastic="randomized")
    assert rung.suits(True) and not rung.suits(False)
