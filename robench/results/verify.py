"""Re-check a record from its certificates, by forward passes alone.

What it proves: this checkpoint gives wrong answers on so many allowed images, so its robust accuracy is at
most the figure. What it cannot prove: that no stronger attack would lower it, or what the run cost.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robench.data._base import Images
from robench.defenses import Loaded
from robench.engine.knowledge import asks_judge
from robench.engine.network import Judge, Network
from robench.errors import CheckFailed
from robench.random import Stream
from robench.results import draws as drawn
from robench.results import samples as samples_file
from robench.results.certificates import Certificates, is_attacked, read_certificates
from robench.results.record import Record, read_record
from robench.results.samples import input_digests, read_samples
from robench.results.statistics import Accuracy
from robench.threat import Threat

Model = Callable[[Tensor], Tensor]

# Other devices and batch shapes round logits elsewhere; an attack stops at the boundary, where that can turn
# a verdict. A difference of logits below this is called a tie and said so, never counted as proven.
TIE = 1e-3


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        field: of the record, "robust_accuracy.value" say, or the file it lies in.
        held: whether it is as the record says.
        detail: one sentence with the figures.
    """

    field: str
    held: bool
    detail: str

    def __str__(self) -> str:
        return f"{'holds' if self.held else 'FAILS'}  {self.field}: {self.detail}"


@dataclass(frozen=True)
class _Evidence:
    record: Record
    rows: dict[str, list[Any]]
    certificates: Certificates
    images: Images
    folder: Path

    @property
    def threat(self) -> Threat:
        return Threat.parse(self.record.job.threat)

    @property
    def draws(self) -> int:
        """Of the judge: 1 for a deterministic defense."""
        return self.record.extra.get(drawn.FIELD, {}).get("draws", 1)

    @property
    def attacked(self) -> list[int]:
        """Which rows carry a certificate."""
        return [i for i, name in enumerate(self.rows["fooled_by"]) if is_attacked(name)]


def verify(
    folder: Path | str, loaded: Loaded, images: Images, device: torch.device | str = "cpu"
) -> list[Finding]:
    """Re-check every figure of a record.

    Args:
        folder: the record's.
        loaded: the defense that it names, on `device`.
        images: those of the record's data set, split and n.

    Returns:
        What was checked; the last one says what is proven.

    Raises:
        CheckFailed: naming every field that does not hold.
        ResourceError: when a file of the record is missing or damaged.
    """
    digests = {"card_digest": loaded.card_digest, "checkpoint_sha256": loaded.checkpoint_sha256}
    found = list(findings(folder, loaded.defense, images, device=device, **digests))
    broken = [f"{item.field}: {item.detail}" for item in found if not item.held]
    if broken:
        raise CheckFailed(f"{folder} does not hold. " + "; ".join(broken))
    return found


def findings(
    folder: Path | str,
    judge: Model,
    images: Images,
    *,
    card_digest: str | None = None,
    checkpoint_sha256: str | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Finding]:
    """The checks of `verify` one after the other, those that fail included.

    Args:
        judge: (N, C, H, W) float32 in [0, 1] to logits (N, K), on `device`.
        card_digest, checkpoint_sha256: of the defense that was loaded; None to leave unchecked.
    """
    record = read_record(folder)
    place = record.folder or Path(folder)
    rows = read_samples(place).to_pydict()
    evidence = _Evidence(record, rows, read_certificates(place), images, place)
    yield from _identity(evidence, card_digest, checkpoint_sha256)
    aligned = list(_rows(evidence))
    yield from aligned
    yield from _arithmetic(evidence)
    # Without the same images, row by row, a forward pass would compare unlike things.
    if all(finding.held for finding in aligned):
        yield from _replay(evidence, judge, torch.device(device))


def _identity(e: _Evidence, card_digest: str | None, checkpoint_sha256: str | None) -> Iterator[Finding]:
    defense = e.record.job.defense
    yield _equal("key", e.record.key, e.record.job.key, "sha256 over what decides the outcome")
    for field, said, actual in (
        ("defense.card_digest", defense.card_digest, card_digest),
        ("defense.checkpoint_sha256", defense.checkpoint_sha256, checkpoint_sha256),
    ):
        if actual is not None:
            yield _equal(field, said, actual, "the defense that was loaded")
    yield _equal(
        "dataset.digest", e.record.job.dataset.digest, e.images.digest, "the images that were loaded"
    )
    for name, said in e.record.files.items():
        actual = hashlib.sha256((e.folder / name).read_bytes()).hexdigest()
        yield _equal(f"files.{name}", said, actual, "the file as it is")


