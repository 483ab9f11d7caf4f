"""Prove images again that a record counts as robust without an attack."""

from collections.abc import Iterator

import torch

from robench.certification import Case
from robench.core.errors import UsageError
from robench.defenses import Loaded
from robench.engine.batched_model import frozen
from robench.engine.knowledge import Attacker
from robench.engine.setup import Setup
from robench.evaluation.certify_first import check_method
from robench.records.findings import Finding, equal, rows_hold
from robench.verification.evidence import Evidence
from robench.verification.replay import Sample

FIELD, COLUMN = "proven", "samples.proven_by"
# Images that are proven again if the user does not say how many.
SAMPLE = 10


def findings(
    e: Evidence, loaded: Loaded | None, device: torch.device, sample: Sample | None
) -> Iterator[Finding]:
    """Check what a record says about proven images, and prove some of them again; nothing for other records."""
    claimed = e.record.extra.get(FIELD)
    column = e.rows.get("proven_by")
    if claimed is None and column is None:
        return
    if claimed is None or column is None:
        yield Finding(
            FIELD, False, "the record and its samples must both say what is proven", (f"{FIELD}.by", COLUMN)
        )
        return
    yield equal(f"{FIELD}.images", claimed["images"], len(e.proven), "counted from the samples")
    others = sorted({column[row] for row in e.proven} - {claimed["by"]})
    yield Finding(
        f"{FIELD}.by",
        not others,
        f"the certifier of all proven images; others: {', '.join(others) or 'none'}",
    )
    fooled = [row for row in e.proven if e.rows["fooled_by"][row] != ""]
    yield rows_hold(COLUMN, fooled, "no image is both proven and fooled")
    if loaded is None or not e.proven:
        return
    sample = sample or Sample.of(SAMPLE, None)
    rows = [e.proven[k] for k in sample.rows([e.rows["id"][row] for row in e.proven])]
    setup = Setup.of(loaded.defense, Attacker(), e.record.job, device)
    case = Case(loaded, e.images, setup, e.threat)
    try:
        _, certifier = check_method(claimed["by"], e.threat)
        with frozen(loaded.defense):
            certifier.check(case)
            bounds = certifier.bounds(case, rows)
    except UsageError as error:
        yield Finding(COLUMN, False, str(error))
        return
    proven = (bounds.radius > e.threat.eps) & (bounds.prediction == e.images.y[rows].cpu())
    open_rows = [row for row, holds in zip(rows, proven.tolist(), strict=True) if not holds]
    yield rows_hold(COLUMN, open_rows, f"{len(rows)} of {len(e.proven)} proven images are proven again")
