"""Ladders whose rungs name their threats: records, table, mean, and everything that reads such records."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import robench
from robench import catalog
from robench.catalog import Suite, read
from robench.cli import main
from robench.core.errors import CheckFailed, UsageError
from robench.data import load_dataset
from robench.defenses import load
from robench.evaluation.protocol import choose_protocol
from robench.evaluation.run import Options, run_all
from robench.records.certificates import FILE, read_certificates
from robench.records.collection import collect
from robench.reports.board import board
from robench.reports.plots.adversarial_examples import picture
from robench.reports.table import render
from robench.reports.unforeseen import unforeseen
from robench.verification.verify import verify

LADDER = """
name = "few"
[[rungs]]
name = "fog"
attack = "apgd(steps=6)"
threats = {16 = "fog:0.5", 32 = "fog:0.1"}
[[rungs]]
name = "L0"
attack = "sparse-rs(queries=60)"
threats = {8 = "L0:9", 24 = "L0:1"}
[[rungs]]
name = "flow"
attack = "pgd(steps=6)"
threats = {16 = "stadv(smooth=0.05):2"}
"""

NETWORK = """
from torch import nn
def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
"""


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    path = tmp_path_factory.mktemp("suites") / "few.toml"
    path.write_text(LADDER)
    return path


@pytest.fixture(scope="module")
def results(tmp_path_factory, ladder):
    folder = tmp_path_factory.mktemp("results")
    options = Options(results=folder)
    found = list(run_all(["pgd-at"], [str(ladder)], choose_protocol(None, None, None, 16), None, options))
    return folder, [record.to_dict() for record in found]


@pytest.mark.parametrize("without", ["dataset", "protocol"])
def test_a_ladder_of_threats_needs_no_other_threat(tmp_path, ladder, without, monkeypatch):
    protocol = choose_protocol(None, "digits(size=32)", None, 4, [str(ladder)])
    if without == "protocol":
        monkeypatch.setattr(
            catalog, "protocols", lambda: {"none": dataclasses.replace(protocol, name="none")}
        )
        protocol = choose_protocol("none", None, None, None, [str(ladder)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large_digits.py").write_text(NETWORK)
    options = Options(results=tmp_path, workers=1)
    found = list(run_all(["python:large_digits.build"], [str(ladder)], protocol, None, options))
    # Images of 32 pixels: each run has its threat for this side.
    assert [str(record.job.threat) for record in found] == ["fog:0.1", "L0:1", "stadv(smooth=0.05):2"]
    assert {record.job.n for record in found} == {4}
    with pytest.raises(UsageError, match="fgsm needs a threat, but protocol"):
        list(run_all(["python:large_digits.build"], ["fgsm"], protocol, None, options))


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def test_a_rung_takes_the_radius_of_its_images(results):
    _, records = results
    assert [record["threat"] for record in records] == ["fog:0.5", "L0:9", "stadv(smooth=0.05):2"]
    assert all(record["health"] == [] or record["robust_accuracy"]["value"] < 1 for record in records)
    assert len({record["protocol"] for record in records}) == 3


def test_a_rung_s_record_is_what_a_run_of_its_own_would_leave(results):
    folder, records = results
    notes = []
    again = robench.run(
        defense="pgd-at",
        attack="apgd(steps=6)",
        threat="fog:0.5",
        samples=16,
        results=folder,
        note=notes.append,
    )
    assert again.key == records[0]["key"] and "using the saved record in" in notes[-1]


def test_everything_that_reads_records_reads_these(results, tmp_path):
    folder, _ = results
    records = collect([folder])
    images, defense = load_dataset("digits", "test", 16), load("pgd-at", "digits")
    for record in records:
        assert "at most" in verify(record.folder, defense, images)[-1].detail
        assert picture(record.folder, images, tmp_path / "p.png").stat().st_size > 5000
    assert "fog:0.5" in board(records)
    assert command("board", folder, "--format", "html", "--output", tmp_path / "page") == 0
    assert "fog:0.5" in (tmp_path / "page" / "index.html").read_text("utf-8")
    assert command("check", records[0].folder) == 0


def test_a_run_of_a_ladder_says_each_threat_and_the_mean(results, ladder, capsys):
    folder, records = results
    said = ["run", "--defense", "pgd-at", "--attack", ladder, "--samples", "16", "--results", folder]
    assert command(*said) == 0
    out, err = capsys.readouterr()
    mean = 100 * np.mean([record["robust_accuracy"]["value"] for record in records])
    assert f"{mean:.2f}" in next(line for line in out.splitlines() if line.startswith("mean (mUA)"))
    for threat in ("fog:0.5", "L0:9", "stadv(smooth=0.05):2"):
        assert f", {threat}" in out and f", {threat}" in err


def test_of_several_records_verify_says_which_it_speaks_of(results, capsys):
    folders = [str(record.folder) for record in collect([results[0]])]
    assert command("verify", "-v", *folders) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in folders] == folders
    for record in collect([results[0]]):
        (cost,) = record.attacks
        said = f"holds  attacks.{cost.spec}.survivors: {cost.survivors} "
        assert any(line.startswith(said) for line in lines)


def test_a_certificate_outside_the_budget_is_refused(results, tmp_path):
    folder, _ = results
    record = next(r for r in collect([folder]) if r.job.threat == "fog:0.5")
    copy = tmp_path / "copy"
    shutil.copytree(record.folder, copy)
    tensors = load_file(copy / FILE)
    tensors["grain"] = tensors["grain"] * 1.5
    save_file(tensors, copy / FILE)
    assert read_certificates(copy).delta[:].abs().max() > 0.5
    with pytest.raises(CheckFailed, match=r"adversarials.delta: inside fog:0.5 and the parameters' range"):
        verify(copy, load("pgd-at", "digits"), load_dataset("digits", "test", 16))


def test_the_table_says_each_and_the_mean(results, ladder, monkeypatch):
    folder, records = results
    monkeypatch.setattr(catalog, "suites", lambda: {"few": read(Suite, ladder)})
    (grid,) = unforeseen(collect([folder]), "few")
    cells = {row[0]: row[2].split("\n")[0].removesuffix(" !") for row in grid.rows}
    accuracies = [record["robust_accuracy"]["value"] for record in records]
    assert [float(cells[name]) for name in ("fog", "L0", "flow")] == [
        pytest.approx(100 * a) for a in accuracies
    ]
    assert float(cells["mean (mUA)"]) == pytest.approx(100 * np.mean(accuracies), abs=0.006)
    assert float(cells["all at once"]) <= min(100 * a for a in accuracies)
    assert "mean (mUA)" in render(grid, "text") and "| mean" in render(grid, "md")


def test_a_missing_record_leaves_the_mean_open_and_says_how_to_fill_it(results, ladder, monkeypatch):
    folder, _ = results
    monkeypatch.setattr(catalog, "suites", lambda: {"few": read(Suite, ladder)})
    (grid,) = unforeseen([r for r in collect([folder]) if "fog" not in r.job.threat], "few")
    cells = {row[0]: row[2] for row in grid.rows}
    assert cells["fog"] == cells["mean (mUA)"] == "–"
    assert any(
        "fog of pgd-at-digits: robench run --defense pgd-at-digits --attack few" in note
        for note in grid.notes
    )


def test_the_command_for_a_missing_record_of_another_seed_says_the_seed(results, ladder, monkeypatch):
    folder, _ = results
    monkeypatch.setattr(catalog, "suites", lambda: {"few": read(Suite, ladder)})
    records = [
        dataclasses.replace(record, job=dataclasses.replace(record.job, seed=7))
        for record in collect([folder])
        if "fog" not in record.job.threat
    ]
    (grid,) = unforeseen(records, "few")
    (note,) = [note for note in grid.notes if "robench run" in note]
    assert note.endswith("--seed 7")


@pytest.mark.parametrize("name", ["unforeseen-low", "unforeseen", "unforeseen-high"])
def test_shipped_ladders_name_threats_that_exist_at_every_size(name):
    rungs = catalog.suites()[name].rungs
    assert len(rungs) == 17
    for rung in rungs:
        assert set(rung.threats) == {"16", "32", "224"}
        assert str(rung.threat(28, "")) == str(rung.threat(16, "")) and rung.threat(999, "") == rung.threat(
            224, ""
        )


def test_more_distortion_is_a_larger_radius():
    low, medium, high = (catalog.suites()[f"unforeseen{s}"].rungs for s in ("-low", "", "-high"))
    for one, two, three in zip(low, medium, high, strict=True):
        for side in (16, 32, 224):
            radii = [rung.threat(side, "").eps for rung in (one, two, three)]
            names = {re.sub(":.*", "", str(rung.threat(side, ""))) for rung in (one, two, three)}
            assert radii[0] < radii[1] < radii[2] and len(names) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('threats = {16 = "fgo:1"}', "did you mean fog"),
        ('threats = {small = "fog:1"}', "expected pixels"),
        ("threats = {16 = 3}", "threats.16 = 3: expected a string"),
        ('threats = "fog:1"', "expected a table"),
    ],
)
def test_mistakes_in_a_rung_name_the_file(tmp_path, line, says):
    path = tmp_path / "odd.toml"
    path.write_text(f'[[rungs]]\nname = "a"\nattack = "pgd"\n{line}\n')
    with pytest.raises(UsageError, match=says):
        read(Suite, path)


def test_a_ladder_without_threats_has_no_such_table():
    with pytest.raises(UsageError, match='no ladder of threats "purifier": expected one of unforeseen'):
        unforeseen([], "purifier")