def _rows(e: _Evidence) -> Iterator[Finding]:
    n = e.record.job.n
    yield _equal("n", n, len(e.images), "images that were loaded")
    yield _equal("n", n, len(e.rows["id"]), f"rows of {samples_file.FILE}")
    yield _column(e, "id", e.images.ids.tolist())
    yield _column(e, "label", e.images.y.tolist())
    yield _column(e, "digest", input_digests(e.images.x))
    expected = [e.rows["id"][i] for i in e.attacked]
    held = e.certificates.ids.tolist() == expected
    held = held and (
        not expected or e.certificates.delta.shape[1:] == e.threat.origin(e.images.x[:1]).shape[1:]
    )
    detail = f"{len(e.certificates)} certificates for {len(expected)} samples that an attack fooled"
    yield Finding("adversarials.id", held, detail)


def _arithmetic(e: _Evidence) -> Iterator[Finding]:
    record, fooled_by = e.record, e.rows["fooled_by"]
    n = len(fooled_by)
    right = [a == b for a, b in zip(e.rows["clean_prediction"], e.rows["label"], strict=True)]
    turned = [i for i in range(n) if right[i] == (fooled_by[i] == "clean")]
    detail = f'"clean" stands where the clean prediction is wrong; {_rows_named(turned)}'
    yield Finding("samples.fooled_by", not turned, detail)
    for name, said, correct in (
        ("clean_accuracy", record.clean_accuracy, sum(right)),
        ("robust_accuracy", record.robust_accuracy, fooled_by.count("")),
    ):
        true = Accuracy.of(correct, n)
        yield _equal(f"{name}.correct", said.correct, true.correct, "counted from the samples")
        yield _equal(f"{name}.value", said.value, true.value, "correct / n")
        yield _equal(f"{name}.interval", said.interval, true.interval, "Wilson's, 95 %")
    specs = tuple(cost.spec for cost in record.attacks)
    yield _equal("suite.attacks", record.job.suite.attacks, specs, "the attacks that were run")
    for direction in ("forward", "backward"):
        total = sum(e.rows[direction])
        yield _equal(f"passes.{direction}", record.passes[direction], total, "summed over the samples")
    if e.draws > 1:
        # Its rows go from attack to attack until every draw fails: who was attacked says nothing here.
        found = drawn.figures(e.rows, e.draws)
        yield _equal(drawn.FIELD, record.extra[drawn.FIELD], found, "counted from the samples")
        return
    hits = Counter(name for name in fooled_by if is_attacked(name))
    claimed = Counter()
    for cost in record.attacks:
        claimed[cost.spec] += cost.attacked - cost.survivors
    for spec in sorted({*hits, *claimed}):
        yield _equal(f"attacks.{spec}.survivors", claimed[spec], hits[spec], "samples it fooled")
    yield from _chain(record, sum(right))


def _chain(record: Record, clean: int) -> Iterator[Finding]:
    # Where the judge is asked only at the end, a row may leave an attack and yet go on to the next.
    if not asks_judge(record.job.knowledge):
        return
    left = clean
    for cost in record.attacks:
        yield _equal(f"attacks.{cost.spec}.attacked", cost.attacked, left, "survivors of the one before")
        left = cost.survivors


def _replay(e: _Evidence, judge: Model, device: torch.device) -> Iterator[Finding]:
    threat, rows, attacked = e.threat, e.rows, e.attacked
    x, labels = e.images.x, e.images.y
    points = threat.moved(x[attacked], e.certificates.delta)
    x_adv = threat.image(x[attacked], points, e.images.ids[attacked])
    outside = [attacked[i] for i in (~threat.contains(x[attacked], points)).nonzero().flatten().tolist()]
    box = "the parameters' range" if threat.name else "[0, 1]"
    yield Finding("adversarials.delta", not outside, f"inside {threat} and {box}; {_rows_named(outside)}")
    distance = dict(zip(attacked, threat.distance(x[attacked], points).tolist(), strict=True))
    said = rows["distance"]
    far = [
        i for i in range(len(said)) if not abs(said[i] - distance.get(i, 0.0)) <= 1e-6 * (1 + abs(said[i]))
    ]
    yield Finding("samples.distance", not far, f"distance of the perturbed image; {_rows_named(far)}")

    if e.draws > 1:
        yield from _replay_draws(e, judge, x, x_adv, device)
        return
    clean = _logits(judge, x, e.record.job.batch_size, device)
    yield _predictions("samples.clean_prediction", clean, rows["clean_prediction"], range(len(x)))
    logits = _logits(judge, x_adv, e.record.job.batch_size, device)
    yield _predictions("samples.prediction", logits, [rows["prediction"][i] for i in attacked], attacked)
    unattacked = [i for i in range(len(x)) if i not in distance]
    kept = [i for i in unattacked if rows["prediction"][i] != rows["clean_prediction"][i]]
    yield Finding("samples.prediction", not kept, f"unattacked rows keep theirs; {_rows_named(kept)}")

    # A NaN logit fools nobody here: argmax would call it a prediction.
    wrong_margin = _wrong_margin(logits, labels[attacked])
    refuted = [attacked[i] for i in (~(wrong_margin > -TIE)).nonzero().flatten().tolist()]
    detail = f"{len(attacked)} certificates must give a wrong answer; {_rows_named(refuted)}"
    yield Finding("adversarials.delta", not refuted, detail)

    wrong = int((wrong_margin > 0).sum()) + int((_wrong_margin(clean, labels) > 0)[unattacked].sum())
    ties = int(((wrong_margin > -TIE) & (wrong_margin <= 0)).sum())
    tied = f" ({ties} more lie on the boundary here)" if ties else ""
    most = 100 * (len(x) - wrong) / len(x)
    detail = f"on these {len(x)} images it is at most {most:.2f} %: {wrong} answers are wrong here{tied}"
    yield Finding("robust_accuracy", True, detail)


