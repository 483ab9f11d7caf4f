"""Records whose names were written in another way are one with those of today: one row, and they answer."""

import json
from dataclasses import replace

import pytest

import robench
from robench.evaluation.protocol import choose_protocol
from robench.evaluation.run import Options, run_all
from robench.records.collection import collect
from robench.records.jobs import canonical, once
from robench.records.record import SuiteFacts, read_record
from robench.records.store import SUPERSEDED, record_folder, slug
from robench.reports.board import board
from tests.fabricate import make_run

SAMPLES = 8


def play(results, attack="pgd(steps=2)", defense="standard-digits", threat="Linf:0.1", notes=None, **options):
    protocol = choose_protocol(None, "digits", threat, SAMPLES, [attack])
    note = notes.append if notes is not None else lambda text: None
    (record,) = run_all(
        [defense],
        [attack],
        protocol,
        [options.pop("knowledge", "full")],
        Options(results=results, workers=1, note=note, **options),
    )
    return record


def age(record, folder, **names):
    """The record as an older release would have left it: in `folder`, under names as they were typed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    record.folder.rename(folder)
    file = folder / "record.json"
    content = json.loads(file.read_text())
    content["suite"]["name"] = names.get("suite", content["suite"]["name"])
    content["threat"] = names.get("threat", content["threat"])
    content["protocol"] = names.get("protocol", content["protocol"])
    file.write_text(json.dumps(content))
    if "threat" in names:
        job = read_record(folder).job
        content["key"] = job.key
        file.write_text(json.dumps(content))
    return read_record(folder)


SPELLINGS = ["pgd(steps=2)", "pgd(steps=2, eot=1)", "pgd( loss='ce',steps=2 )"]


def test_one_suite_written_in_several_ways_is_one_run_and_one_row(tmp_path):
    notes = []
    records = [play(tmp_path, spelling, notes=notes) for spelling in SPELLINGS]
    assert len({record.folder for record in records}) == 1
    assert sum("using the saved record in" in note for note in notes) == 2
    assert len(collect([tmp_path])) == 1


@pytest.mark.parametrize(
    ("protocol", "suite", "names"),
    [
        ("digits-Linf-0.1-n8", "pgd-steps-2-eot-1", {"suite": "pgd(steps=2, eot=1)"}),
        (
            "digits-Linf-0.10-n8",
            "pgd-steps-2",
            {"threat": "Linf:0.10", "protocol": "digits-Linf-0.10-n8"},
        ),
    ],
)
def test_an_old_record_under_another_spelling_answers_and_gives_one_row(tmp_path, protocol, suite, names):
    first = play(tmp_path)
    old = age(first, tmp_path / protocol / "standard-digits" / suite, **names)
    assert old.job.suite.name == "pgd(steps=2)"
    notes = []
    again = play(tmp_path, notes=notes)
    assert again.folder == old.folder and any(
        f"using the saved record in {old.folder}" in note for note in notes
    )
    text = board(collect([tmp_path]), "md")
    assert text.count("| standard-digits |") == 1 and "digits-Linf-0.1-n8" in text
    # A fresh run takes its place; the old record is kept beside it.
    new = play(tmp_path, fresh=True)
    assert new.folder == first.folder and len(collect([tmp_path])) == 1
    assert old.folder and list((old.folder / SUPERSEDED).glob("*/record.json"))


def test_another_job_beside_it_does_not_answer(tmp_path):
    play(tmp_path, "pgd(steps=3)")
    notes = []
    play(tmp_path, "pgd(steps=2)", notes=notes)
    play(tmp_path, "pgd(steps=2)", threat="Linf:0.2", notes=notes)
    assert not any("saved record" in note for note in notes)
    assert len(collect([tmp_path])) == 3


def test_what_the_attacker_knows_and_the_defense_are_named_once(tmp_path):
    notes = []
    for defense, level in (("mimir", "transfer:standard-digits"), ("mimir-digits", "transfer:standard")):
        record = play(tmp_path, defense=defense, knowledge=level, notes=notes)
    assert record.job.defense.name == "mimir-digits" and record.job.knowledge == "transfer:standard"
    assert sum("using the saved record in" in note for note in notes) == 1


def test_of_records_of_one_job_a_shipped_suites_name_stands_else_the_latest(tmp_path):
    record = make_run(tmp_path, suite=SuiteFacts("apgd+square", ("apgd", "square"))).record()
    record = replace(record, job=canonical(record.job))
    later = replace(record, finished="2999-01-01T00:00:00Z")
    assert once([record, later]) == once([later, record]) == [later]
    named = replace(record, job=replace(record.job, suite=replace(record.job.suite, name="pgd-20")))
    assert once([later, named]) == once([named, later]) == [named]
    elsewhere = replace(record, job=replace(record.job, protocol="elsewhere"))
    assert once([record, elsewhere]) == [record, elsewhere]


def test_names_that_differ_in_a_sign_or_in_letters_left_out_have_folders_of_their_own():
    names = [
        "apgd-mi(weight=0.1)",
        "apgd-mi(weight=-0.1)",
        "x(a=[-1])",
        "x(a=[1])",
        "é",
        "ü",
        "é" * 400,
        "ü" * 400,
    ]
    folders = [record_folder("r", "p", "d", name, "transfer:" + name, 2**63) for name in names]
    assert len(set(folders)) == len(names)
    assert all(len(part.encode()) <= 255 for folder in folders for part in folder.parts)
    assert slug("pgd-mi") == "pgd-mi"


def test_a_suite_with_a_long_name_runs_and_answers(tmp_path):
    attack = "+".join(f"pgd(steps={steps})" for steps in range(1, 41))
    notes = []
    first = robench.run("standard-digits", attack, samples=2, results=tmp_path, workers=1)
    again = robench.run("standard-digits", attack, samples=2, results=tmp_path, workers=1, note=notes.append)
    assert first.folder == again.folder and "saved record" in notes[-1]


@pytest.mark.parametrize(
    ("dataset", "threat", "n", "old", "name"),
    [
        ("digits", "Linf:0.1", 100, "digits-Linf-0.1-n100", "digits-linf-0.1"),
        ("cifar10", "Linf:8/255", 100, "cifar10-Linf-8over255-n100", "cifar10-linf-100"),
        ("digits", "fog:0.4", 100, "digits-fog-0.4-n100", "digits-fog"),
        ("digits", "fog:0.4", 99, "digits-fog-0.4-n99", "digits-fog-0.4-n99"),
    ],
)
def test_a_choice_that_a_shipped_protocol_makes_has_its_name_in_old_records_too(
    tmp_path, dataset, threat, n, old, name
):
    assert choose_protocol(None, dataset, threat, n).name == name
    job = make_run(tmp_path).job
    job = replace(job, protocol=old, threat=threat, n=n, dataset=replace(job.dataset, name=dataset))
    assert canonical(job).protocol == name
