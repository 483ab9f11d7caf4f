"""Doubts that come from other records: an attacker who knows less must not do better."""

import json
from dataclasses import replace

import pytest

from robench.records.collection import collect
from robench.records.store import aside, record_folder
from tests.fabricate import make_run


def write(root, knowledge, robust, suite="autoattack"):
    """A record on one set of images in which the samples of `robust` (places) alone survive."""
    run = make_run(root, knowledge=knowledge, defense="mimir-digits")
    outcome = run.outcome
    names = ["" if i in robust else "clean" if i % 7 == 0 else run.job.suite.attacks[0] for i in range(30)]
    x_adv = run.images.x.clone()
    for i, name in enumerate(names):
        if name not in ("", "clean"):
            x_adv[i] = outcome.x_adv[i]
    outcome = replace(
        outcome, fooled_by=names, robust=outcome.robust.new_tensor([not name for name in names])
    )
    replace(run, outcome=outcome).write()


def codes(root):
    return {record.job.knowledge: [mark.code for mark in record.health] for record in collect([root])}


@pytest.mark.parametrize("level", ["oblivious", "transfer:standard"])
def test_images_that_only_an_ignorant_attacker_fools_are_a_mark_on_the_white_box_row(tmp_path, level):
    write(tmp_path, "full", {1, 2, 3, 4})
    write(tmp_path, level, {1, 2, 5, 6})
    assert codes(tmp_path) == {"full": ["transfer-beats-white-box"], level: []}
    (record,) = [each for each in collect([tmp_path]) if each.job.knowledge == "full"]
    assert "fooled 2 images that survived every white-box attack" in record.health[0].text


def test_one_image_is_chance_and_another_white_box_attack_may_have_it(tmp_path):
    write(tmp_path, "full", {1, 2, 3, 4})
    write(tmp_path, "oblivious", {1, 2, 3, 5})
    assert codes(tmp_path)["full"] == []
    write(tmp_path / "more", "full", {1, 2, 3, 4})
    write(tmp_path / "more", "oblivious", {5})
    assert codes(tmp_path / "more")["full"] == ["transfer-beats-white-box"]
    write(tmp_path / "more", "bpda", {5, 6})
    assert codes(tmp_path / "more") == {"full": [], "bpda": [], "oblivious": []}


def test_less_knowledge_that_finds_less_is_no_mark(tmp_path):
    write(tmp_path, "full", {1})
    write(tmp_path, "oblivious", set(range(1, 20)))
    assert codes(tmp_path) == {"full": [], "oblivious": []}


@pytest.mark.parametrize(
    ("folder", "counts"),
    [
        ("diagnosis", True),
        ("diagnosis@bpda+seed3", True),
        ("diagnosis+seed1", True),
        ("autoattack", False),
        ("diagnosis-of-another", False),
    ],
)
def test_a_diagnosis_counts_only_in_a_folder_of_its_own(tmp_path, folder, counts):
    write(tmp_path, "full", {1})
    (record,) = collect([tmp_path])
    content = {**record.to_dict(), "schema": 1, "health": [{"code": "zero-gradients", "text": "none"}]}
    place = tmp_path / "digits-linf" / "mimir-digits" / folder
    place.mkdir(exist_ok=True)
    (place / "diagnosis.json").write_text(json.dumps(content))
    assert codes(tmp_path) == {"full": ["zero-gradients"] if counts else []}
    assert aside([folder]) is counts


def test_the_runs_of_a_diagnosis_of_any_seed_are_aside(tmp_path):
    for knowledge in ("full", "bpda"):
        for seed in (0, 1):
            assert aside(record_folder(tmp_path, "p", "d", "diagnosis", knowledge, seed).parts)
