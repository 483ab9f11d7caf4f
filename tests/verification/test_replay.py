"""Rows attacked again: the same ones come out the same, false ones are found, and the odds are those of the sample."""

import dataclasses
from itertools import combinations

import pytest
import torch

import robench
from robench.cli.main import main
from robench.core.errors import UsageError
from robench.data import load_dataset
from robench.defenses import load
from robench.records.samples import read_samples
from robench.verification import replay
from robench.verification.replay import COLUMNS, REPLAYED, Sample, attack_again, missed
from robench.verification.verify import report
from tests.verification import forge
from tests.verification.conftest import KINDS

ATTACKED = [kind for kind in KINDS if kind != "corrupted"]


@pytest.mark.parametrize("kind", ATTACKED)
@pytest.mark.parametrize("count", [3, 100])
def test_rows_come_out_the_same(made, kind, count):
    one = made(kind)
    found = report(one.record.folder, one.loaded, one.images, sample=Sample(count, 7))
    assert found.broken == []
    assert any(each.field == REPLAYED and "seed 7" in each.detail for each in found.findings)
    names = {f"samples.{name}" for name in COLUMNS} | {"health", "attacks.forward", "passes"}
    # When all are attacked again, nothing of them is left to trust.
    assert names.isdisjoint(found.trusted) if count == 100 else names <= set(found.trusted)


@pytest.mark.parametrize("spec", ["pgd-mi(steps=3, group=8)", "apgd-feature(steps=3)"])
def test_attacks_that_look_at_other_images_see_the_whole_run(spec, tmp_path):
    record = robench.run(
        "mimir", spec, dataset="digits", samples=24, threat="Linf:0.1", results=tmp_path, workers=1
    )
    images, loaded = load_dataset("digits", "test", 24), load("mimir", "digits")
    rows = read_samples(record.folder or tmp_path).to_pydict()
    again = attack_again(record.job, loaded, images, [2, 11, 23], torch.device("cpu"))
    for name in COLUMNS:
        for i in (2, 11, 23):
            assert getattr(again, name)[i] == rows[name][i]


@pytest.mark.parametrize("change", [{"seed": 5}, {"threat": "Linf:0.11"}])
def test_another_job_does_not_come_out_the_same(made, tmp_path, change):
    one = made("plain")
    folder = forge.copied(one.record, tmp_path / "forged")
    forge.write(folder, forge.read(folder) | change)
    found = report(folder, one.loaded, one.images, sample=Sample(16, 0))
    assert REPLAYED in {each.field for each in found.broken}


def test_elsewhere_a_few_verdicts_may_differ_and_the_odds_say_so(made, tmp_path):
    one = made("plain")
    folder = forge.copied(one.record, tmp_path / "elsewhere")
    content = forge.read(folder)
    forge.write(folder, content | {"device": "cuda: NVIDIA H200"})
    found = report(folder, one.loaded, one.images, sample=Sample(5, 0))
    (line, odds) = [each.detail for each in found.findings if each.field == REPLAYED]
    assert found.broken == [] and "same verdict and attack" in line and "may differ" in line
    assert "find too few of them" in odds


def test_the_odds_are_those_of_drawing_without_putting_back():
    rows, false, drawn = 9, 3, 4
    for allowed in (0, 1):
        samples = list(combinations(range(rows), drawn))
        few = sum(sum(row < false for row in sample) <= allowed for sample in samples)
        assert missed(rows, false, drawn, allowed) == pytest.approx(few / len(samples))
    assert missed(10, 1, 10) == 0


def test_a_sample_is_drawn_by_its_seed_and_by_chance_without_one():
    ids = list(range(100, 200))
    assert Sample.of(10, 3).rows(ids) == Sample(10, 3).rows(ids) != Sample(10, 4).rows(ids)
    assert (
        Sample(10, 3).rows(ids) == sorted(set(Sample(10, 3).rows(ids))) and len(Sample(10, 3).rows(ids)) == 10
    )
    assert len({Sample.of(5, None).seed for _ in range(5)}) > 1
    assert set(Sample(3, 1).rows(ids)) < set(Sample(10, 1).rows(ids))


def test_an_attack_on_all_images_at_once_is_refused(made):
    one = made("plain")
    job = dataclasses.replace(
        one.record.job,
        suite=dataclasses.replace(one.record.job.suite, attacks=('reference(attack="apgd-ce")',)),
    )
    with pytest.raises(UsageError, match="takes all images in one call"):
        attack_again(job, one.loaded, one.images, [0], torch.device("cpu"))


def verified(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["verify", *map(str, arguments)])
    return end.value.code


def test_the_command_says_the_result_first(made, capsys, tmp_path):
    one = made("plain")
    assert verified(one.record.folder, "--replay", "4", "--replay-seed", "11") == 0
    first, *rest = capsys.readouterr().out.splitlines()
    robust = 100 * one.record.robust_accuracy.value
    assert first.startswith("VERIFIED: all ") and first.endswith(" on these 16 images")
    assert f"robust accuracy is at most {robust:.2f} % on these 16 images" in first
    assert "4 of 4 images attacked again (seed 11)" in rest[0] and "miss them" in rest[1]
    # The fields on trust follow, one reason a line.
    assert (
        rest[2] == "not checked (on trust):"
        and "  attacks.attacked, attacks.survivors: counted from samples.fooled_by" in rest
    )
    assert all(line.startswith("  ") and ": " in line for line in rest[3:])
    assert verified("-v", one.record.folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("holds  samples.distance") for line in lines)
    assert any(line.startswith("  seed: ") for line in lines)


def test_of_several_records_each_is_named_and_a_failure_is_the_exit_code(made, capsys, tmp_path):
    one, two = made("plain"), made("corrupted")
    folder = forge.copied(one.record, tmp_path / "forged")
    forge.write(folder, forge.read(folder) | {"n": 15})
    forge.write(folder, {**forge.read(folder), "n": 16, "key": "0" * 64}, ())
    assert verified(folder, two.record.folder, one.record.folder) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line for line in lines if line in map(str, (folder, two.record.folder, one.record.folder))] == [
        str(folder), str(two.record.folder), str(one.record.folder)
    ]  # fmt: skip
    assert sum(line.startswith("VERIFIED") for line in lines) == 2
    assert any(line.startswith("FAILED: ") for line in lines) and any(
        line.startswith("FAILS  key") for line in lines
    )
    assert " failed: key" in err and "Traceback" not in err


def test_the_tolerance_is_none_on_the_same_machine(made):
    one = made("plain")
    assert replay.same_machine(one.record, torch.device("cpu"))
    other = dataclasses.replace(one.record, platform={**one.record.platform, "torch": "1.0"})
    assert not replay.same_machine(other, torch.device("cpu"))
