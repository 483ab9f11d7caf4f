"""Estimates: a suite on a random sample of the images that survive a cheap suite."""

import json
import os
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

import robench
from robench import catalog
from robench.catalog import Suite
from robench.core.errors import ResourceError, UsageError
from robench.data import load_dataset
from robench.defenses import load
from robench.engine import run as engine_run
from robench.evaluation.challenge import challenge
from robench.evaluation.estimate import Sampling
from robench.records.collection import collect
from robench.records.estimate import NOT_ATTACKED, OUTSIDE, Estimate, random_order
from robench.records.prune import waste
from robench.records.record import stable_digest
from robench.records.samples import read_samples
from robench.records.submission import Submission
from robench.reports.board import Choice, board
from robench.statistics.sampling import Sample
from robench.verification.verify import report
from tests.verification import forge

N, DEFENSE, SUITE = 40, "pgd-at-digits", "apgd(steps=4)"


@pytest.fixture(autouse=True)
def weak_screen(monkeypatch):
    """A suite that misses some of the images that `SUITE` fools."""
    monkeypatch.setitem(catalog.suites(), "quick", Suite("quick", ["fgsm"]))


def run(results, suite=SUITE, workers=1, **options):
    options["workers"] = workers
    return robench.run(
        DEFENSE, suite, dataset="digits", threat="Linf:0.1", samples=N, results=results, **options
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Records of the screen, of an estimate, and the beginning of the suite's run."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalog.suites(), "quick", Suite("quick", ["fgsm"]))
        return folder, run(folder, estimate=9)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


def test_some_images_are_left_and_the_interval_holds_the_whole_run(results, whole):
    record = results[1]
    rows = read_samples(record.folder).to_pydict()
    of_whole = read_samples(whole.folder).to_pydict()
    left = rows["fooled_by"].count(NOT_ATTACKED)
    assert left and 0 < record.extra["estimate"]["attacked"] < record.extra["estimate"]["survivors"]
    low, high = record.robust_accuracy.interval
    assert low <= whole.robust_accuracy.value <= high and 50 * (high - low) <= 9
    same = [a == b for a, b in zip(rows["fooled_by"], of_whole["fooled_by"], strict=True)]
    assert [i for i in range(N) if not same[i]] == [
        i for i, by in enumerate(rows["fooled_by"]) if by == NOT_ATTACKED
    ]
    assert record.health[0].code == "estimate" and record.job.suite.name == f"{SUITE} (estimate)"


def test_the_whole_run_goes_on_from_it_and_gives_the_same_bytes(tmp_path, whole, monkeypatch):
    attacked = []
    loop = engine_run.Loop
    monkeypatch.setattr(
        engine_run, "Loop", lambda context, rows, found: attacked.extend(rows) or loop(context, rows, found)
    )
    estimate = run(tmp_path, estimate=9)
    attacked.clear()
    after = run(tmp_path)
    assert after.files == whole.files
    assert stable_digest(after.to_dict()) == stable_digest(whole.to_dict())
    rows = read_samples(tmp_path / estimate.folder.relative_to(tmp_path).parent / after.folder.name)
    assert (
        len(attacked)
        == len(set(attacked))
        == estimate.extra["estimate"]["survivors"] - (estimate.extra["estimate"]["attacked"])
    )
    assert len(rows) == N
    # The whole run replaces the estimate, and answers a later one.
    assert not (estimate.folder / "record.json").exists()
    assert run(tmp_path, estimate=9).job.suite.name == SUITE


def test_a_killed_estimate_resumes_to_the_same_record(results, tmp_path):
    def interrupt(progress):
        if any(tmp_path.rglob("share-1-of-*/state")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, estimate=9, progress=interrupt)
    assert not any(tmp_path.rglob("*-estimate/record.json"))
    record = run(tmp_path, estimate=9)
    assert record.files == results[1].files
    assert stable_digest(record.to_dict()) == stable_digest(results[1].to_dict())


@pytest.mark.slow
def test_spawned_processes_give_the_same_record(results, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "fork")
    record = run(tmp_path, estimate=9, workers=2)
    assert record.files == results[1].files


def test_a_narrower_estimate_goes_on_from_a_wider_one(results, tmp_path):
    wide = run(tmp_path, estimate=9)
    narrow = run(tmp_path, estimate=0.1)
    figures = narrow.extra["estimate"]
    assert figures["attacked"] == figures["survivors"] > wide.extra["estimate"]["attacked"]
    low, high = narrow.robust_accuracy.interval
    assert low == high == narrow.robust_accuracy.value
    assert not list(waste(tmp_path, ["partial"])), "a run of the whole suite continues its partial results"
    assert run(tmp_path).robust_accuracy.value == narrow.robust_accuracy.value


def test_verify_proves_the_figures_and_the_order_of_the_sample(results, tmp_path):
    record = results[1]
    loaded, images = load(DEFENSE, "digits"), load_dataset("digits", "test", N)
    verified = report(record.folder, loaded, images)
    assert not verified.broken
    assert {"estimate.attacked", "robust_accuracy.interval", "samples.order"} <= set(verified.held)


@pytest.mark.parametrize("column", ["order", "fooled_by"])
def test_verify_refuses_a_sample_of_convenient_images(results, tmp_path, column):
    record = results[1]
    loaded, images = load(DEFENSE, "digits"), load_dataset("digits", "test", N)
    rows = read_samples(record.folder).to_pydict()
    drawn = [i for i, by in enumerate(rows["fooled_by"]) if rows["order"][i] != OUTSIDE and by == ""]
    left = rows["fooled_by"].index(NOT_ATTACKED)
    folder = forge.copied(record, tmp_path / "forged")
    forge.set_rows(folder, {column: {drawn[0]: rows[column][left], left: rows[column][drawn[0]]}})
    assert "samples.order" in report(folder, loaded, images).failed


def as_a_run(content):
    """The name and the settings of a run on all images."""
    content.update(health=[])
    content["suite"]["name"] = SUITE
    del content["half_width"]


@pytest.mark.parametrize(
    ("change", "field"), [(lambda content: content.update(health=[]), "health"), (as_a_run, "half_width")]
)
def test_an_estimate_that_hides_what_it_is_is_neither_ranked_nor_verified(results, tmp_path, change, field):
    folder = forge.copied(results[1], tmp_path / "p" / "d" / "s")
    content = forge.read(folder)
    change(content)
    forge.write(folder, content)
    (record,) = collect([tmp_path])
    assert [warning.code for warning in record.health] == ["estimate"] and record.is_estimate
    assert "not ranked: estimate" in board(collect([tmp_path]), width=200, choice=Choice(more=True))
    found = report(folder, load(DEFENSE, "digits"), load_dataset("digits", "test", N))
    assert {"health", field} <= {finding.field for finding in found.broken}
    # The headline counts fields that the record lacks.
    assert {"health", field} <= set(found.failed) and "health" not in found.trusted
    assert (
        str(found)
        == f"FAILED: {len(found.held)} of {len(found.held) + len(found.failed)} checkable fields hold"
    )


def test_a_challenge_of_an_estimate_is_no_estimate(results, tmp_path):
    loaded, images = load(DEFENSE, "digits"), load_dataset("digits", "test", N)
    new = challenge(
        results[1], Submission(images.x[:], None), "me", loaded, images, torch.device("cpu"), tmp_path
    )
    assert not new.is_estimate and not report(new.folder, loaded, images).broken


def test_rows_of_an_estimate_without_its_figures_are_refused(results, tmp_path):
    folder = forge.copied(results[1], tmp_path / "p" / "d" / "s")
    content = forge.read(folder)
    as_a_run(content)
    figures = content.pop("estimate")
    forge.write(folder, content)
    (left,) = collect([tmp_path]).left_out
    assert "samples.parquet is from an estimate" in left.reason
    pq.write_table(
        pq.read_table(folder / "samples.parquet").drop_columns(["order"]), folder / "samples.parquet"
    )
    forge.write(folder, content)
    (left,) = collect([tmp_path]).left_out
    assert "rows that were not attacked" in left.reason
    forge.write(folder, {**content, "estimate": figures})
    (left,) = collect([tmp_path]).left_out
    assert "samples.parquet is not from an estimate" in left.reason
    found = report(folder, load(DEFENSE, "digits"), load_dataset("digits", "test", N))
    assert [finding.field for finding in found.broken] == ["samples"]


@pytest.mark.parametrize("format", ["text", "md", "csv", "latex", "json"])
def test_boards_mark_an_estimate_and_do_not_rank_it(results, format):
    text = board(collect([results[0]]), format, width=200, choice=Choice(more=True)).replace("\\", "")
    assert "not ranked: estimate" in text and "(estimate)" in text


def test_the_best_known_accuracy_is_what_is_proven_and_not_the_estimate(results):
    rows = {row["suite"]: row for row in json.loads(board(collect([results[0]]), "json"))["rows"]}
    estimate = rows[f"{SUITE} (estimate)"]
    at_most = results[1].extra["estimate"]["at_most"]["value"]
    assert estimate["best_known"] == pytest.approx(100 * at_most) and estimate["rank"] is None


def test_what_cannot_be_estimated_is_refused_in_one_line(tmp_path):
    for suite, match in (("quick", "starts from quick"), ("pgd-mi(group=2)", "needs all images at once")):
        with pytest.raises(UsageError, match=match):
            run(tmp_path, suite, estimate=1)
    with pytest.raises(UsageError, match="deterministic defenses only"):
        robench.run(
            "de3-digits", SUITE, dataset="digits", threat="Linf:0.1", samples=2, results=tmp_path, estimate=1
        )


def test_the_beginning_of_a_whole_run_is_not_lost(tmp_path):
    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=interrupt)
    with pytest.raises(ResourceError, match="finish it without --estimate"):
        run(tmp_path, estimate=9)