def _replay_draws(
    e: _Evidence, judge: Model, x: Tensor, x_adv: Tensor, device: torch.device
) -> Iterator[Finding]:
    """The same draws of noise again, which hang on seed, sample and draw alone."""
    job, labels = e.record.job, e.images.y
    stream = Stream.of(job.seed, "judge")
    again = Judge(Network(judge, job.batch_size, stream=stream), e.draws)

    def wrong(images: Tensor, rows: list[int]) -> list[int]:
        if not rows:
            return []
        ids = e.images.ids[rows]
        return again.fooled(images.to(device), labels[rows].to(device), ids.to(device)).tolist()

    everywhere = list(range(len(x)))
    counts = {"clean_draws": wrong(x, everywhere), "draws": wrong(x, everywhere)}
    for row, count in zip(e.attacked, wrong(x_adv, e.attacked), strict=True):
        counts["draws"][row] = count
    for name, found in counts.items():
        # Another device rounds logits elsewhere, which may turn a draw on the boundary.
        broken = [i for i, (a, b) in enumerate(zip(e.rows[name], found, strict=True)) if abs(a - b) > 1]
        detail = f"wrong ones of {e.draws} draws, one more or less for a tie; {_rows_named(broken)}"
        yield Finding(f"samples.{name}", not broken, detail)
    fails, most = sum(count > 0 for count in counts["draws"]), e.draws * len(x)
    detail = (
        f"on these {len(x)} images it is at most {100 * (len(x) - fails) / len(x):.2f} % in the worst of {e.draws} "
        f"draws, and {100 * (most - sum(counts['draws'])) / most:.2f} % on average"
    )
    yield Finding("robust_accuracy", True, detail)


def _logits(judge: Model, x: Tensor, batch_size: int, device: torch.device) -> Tensor:
    """Logits on the CPU, called on one fixed shape: what the engine did, so that the bits are the same."""
    parts = []
    with torch.inference_mode():
        for batch in x.split(batch_size):
            padded = torch.zeros(batch_size, *x.shape[1:])
            padded[: len(batch)] = batch
            parts.append(judge(padded.to(device))[: len(batch)].float().cpu())
    return torch.cat(parts) if parts else torch.zeros(0, 2)


def _wrong_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the best wrong logit lies above the right one, (M,)."""
    if not len(logits):
        return torch.zeros(0)
    right = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return (others.amax(1, keepdim=True) - right).squeeze(1)


def _predictions(field: str, logits: Tensor, said: list[int], rows: Any) -> Finding:
    best, classes = logits.max(1) if len(logits) else (torch.zeros(0), None)
    answer = torch.tensor(said, dtype=torch.int64)
    known = (answer >= 0) & (answer < logits.shape[1])
    chosen = logits.gather(1, answer.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
    held = known & (best - chosen < TIE)
    broken = [rows[i] for i in (~held).nonzero().flatten().tolist()]
    ties = 0 if classes is None else int((held & (classes != answer)).sum())
    tied = f", {ties} of them a tie here" if ties else ""
    return Finding(field, not broken, f"{len(said)} predictions{tied}; {_rows_named(broken)}")


def _equal(field: str, said: Any, actual: Any, what: str) -> Finding:
    if said == actual:
        return Finding(field, True, f"{_short(said)} ({what})")
    return Finding(field, False, f"the record says {_short(said)}, found {_short(actual)} ({what})")


def _column(e: _Evidence, name: str, actual: list[Any]) -> Finding:
    said = e.rows[name]
    broken = [i for i, (a, b) in enumerate(zip(said, actual, strict=False)) if a != b]
    held = not broken and len(said) == len(actual)
    return Finding(f"samples.{name}", held, f"of the images that were loaded; {_rows_named(broken)}")


def _rows_named(rows: list[int]) -> str:
    if not rows:
        return "all do"
    return f"row {rows[0]} does not" + (f", nor do {len(rows) - 1} more" if len(rows) > 1 else "")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
