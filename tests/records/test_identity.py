"""Records of one set of weights belong together under any name; other weights, settings and code do not."""

import dataclasses
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robench.engine.outcome import ResultWarning
from robench.records.collection import collect
from robench.records.identity import subjects
from robench.records.record import DefenseFacts
from robench.reports.board import sections
from tests.fabricate import PARAMETERS, make_run
from tests.reports.test_board import with_robust


def facts(name="first", file="b", state="", **changes):
    return DefenseFacts(
        **{
            "name": name,
            "family": "mimir",
            "card_digest": "a" * 64,
            "checkpoint_sha256": file * 64,
            "parameters": PARAMETERS,
            "state_sha256": state * 64,
            **changes,
        }
    )


def a_record(root, defense, correct=20, margins=None, **changes):
    run = make_run(root, defense=defense.name, **changes)
    run = dataclasses.replace(run, job=dataclasses.replace(run.job, defense=defense))
    with_robust(run, correct)
    if margins:
        rows = pq.read_table(run.folder / "samples.parquet")
        place = rows.schema.get_field_index("clean_margin")
        changed = [margins(value) for value in rows["clean_margin"].to_pylist()]
        rows = rows.set_column(place, rows.schema.field(place), pa.array(changed, pa.float32()))
        pq.write_table(rows, run.folder / "samples.parquet")
    return run


def best_known(root):
    return {
        (row.record.job.defense.name, row.record.job.threat): round(30 * row.best_known.value)
        for section in sections(collect([root]))
        for group in section.groups
        for row in group
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(facts(state="c"), facts("renamed", "d", "c"), id="one state in two files"),
        pytest.param(facts(), facts("renamed", state="c"), id="one file, of an older record"),
        pytest.param(facts(), facts("renamed", card_digest="e" * 64), id="one file under two cards"),
        pytest.param(facts(), facts("renamed", "d", "c"), id="an older record and another file"),
    ],
)
def test_another_name_hides_no_stronger_attack(tmp_path, one, other):
    a_record(tmp_path, one, 20)
    a_record(tmp_path, other, 7)
    assert set(best_known(tmp_path).values()) == {7}


@pytest.mark.parametrize(
    ("one", "other", "margins"),
    [
        pytest.param(facts(state="c"), facts("other", "d", "e"), None, id="other states"),
        pytest.param(facts(state="c"), facts("other", "b", "e"), None, id="other settings of one file"),
        pytest.param(facts(state="c"), facts("other", "b", "c"), lambda m: 1.3 * m, id="edited code"),
        pytest.param(facts(), facts("other"), lambda m: 1.3 * m, id="other answers of one file"),
        pytest.param(facts(), facts("other", "d"), lambda m: 1.005 * m, id="answers that are only near"),
        pytest.param(facts(), facts("other", "d", parameters=5), None, id="another number of parameters"),
    ],
)
def test_other_defenses_keep_their_own_best_known(tmp_path, one, other, margins):
    a_record(tmp_path, one, 20)
    a_record(tmp_path, other, 7, margins)
    assert set(best_known(tmp_path).values()) == {20, 7}


def test_a_smaller_radius_bounds_a_larger_one_of_the_same_norm_alone(tmp_path):
    for threat, correct in (("Linf:4/255", 9), ("Linf:8/255", 20), ("Linf:2/255", 25), ("L2:0.001", 3)):
        a_record(tmp_path, facts(threat), correct, threat=threat)
    assert {threat: value for (_, threat), value in best_known(tmp_path).items()} == {
        "Linf:2/255": 25,
        "Linf:4/255": 9,
        "Linf:8/255": 9,
        "L2:0.001": 3,
    }


def test_one_radius_written_in_two_ways_is_one_threat(tmp_path):
    a_record(tmp_path, facts("one"), 20, threat="Linf:8/255")
    a_record(tmp_path, facts("two"), 7, threat="Linf:16/510")
    assert set(best_known(tmp_path).values()) == {7}


def test_other_images_are_other_subjects(tmp_path):
    records = [a_record(tmp_path, facts(), 20).record(), a_record(tmp_path, facts("x"), 20, draw=1).record()]
    assert len(set(subjects(records).values())) == 2


def test_a_record_joins_groups_that_nothing_else_joins(tmp_path):
    a_record(tmp_path, facts("file", "b"), 20)
    a_record(tmp_path, facts("state", "d", "c"), 15)
    a_record(tmp_path, facts("both", "b", "c"), 7)
    assert set(best_known(tmp_path).values()) == {7}


def test_warnings_follow_the_weights(tmp_path):
    a_record(tmp_path, facts("first"), 30)
    a_record(tmp_path, facts("renamed"), 20, knowledge="transfer:another")
    found = {record.job.defense.name: record.health for record in collect([tmp_path])}
    assert [mark.code for mark in found["first"]] == ["transfer-beats-white-box"]


def test_a_diagnosis_holds_under_every_name(tmp_path):
    run = a_record(tmp_path, facts("first"), 20)
    a_record(tmp_path, facts("renamed"), 20)
    a_record(tmp_path, facts("other", "d", parameters=5), 20)
    job = run.job
    content = {
        "schema": 1,
        "defense": {"name": "first", "checkpoint_sha256": job.defense.checkpoint_sha256},
        "dataset": {"name": job.dataset.name, "split": job.dataset.split},
        "threat": job.threat,
        "knowledge": "full",
        "health": [{"code": "zero-gradients", "text": "all of them"}],
    }
    (tmp_path / "diagnosis.json").write_text(json.dumps(content))
    found = {record.job.defense.name: record.health for record in collect([tmp_path])}
    mark = ResultWarning("zero-gradients", "all of them")
    assert found == {"first": (mark,), "renamed": (mark,), "other": ()}
