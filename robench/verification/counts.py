"""Compare the rows of a record with its images, and its figures with the rows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from robench.core.errors import ResourceError
from robench.data._base import Images
from robench.records import randomized as drawn
from robench.records.certificates import is_attacked
from robench.records.collection import check_rows
from robench.records.estimate import NOT_ATTACKED
from robench.records.findings import Finding, equal, rows_hold, rows_named, same_accuracy
from robench.records.record import Record
from robench.records.samples import FILE, input_digests
from robench.statistics.accuracy import Accuracy
from robench.verification import estimated
from robench.verification.evidence import Evidence

if TYPE_CHECKING:
    import pyarrow as pa


def aligned(job_n: int, rows: dict[str, list[Any]], images: Images) -> Iterator[Finding]:
    """Check that each row belongs to its image."""
    yield equal("n", job_n, len(images), "images that were loaded")
    yield equal("n", job_n, len(rows["id"]), f"rows of {FILE}")
    for name, actual in (
        ("id", images.ids.tolist()),
        ("label", images.y.tolist()),
        ("digest", input_digests(images.x)),
    ):
        yield column(rows, name, actual, "of the images that were loaded")


def contradictions(record: Record, table: "pa.Table") -> Iterator[Finding]:
    """A finding if the rows cannot be those of the record, so that nothing can be counted from them."""
    try:
        check_rows(record, table)
    except ResourceError as error:
        yield Finding("samples", False, str(error))


def column(rows: dict[str, list[Any]], name: str, actual: Sequence[Any], what: str) -> Finding:
    """Compare a column of samples.parquet with the expected values, row by row."""
    claimed = rows[name]
    broken = [i for i, (a, b) in enumerate(zip(claimed, actual, strict=False)) if a != b]
    held = not broken and len(claimed) == len(actual)
    return Finding(f"samples.{name}", held, f"{what}; {rows_named(broken)}")


def accuracies(record: Record, clean: int, robust: int) -> Iterator[Finding]:
    """Check clean and robust accuracy against their counts."""
    for name, claimed, correct in (
        ("clean_accuracy", record.clean_accuracy, clean),
        ("robust_accuracy", record.robust_accuracy, robust),
    ):
        yield from same_accuracy(name, claimed, Accuracy.of(correct, record.job.n), "Wilson's, 95 %")


def certificates(e: Evidence) -> Iterator[Finding]:
    """Check that each row that an attack fooled has a certificate of the right shape."""
    expected = [e.rows["id"][i] for i in e.attacked]
    held = e.certificates.ids.tolist() == expected
    shape = e.threat.origin(e.images.x[:1]).shape[1:]
    held = held and (not expected or e.certificates.delta.shape[1:] == shape)
    detail = f"{len(e.certificates)} certificates for {len(expected)} samples that an attack fooled"
    yield Finding("adversarials.id", held, detail, ("adversarials.id", "adversarials.grains_id"))


def arithmetic(e: Evidence) -> Iterator[Finding]:
    """Check the figures of the record that are counted from the rows."""
    record, fooled_by = e.record, e.rows["fooled_by"]
    n = len(fooled_by)
    if e.certificates.grain is not None:
        yield equal("adversarials.grain", e.certificates.grain, e.threat.grain[0], f"of {e.threat}")
    correct = [a == b for a, b in zip(e.rows["clean_prediction"], e.rows["label"], strict=True)]
    mismatched = [i for i in range(n) if correct[i] == (fooled_by[i] == "clean")]
    yield rows_hold("samples.fooled_by", mismatched, '"clean" exactly where the clean prediction is wrong')
    known = {"", "clean", "noise", *record.job.suite.attacks} | ({NOT_ATTACKED} if e.is_estimate else set())
    unknown = [i for i in range(n) if fooled_by[i] not in known]
    yield rows_hold("samples.fooled_by", unknown, "attacks of this record")
    if e.is_estimate:
        yield from estimated.findings(e, sum(correct))
    else:
        yield from accuracies(record, sum(correct), fooled_by.count(""))
    specs = tuple(cost.spec for cost in record.attacks)
    yield equal("suite.attacks", record.job.suite.attacks, specs, "the attacks that were run", "attacks.spec")
    if e.draws > 1:
        figures = drawn.figures(e.rows, e.draws)
        claimed = record.extra[drawn.FIELD]
        parts = tuple(f"{drawn.FIELD}.{name}" for name in claimed)
        yield equal(drawn.FIELD, claimed, figures, "counted from the samples", *parts)
        return
    for name, fooled in (
        ("clean_draws", [not correct for correct in correct]),
        ("draws", [by not in ("", NOT_ATTACKED) for by in fooled_by]),
    ):
        yield column(e.rows, name, fooled, "1 where the answer is wrong")
    yield from _chain(e, sum(correct) - fooled_by.count(NOT_ATTACKED))


def _chain(e: Evidence, left: int) -> Iterator[Finding]:
    """For a deterministic defense, each attack runs on the survivors of the attack before it."""
    hits = Counter(name for name in e.rows["fooled_by"] if is_attacked(name))
    for cost in e.record.attacks:
        what = "survivors of the attack before it" + (" without the proven ones" if e.proven else "")
        yield equal(f"attacks.{cost.spec}.attacked", cost.attacked, left - len(e.proven), what)
        # A spec that is listed twice fools no further sample the second time.
        left -= hits.pop(cost.spec, 0)
        what = "attacked minus the samples that it fooled"
        yield equal(f"attacks.{cost.spec}.survivors", cost.survivors, left, what)
