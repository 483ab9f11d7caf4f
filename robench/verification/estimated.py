"""Recompute an estimate from the rows, and check that its sample is the first part of the seeded order."""

from collections.abc import Iterator

from robench.records import estimate
from robench.records.estimate import NOT_ATTACKED, OUTSIDE, Estimate
from robench.records.findings import Finding, equal, same_accuracy
from robench.statistics.accuracy import Accuracy
from robench.verification.evidence import Evidence


def findings(e: Evidence, clean: int) -> Iterator[Finding]:
    """Check the accuracies, the counts and the sample of an estimate.

    Args:
        clean: number of images that are classified correctly without an attack.
    """
    record, rows = e.record, e.rows
    if estimate.ORDER not in rows:
        yield Finding(f"samples.{estimate.ORDER}", False, "the column is missing")
        return
    expected = Estimate.of(rows["fooled_by"], rows[estimate.ORDER])
    clean_accuracy = Accuracy.of(clean, record.job.n)
    yield from same_accuracy("clean_accuracy", record.clean_accuracy, clean_accuracy, "Wilson's, 95 %")
    what = "a confidence sequence without replacement, 95 %"
    yield from same_accuracy("robust_accuracy", record.robust_accuracy, expected.accuracy, what)
    claimed = {name: value for name, value in record.extra[estimate.FIELD].items() if name != "screen"}
    covers = tuple(f"{estimate.FIELD}.{name}" for name in claimed)
    yield equal(estimate.FIELD, claimed, expected.figures(), "counted from the samples", *covers)
    yield _order(e, expected.sample.drawn)
    codes = [warning.code for warning in record.health]
    yield Finding("health", estimate.WARNING in codes, f"has the warning {estimate.WARNING}")
    named = record.job.half_width > 0 and record.job.suite.name.endswith(estimate.SUFFIX)
    yield Finding(
        "half_width", named, f"above 0, and suite.name ends in{estimate.SUFFIX}, as for every estimate"
    )


def _order(e: Evidence, drawn: int) -> Finding:
    """Whether the images are in the random order of the seed, and the first of them are attacked."""
    order, ids = e.rows[estimate.ORDER], e.rows["id"]
    inside = [i for i, place in enumerate(order) if place != OUTSIDE]
    expected = estimate.random_order([ids[i] for i in inside], e.record.job.seed)
    in_order = [order[i] for i in inside] == expected
    left = [i for i, by in enumerate(e.rows["fooled_by"]) if by == NOT_ATTACKED]
    held = in_order and left == [i for i in inside if order[i] >= drawn]
    detail = f"the first {drawn} of {len(inside)} images in the random order of the seed are attacked"
    return Finding(f"samples.{estimate.ORDER}", held, detail)
