"""Verify a record from its certificates, with forward passes alone.

This proves that the checkpoint misclassifies the given number of allowed images, so its robust accuracy is at most the
figure. It cannot prove that no stronger attack would lower the figure, nor the fields on trust, which
`robench.verification.fields` lists. Attacking rows again (`robench.verification.replay`) checks more of those.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robench.core.errors import CheckFailed
from robench.core.grouping import grouped
from robench.core.rng import Stream
from robench.data._base import Images
from robench.data._lazy_images import LazyImages
from robench.defenses import Loaded
from robench.engine.batched_model import Network, frozen, undefined
from robench.engine.tolerances import close
from robench.records import estimate
from robench.records import randomized as drawn
from robench.records.certificate_file import tensor_names
from robench.records.certificates import Applied, read_certificates
from robench.records.findings import TIE, Finding, disagreeing, other_margins, rows_hold
from robench.records.record import Record, read_record
from robench.records.samples import read_samples
from robench.verification import (
    corruption,
    costs,
    counts,
    fields,
    identity,
    proofs,
    randomized,
    replay,
    result_warnings,
)
from robench.verification.evidence import Evidence
from robench.verification.replay import Sample

Model = Callable[[Tensor], Tensor]
# Number of certificates in memory at a time.
_PART = 1024
# Tolerance of the distance of an adversarial example, because machines sum in other orders.
_DISTANCE = 1e-6


@dataclass(frozen=True)
class Report:
    """The result of verifying a record.

    Attributes:
        findings: everything that was checked, in order.
        held, failed: fields by their names in the table, or as the failed check names them.
        trusted: maps each field on trust to the reason.
        proven: what is proven about the defense; empty when an earlier check failed.
    """

    findings: tuple[Finding, ...]
    held: tuple[str, ...]
    failed: tuple[str, ...]
    trusted: dict[str, str]
    proven: str

    @property
    def broken(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.held]

    @property
    def trust_lines(self) -> list[str]:
        """The fields on trust, one line per reason."""
        by_reason = grouped(self.trusted, lambda field: self.trusted[field])
        return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]

    def __str__(self) -> str:
        if self.broken:
            return f"FAILED: {len(self.held)} of {len(self.held) + len(self.failed)} checkable fields hold"
        return f"VERIFIED: all {len(self.held)} checkable fields hold; {self.proven}"


def verify(
    folder: Path | str, loaded: Loaded, images: Images, device: torch.device | str = "cpu"
) -> list[Finding]:
    """Verify every figure of a record.

    Args:
        folder: the folder of the record.
        loaded: the defense that the record names, on `device`.
        images: the images of the record's dataset, split and n.

    Returns:
        The findings; the last one states what is proven.

    Raises:
        CheckFailed: naming every field that does not hold.
        ResourceError: when a file of the record is missing or damaged.
    """
    result = report(folder, loaded, images, device)
    broken = [f"{item.field}: {item.detail}" for item in result.broken]
    if broken:
        raise CheckFailed(f"verification of {folder} failed: " + "; ".join(broken))
    return list(result.findings)


def report(
    folder: Path | str,
    loaded: Loaded,
    images: Images,
    device: torch.device | str = "cpu",
    sample: Sample | None = None,
) -> Report:
    """Verify a record, and sort its fields into those that hold, those that fail and those on trust.

    Args:
        sample: rows to attack again; None for none. A run under corruptions is always repeated.

    Raises:
        ResourceError: when a file of the record is missing or damaged.
        UsageError: when its rows cannot be attacked again.
    """
    record = read_record(folder)
    record_folder = record.folder or Path(folder)
    checked = list(findings(folder, loaded.defense, images, loaded=loaded, device=device, sample=sample))
    kind = _kind(record)
    present, _, unknown = fields.split(_names(record, record_folder), kind)
    held, failed, trusted = [], [], {}
    for line in present:
        relevant = [item for item in checked if line.name in _covered(item, kind)]
        if not all(item.held for item in relevant):
            failed.append(line.name)
        elif relevant and (not line.trust or any(line.name in item.covers for item in relevant)):
            held.append(line.name)
        else:
            trusted[line.name] = line.trust or "cannot be checked here"
    # A field may fail because it is missing, or belongs to another kind of record.
    unlisted = [
        item.field for item in checked if not item.held and not set(_covered(item, kind)) & set(failed)
    ]
    failed += dict.fromkeys(unlisted)
    trusted |= dict.fromkeys(unknown, "a field that this release does not know")
    proven = checked[-1].proven if checked else ""
    return Report(tuple(checked), tuple(held), tuple(failed), trusted, proven)


def _covered(finding: Finding, kind: str) -> list[str]:
    """The lines of the table that a finding covers."""
    lines = [fields.decision(name, kind) for name in finding.covers or (finding.field,)]
    return [line.name for line in lines if line]


def _kind(record: Record) -> str:
    if record.corrupted:
        return fields.CORRUPTED
    if estimate.FIELD in record.extra:
        return fields.ESTIMATE
    return fields.RANDOMIZED if drawn.FIELD in record.extra else fields.PLAIN


def _names(record: Record, folder: Path) -> Iterator[str]:
    """Every field of a record, column of its samples and tensor of its certificates."""
    yield from fields.leaves(record.to_dict())
    yield from (f"samples.{name}" for name in read_samples(folder).schema.names)
    if not record.corrupted:
        yield from (f"adversarials.{name}" for name in tensor_names(folder))


def findings(
    folder: Path | str,
    judge: Model,
    images: Images,
    *,
    loaded: Loaded | None = None,
    device: torch.device | str = "cpu",
    sample: Sample | None = None,
) -> Iterator[Finding]:
    """Run the checks of `verify` in order, and yield passed and failed ones.

    Args:
        judge: maps (N, C, H, W) float32 in [0, 1] to logits (N, K), on `device`.
        loaded: the loaded defense; None to skip its checks.
        sample: rows to attack again; requires `loaded`.
    """
    record = read_record(folder)
    record_folder, device = record.folder or Path(folder), torch.device(device)
    yield from identity.findings(record, record_folder, images, loaded)
    _, misplaced, _ = fields.split(_names(record, record_folder), _kind(record))
    for name in misplaced:
        yield Finding(name, False, "a field of another kind of record")
    declared = bool(getattr(judge, "stochastic", False))
    if record.corrupted:
        yield from corruption.findings(record, judge, images, declared, device)
        return
    table = read_samples(record_folder)
    rows = table.to_pydict()
    e = Evidence(record, rows, read_certificates(record_folder), images)
    if loaded is not None:
        random = declared or result_warnings.looks_random(
            judge, images.x, images.ids, record.job.batch_size, device
        )
        detail = f"the defense draws {'' if random else 'no '}noise"
        yield Finding(drawn.FIELD, random == (e.draws > 1), detail, (f"{drawn.FIELD}.draws",))
    aligned = [*counts.aligned(record.job.n, rows, images), *counts.certificates(e)]
    yield from aligned
    if contradictions := list(counts.contradictions(record, table)):
        yield from contradictions
        return
    yield from counts.arithmetic(e)
    yield from costs.findings(e)
    # A forward pass is meaningful only if the images match, row by row.
    if not all(finding.held for finding in aligned):
        return
    *checked, proven = _forward(e, judge, device, declared)
    yield from checked
    yield from proofs.findings(e, loaded, device, sample)
    if sample is not None and loaded is not None:
        yield from replay.findings(e, loaded, device, sample)
    yield proven


def _forward(e: Evidence, judge: Model, device: torch.device, declared: bool) -> Iterator[Finding]:
    """Classify the clean images and the certificates again. The last finding states what they prove."""
    threat, rows, attacked = e.threat, e.rows, e.attacked
    x, labels = e.images.x, e.images.y
    x_adv = Applied(threat, x, e.certificates.delta, e.images.ids, attacked)
    outside, distance = [], {}
    for start in range(0, len(attacked), _PART):
        part = attacked[start : start + _PART]
        points = x_adv.points(list(range(start, start + len(part))))
        inside = threat.contains(x[part], points).tolist()
        outside += [row for row, holds in zip(part, inside, strict=True) if not holds]
        distance |= dict(zip(part, threat.distance(x[part], points).tolist(), strict=True))
    box = "the parameters' range" if threat.name else "[0, 1]"
    covers = ("adversarials.delta", "adversarials.grains", "adversarials.grains_end")
    yield rows_hold("adversarials.delta", outside, f"inside {threat} and {box}", *covers)
    off = [i for i, d in enumerate(rows["distance"]) if not close(d, distance.get(i, 0.0), _DISTANCE)]
    yield rows_hold("samples.distance", off, "distance of the perturbed image")

    batch_size = e.record.job.batch_size
    clean = _first_draw(e, judge, device) if e.draws > 1 else _logits(judge, x, batch_size, device)
    off = other_margins(clean, rows["clean_margin"])
    yield rows_hold("samples.clean_margin", off, "between the two best logits")
    yield from result_warnings.findings(e, clean, declared)
    if e.draws > 1:
        yield from randomized.findings(e, judge, x_adv, device)
        return
    yield _predictions("samples.clean_prediction", clean, rows["clean_prediction"], range(len(x)))
    logits = _logits(judge, x_adv, batch_size, device)
    predictions = [rows["prediction"][i] for i in attacked]
    yield _predictions("samples.prediction", logits, predictions, attacked)
    unattacked = [i for i in range(len(x)) if i not in distance]
    changed = [i for i in unattacked if rows["prediction"][i] != rows["clean_prediction"][i]]
    yield rows_hold("samples.prediction", changed, "images without an attack keep the clean prediction")

    # NaN counts as a wrong answer only if the record has NaN too.
    wrong_margin = _wrong_margin(logits, labels[attacked], predictions)
    refuted = [attacked[i] for i in (~(wrong_margin > -TIE)).nonzero().flatten().tolist()]
    nan_count = int(_by_nan(logits, predictions).sum())
    by_nan = f", {nan_count} of them by NaN" if nan_count else ""
    detail = f"{len(attacked)} stored adversarial examples must give a wrong answer{by_nan}"
    yield rows_hold("adversarials.delta", refuted, detail, *covers)

    clean_margin = _wrong_margin(clean, labels, rows["clean_prediction"])
    wrong = int((wrong_margin > 0).sum()) + int((clean_margin > 0)[unattacked].sum())
    ties = int(((wrong_margin > -TIE) & (wrong_margin <= 0)).sum())
    tied = f" ({ties} more lie on the boundary here)" if ties else ""
    bound = f"{100 * (len(x) - wrong) / len(x):.2f} %"
    detail = f"on these {len(x)} images it is at most {bound}: {wrong} answers are wrong here{tied}"
    proven = f"robust accuracy is at most {bound} on these {len(x)} images"
    yield Finding("robust_accuracy", True, detail, proven=proven)


def _first_draw(e: Evidence, judge: Model, device: torch.device) -> Tensor:
    """Logits (CPU) of a randomized defense on the clean images, in the first draw that its attacks saw."""
    job = e.record.job
    network = Network(judge, job.batch_size, stream=Stream.of(job.seed, "judge"), backs_off=True)
    parts = zip(e.images.x.split(job.batch_size), e.images.ids.split(job.batch_size), strict=True)
    return torch.cat([network.logits(x.to(device), ids.to(device)).cpu() for x, ids in parts])


def _logits(judge: Model, x: Tensor | LazyImages, batch_size: int, device: torch.device) -> Tensor:
    """Logits on the CPU, computed at a fixed batch shape as in the engine, so that they are bit-identical."""
    network = Network(judge, batch_size, backs_off=True)
    with frozen(judge):
        parts = [
            network.logits(batch.to(device), torch.zeros(len(batch), dtype=torch.int64, device=device)).cpu()
            for batch in x.split(batch_size)
        ]
    return torch.cat(parts) if parts else torch.zeros(0, 2)


def _wrong_margin(logits: Tensor, labels: Tensor, recorded: list[int]) -> Tensor:
    """The best wrong logit minus the correct one, (M,).

    NaN counts as infinitely wrong where the record has -1; elsewhere it proves nothing and stays NaN.
    """
    correct = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    margins = (others.amax(1, keepdim=True) - correct).squeeze(1)
    return margins.masked_fill(_by_nan(logits, recorded), torch.inf)


def _by_nan(logits: Tensor, recorded: list[int]) -> Tensor:
    """Rows whose logits are NaN now and in the record, bool (M,)."""
    return undefined(logits) & (torch.tensor(recorded, dtype=torch.int64) == -1)


def _predictions(field: str, logits: Tensor, recorded: list[int], rows: Sequence[int]) -> Finding:
    broken, ties = disagreeing(logits, recorded)
    tied = f", {ties} of them a tie here" if ties else ""
    return rows_hold(field, [rows[i] for i in broken], f"{len(recorded)} predictions{tied}")