def test_the_order_depends_on_the_seed_and_the_ids_alone():
    ids = [3, 8, 1, 40, 7]
    assert sorted(random_order(ids, 0)) == [0, 1, 2, 3, 4]
    assert random_order(ids, 0) == random_order(ids, 0) != random_order(ids, 1)
    # Of another order of the same images, each keeps its position.
    assert random_order(ids[::-1], 0) == random_order(ids, 0)[::-1]


def test_a_sampling_deals_every_image_once_and_looks_where_the_interval_may_be_narrow():
    survives = [i % 3 == 0 for i in range(1200)]
    sampling = Sampling.of(survives, list(range(1200)), 0, 50)
    assert [place == OUTSIDE for place in sampling.order] == [not s for s in survives]
    assert sampling.drawn[sampling.certain] == 0 and sampling.drawn[sampling.count] == 400
    start = Estimate(1200, 0, Sample(400, 0, 0))
    first = sampling.next(start, sampling.certain, 1.0)
    at = replace(start, sample=Sample(400, sampling.drawn[first], 0))
    before = replace(start, sample=Sample(400, sampling.drawn[first - 1], 0))
    assert at.half_width <= 1.0 < before.half_width
    # With an image fooled, more are needed.
    assert sampling.next(replace(at, sample=replace(at.sample, ones=1)), first, 1.0) > first
