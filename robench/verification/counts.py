"""The rows of a record held against its images, and its figures against the rows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from robench.data._base import Images
from robench.records import randomized as drawn
from robench.records.certificates import is_attacked
from robench.records.findings import Finding, equal, rows_named
from robench.records.record import Record
from robench.records.samples import FILE, input_digests
from robench.statistics.accuracy import Accuracy
from robench.verification.evidence import Evidence


def aligned(job_n: int, rows: dict[str, list[Any]], images: Images) -> Iterator[Finding]:
    """Whether the rows are of these images, one by one."""
    yield equal("n", job_n, len(images), "images that were loaded")
    yield equal("n", job_n, len(rows["id"]), f"rows of {FILE}")
    for name, actual in (
        ("id", images.ids.tolist()),
        ("label", images.y.tolist()),
        ("digest", input_digests(images.x)),
    ):
        yield column(rows, name, actual, "of the images that were loaded")


def column(rows: dict[str, list[Any]], name: str, actual: Sequence[Any], what: str) -> Finding:
    """Whether a column of samples.parquet is what it should be, row by row."""
    claimed = rows[name]
    broken = [i for i, (a, b) in enumerate(zip(claimed, actual, strict=False)) if a != b]
    held = not broken and len(claimed) == len(actual)
    return Finding(f"samples.{name}", held, f"{what}; {rows_named(broken)}")


def accuracies(record: Record, clean: int, robust: int) -> Iterator[Finding]:
    """The two accuracies of every record, from their counts."""
    for name, claimed, correct in (
        ("clean_accuracy", record.clean_accuracy, clean),
        ("robust_accuracy", record.robust_accuracy, robust),
    ):
        true = Accuracy.of(correct, record.job.n)
        yield equal(f"{name}.correct", claimed.correct, true.correct, "counted from the samples")
        yield equal(f"{name}.value", claimed.value, true.value, "correct / n")
        yield equal(f"{name}.interval", claimed.interval, true.interval, "Wilson's, 95 %")


def certificates(e: Evidence) -> Iterator[Finding]:
    """Whether each row that an attack fooled has its certificate, of the right shape and in whole grains."""
    expected = [e.rows["id"][i] for i in e.attacked]
    held = e.certificates.ids.tolist() == expected
    shape = e.threat.origin(e.images.x[:1]).shape[1:]
    held = held and (not expected or e.certificates.delta.shape[1:] == shape)
    detail = f"{len(e.certificates)} certificates for {len(expected)} samples that an attack fooled"
    yield Finding("adversarials.id", held, detail, ("adversarials.id", "adversarials.grains_id"))


def arithmetic(e: Evidence) -> Iterator[Finding]:
    """Figures of the record that are counted from the rows."""
    record, fooled_by = e.record, e.rows["fooled_by"]
    n = len(fooled_by)
    if e.certificates.grain is not None:
        yield equal("adversarials.grain", e.certificates.grain, e.threat.grain[0], f"of {e.threat}")
    right = [a == b for a, b in zip(e.rows["clean_prediction"], e.rows["label"], strict=True)]
    turned = [i for i in range(n) if right[i] == (fooled_by[i] == "clean")]
    detail = f'"clean" stands where the clean prediction is wrong; {rows_named(turned)}'
    yield Finding("samples.fooled_by", not turned, detail)
    known = {"", "clean", "noise", *record.job.suite.attacks}
    strange = [i for i in range(n) if fooled_by[i] not in known]
    yield Finding("samples.fooled_by", not strange, f"attacks of this record; {rows_named(strange)}")
    yield from accuracies(record, sum(right), fooled_by.count(""))
    specs = tuple(cost.spec for cost in record.attacks)
    yield equal("suite.attacks", record.job.suite.attacks, specs, "the attacks that were run", "attacks.spec")
    if e.draws > 1:
        figures = drawn.figures(e.rows, e.draws)
        claimed = record.extra[drawn.FIELD]
        parts = tuple(f"{drawn.FIELD}.{name}" for name in claimed)
        yield equal(drawn.FIELD, claimed, figures, "counted from the samples", *parts)
        return
    for name, fooled in (
        ("clean_draws", [not each for each in right]),
        ("draws", [by != "" for by in fooled_by]),
    ):
        yield column(e.rows, name, fooled, "1 where it is wrong, of one draw")
    yield from _chain(e, sum(right))


def _chain(e: Evidence, left: int) -> Iterator[Finding]:
    """Of a deterministic defense: the survivors of one attack are all that the next one is run on."""
    hits = Counter(name for name in e.rows["fooled_by"] if is_attacked(name))
    for cost in e.record.attacks:
        yield equal(f"attacks.{cost.spec}.attacked", cost.attacked, left, "survivors of the one before")
        # A spec that stands there twice finds nothing new the second time.
        left -= hits.pop(cost.spec, 0)
        yield equal(
            f"attacks.{cost.spec}.survivors", cost.survivors, left, "attacked, less the samples it fooled"
        )
