"""Records of one set of weights belong together under any name; other weights, settings and code do not."""

import dataclasses
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.engine.outcome import ResultWarning
from robench.records.collection import collect
from robench.records.identity import Traits, connected, same, subjects
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
    (tmp_path / "diagnosis").mkdir()
    (tmp_path / "diagnosis" / "diagnosis.json").write_text(json.dumps(content))
    found = {record.job.defense.name: record.health for record in collect([tmp_path])}
    mark = ResultWarning("zero-gradients", "all of them")
    assert found == {"first": (mark,), "renamed": (mark,), "other": ()}


@st.composite
def some_traits(draw):
    """Traits of a few defenses, most of which differ in a little."""
    margins = st.lists(
        st.sampled_from([0.0, 1.0, 1.00005, 1.004, 1.009, 1.02, 1.03, -1.0, 40.0, 40.3, math.inf, math.nan]),
        min_size=2,
        max_size=2,
    )
    randomised = draw(st.booleans())
    return Traits(
        images=("d" * 64, 2, False, randomised),
        defense=facts(
            name=draw(st.sampled_from(["one", "two"])),
            file=draw(st.sampled_from(["", "b", "c"])),
            state=draw(st.sampled_from(["", "d", "e"])),
            parameters=draw(st.sampled_from([None, 5])),
        ),
        seed=draw(st.integers(0, 1)) if randomised else 0,
        margins=draw(st.none() | margins.map(lambda values: np.array(values, np.float32))),
    )


def partition(numbers):
    return {frozenset(i for i, other in enumerate(numbers) if other == number) for number in numbers}


def pairwise(distinct):
    """The numbers of `connected`, from every pair."""
    numbers = list(range(len(distinct)))
    for i, one in enumerate(distinct):
        for j, other in enumerate(distinct[:i]):
            if same(one, other):
                numbers = [numbers[j] if number == numbers[i] else number for number in numbers]
    return numbers


@settings(max_examples=300)
@given(st.lists(some_traits(), max_size=12))
def test_the_index_finds_every_pair(distinct):
    assert partition(connected(distinct)) == partition(pairwise(distinct))


@given(some_traits(), some_traits())
def test_equal_identities_are_one_defense(one, other):
    assert same(one, other) == same(other, one)
    assert one.identity != other.identity or same(one, other)


def test_one_image_in_a_thousand_may_differ_wherever_it_is():
    near = np.linspace(0, 9, 2500, dtype=np.float32)
    for changed in ([0, 1], [0, 2499], [7]):
        far = near.copy()
        far[changed] += 1
        one, other, another = (
            Traits(("d" * 64, 2500, False, False), facts(name), 0, margins)
            for name, margins in (("one", near), ("other", far), ("another", near[::-1].copy()))
        )
        assert partition(connected([one, other, another])) == {frozenset({0, 1}), frozenset({2})}
    far[[0, 1, 2]] += 1
    assert len(partition(connected([one, Traits(one.images, facts(), 0, far)]))) == 2
