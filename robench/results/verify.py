"""Re-check a record from its certificates, by forward passes alone.

What it proves: this checkpoint gives wrong answers on so many allowed images, so its robust accuracy is at
most the figure. What it cannot prove: that no stronger attack would lower it, and the fields named in `TRUSTED`.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robench import content
from robench.data._base import Images
from robench.data._pixels import Stack
from robench.defenses import Loaded
from robench.engine.attackers import build_attacks
from robench.engine.knowledge import asks_judge
from robench.engine.network import Judge, Network, undefined
from robench.errors import CheckFailed, ResourceError, RobenchError
from robench.files import read_ordinary
from robench.random import Stream
from robench.results import draws as drawn
from robench.results import samples as samples_file
from robench.results import verify_corruption
from robench.results.certificates import Certificates, is_attacked, read_certificates
from robench.results.findings import TIE, Finding, disagreeing, equal, rows_named
from robench.results.record import Record, read_record
from robench.results.samples import input_digests, read_samples
from robench.results.statistics import Accuracy
from robench.threat import Threat

Model = Callable[[Tensor], Tensor]

# What rests on the word of whoever made the record: the machine and the moment, the cost, and the doubts.
TRUSTED = (
    "robench_version", "git", "command", "device", "platform", "started", "finished", "seconds", "attacks.seconds",
    "protocol", "health", "samples.steps",
)  # fmt: skip

# Of a margin between logits: other devices round it by less, other weights move it by more.
_MARGIN = 0.01


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
    found = list(findings(folder, loaded.defense, images, loaded=loaded, device=device))
    broken = [f"{item.field}: {item.detail}" for item in found if not item.held]
    if broken:
        raise CheckFailed(f"{folder} does not hold. " + "; ".join(broken))
    return found


def findings(
    folder: Path | str,
    judge: Model,
    images: Images,
    *,
    loaded: Loaded | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Finding]:
    """The checks of `verify` one after the other, those that fail included.

    Args:
        judge: (N, C, H, W) float32 in [0, 1] to logits (N, K), on `device`.
        loaded: what is known of the defense; None to leave that unchecked.
    """
    record = read_record(folder)
    place = record.folder or Path(folder)
    yield from _identity(record, place, images, loaded)
    if record.corrupted:
        stochastic = bool(getattr(judge, "stochastic", False))
        yield from verify_corruption.findings(record, judge, images, stochastic, device)
        return
    rows = read_samples(place).to_pydict()
    evidence = _Evidence(record, rows, read_certificates(place), images, place)
    yield from _draws(evidence, loaded)
    yield from _suite(evidence)
    aligned = list(_rows(evidence))
    yield from aligned
    yield from _arithmetic(evidence)
    # Without the same images, row by row, a forward pass would compare unlike things.
    if all(finding.held for finding in aligned):
        yield from _replay(evidence, judge, torch.device(device))


def _identity(record: Record, place: Path, images: Images, loaded: Loaded | None) -> Iterator[Finding]:
    job = record.job
    decisive = "sha256 over defense, attacks, dataset, n, threat, knowledge, seed, precision and batch_size"
    yield equal("key", record.key, job.key, decisive)
    if loaded is not None:
        actual = {
            "family": loaded.family,
            "card_digest": loaded.card_digest,
            "checkpoint_sha256": loaded.checkpoint_sha256,
            "parameters": sum(p.numel() for p in loaded.defense.parameters()),
            "classifier": loaded.classifier,
            **({"state_sha256": loaded.state_sha256} if job.defense.state_sha256 else {}),
        }
        for name, value in actual.items():
            said = getattr(job.defense, name)
            # A record need not say how many there are, and a checkpoint that was brought has its family from elsewhere.
            if said is not None and (value or name != "family"):
                yield equal(f"defense.{name}", said, value, "the defense that was loaded")
    yield equal("dataset.digest", job.dataset.digest, images.digest, "the images that were loaded")
    for name, said in record.files.items():
        try:
            actual = hashlib.sha256(read_ordinary(place / name)).hexdigest()
        except OSError as error:
            mend = "repeat the run with --fresh, or restore the file"
            raise ResourceError(f"{place / name}: {error.strerror or error}: {mend}") from error
        yield equal(f"files.{name}", said, actual, "the file as it is")


def _draws(e: _Evidence, loaded: Loaded | None) -> Iterator[Finding]:
    if loaded is not None:
        randomised = loaded.defense.stochastic
        detail = f"the defense draws {'' if randomised else 'no '}noise"
        yield Finding(drawn.FIELD, randomised == (e.draws > 1), detail)


def _suite(e: _Evidence) -> Iterator[Finding]:
    """A suite that is known by its name must be the attacks that it stands for."""
    suite = e.record.job.suite
    known = content.suites().get(suite.name)
    if known is not None and not known.rungs:
        threat = Threat.parse(e.record.job.threat)
        try:
            attacks = tuple(spec for spec, _ in build_attacks(known.specs(threat.norm), threat))
        except RobenchError as error:
            yield Finding("suite.name", False, f"{suite.name} is not for {threat}: {error}")
        else:
            yield equal("suite.name", suite.attacks, attacks, f"what {suite.name} stands for")


def _rows(e: _Evidence) -> Iterator[Finding]:
    n = e.record.job.n
    yield equal("n", n, len(e.images), "images that were loaded")
    yield equal("n", n, len(e.rows["id"]), f"rows of {samples_file.FILE}")
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
    detail = f'"clean" stands where the clean prediction is wrong; {rows_named(turned)}'
    yield Finding("samples.fooled_by", not turned, detail)
    for name, said, correct in (
        ("clean_accuracy", record.clean_accuracy, sum(right)),
        ("robust_accuracy", record.robust_accuracy, fooled_by.count("")),
    ):
        true = Accuracy.of(correct, n)
        yield equal(f"{name}.correct", said.correct, true.correct, "counted from the samples")
        yield equal(f"{name}.value", said.value, true.value, "correct / n")
        yield equal(f"{name}.interval", said.interval, true.interval, "Wilson's, 95 %")
    specs = tuple(cost.spec for cost in record.attacks)
    yield equal("suite.attacks", record.job.suite.attacks, specs, "the attacks that were run")
    for direction in ("forward", "backward"):
        total = sum(e.rows[direction])
        yield equal(f"passes.{direction}", record.passes[direction], total, "summed over the samples")
        total = sum(getattr(cost, direction) for cost in record.attacks)
        yield equal(f"attacks.{direction}", total, record.passes[direction], "summed over the attacks")
    negative = [i for i in range(n) if min(e.rows[name][i] for name in ("steps", "forward", "backward")) < 0]
    yield Finding("samples.forward", not negative, f"no counts below 0; {rows_named(negative)}")
    if e.draws > 1:
        # Its rows go from attack to attack until every draw fails: who was attacked says nothing here.
        found = drawn.figures(e.rows, e.draws)
        yield equal(drawn.FIELD, record.extra[drawn.FIELD], found, "counted from the samples")
        return
    for column, fooled in (
        ("clean_draws", [not each for each in right]),
        ("draws", [name != "" for name in fooled_by]),
    ):
        odd = [i for i in range(n) if e.rows[column][i] != fooled[i]]
        yield Finding(f"samples.{column}", not odd, f"1 where it is wrong, of one draw; {rows_named(odd)}")
    hits = Counter(name for name in fooled_by if is_attacked(name))
    tried, survived = Counter(), Counter()
    for cost in record.attacks:
        tried[cost.spec] += cost.attacked
        survived[cost.spec] += cost.survivors
    for spec in sorted({*hits, *tried}):
        left = tried[spec] - hits[spec]
        yield equal(f"attacks.{spec}.survivors", survived[spec], left, "attacked, less the samples it fooled")
    yield from _chain(record, sum(right))


def _chain(record: Record, clean: int) -> Iterator[Finding]:
    # Where the judge is asked only at the end, a row may leave an attack and yet go on to the next.
    if not asks_judge(record.job.knowledge):
        return
    left = clean
    for cost in record.attacks:
        yield equal(f"attacks.{cost.spec}.attacked", cost.attacked, left, "survivors of the one before")
        left = cost.survivors


def _replay(e: _Evidence, judge: Model, device: torch.device) -> Iterator[Finding]:
    threat, rows, attacked = e.threat, e.rows, e.attacked
    x, labels = e.images.x, e.images.y
    points = threat.moved(x[attacked], e.certificates.delta)
    x_adv = threat.image(x[attacked], points, e.images.ids[attacked])
    outside = [attacked[i] for i in (~threat.contains(x[attacked], points)).nonzero().flatten().tolist()]
    box = "the parameters' range" if threat.name else "[0, 1]"
    yield Finding("adversarials.delta", not outside, f"inside {threat} and {box}; {rows_named(outside)}")
    distance = dict(zip(attacked, threat.distance(x[attacked], points).tolist(), strict=True))
    said = rows["distance"]
    far = [
        i for i in range(len(said)) if not abs(said[i] - distance.get(i, 0.0)) <= 1e-6 * (1 + abs(said[i]))
    ]
    yield Finding("samples.distance", not far, f"distance of the perturbed image; {rows_named(far)}")

    if e.draws > 1:
        yield from _replay_draws(e, judge, x, x_adv, device)
        return
    clean = _logits(judge, x, e.record.job.batch_size, device)
    yield _predictions("samples.clean_prediction", clean, rows["clean_prediction"], range(len(x)))
    best = clean.topk(2, 1).values
    now, then = best[:, 0] - best[:, 1], torch.tensor(rows["clean_margin"])
    same = ((now - then).abs() <= _MARGIN * (1 + then.abs())) | (now.isnan() & then.isnan())
    off = (~same).nonzero().flatten().tolist()
    yield Finding("samples.clean_margin", not off, f"between the two best logits; {rows_named(off)}")
    logits = _logits(judge, x_adv, e.record.job.batch_size, device)
    predictions = [rows["prediction"][i] for i in attacked]
    yield _predictions("samples.prediction", logits, predictions, attacked)
    unattacked = [i for i in range(len(x)) if i not in distance]
    kept = [i for i in unattacked if rows["prediction"][i] != rows["clean_prediction"][i]]
    yield Finding("samples.prediction", not kept, f"unattacked rows keep theirs; {rows_named(kept)}")

    # NaN is a wrong answer where the record says so too, and proves nothing elsewhere.
    wrong_margin = _wrong_margin(logits, labels[attacked], predictions)
    refuted = [attacked[i] for i in (~(wrong_margin > -TIE)).nonzero().flatten().tolist()]
    nothing = int(_by_nan(logits, predictions).sum())
    by_nan = f", {nothing} of them by NaN" if nothing else ""
    detail = f"{len(attacked)} certificates must give a wrong answer{by_nan}; {rows_named(refuted)}"
    yield Finding("adversarials.delta", not refuted, detail)

    without = _wrong_margin(clean, labels, rows["clean_prediction"])
    wrong = int((wrong_margin > 0).sum()) + int((without > 0)[unattacked].sum())
    ties = int(((wrong_margin > -TIE) & (wrong_margin <= 0)).sum())
    tied = f" ({ties} more lie on the boundary here)" if ties else ""
    most = 100 * (len(x) - wrong) / len(x)
    detail = f"on these {len(x)} images it is at most {most:.2f} %: {wrong} answers are wrong here{tied}"
    yield Finding("robust_accuracy", True, detail)


def _replay_draws(
    e: _Evidence, judge: Model, x: Tensor | Stack, x_adv: Tensor, device: torch.device
) -> Iterator[Finding]:
    """The same draws of noise again, which hang on seed, sample and draw alone."""
    job, labels = e.record.job, e.images.y
    stream = Stream.of(job.seed, "judge")
    again = Judge(Network(judge, job.batch_size, stream=stream), e.draws)

    def wrong(images: Tensor | Stack, rows: list[int]) -> list[int]:
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
        detail = f"wrong ones of {e.draws} draws, one more or less for a tie; {rows_named(broken)}"
        yield Finding(f"samples.{name}", not broken, detail)
    fails, most = sum(count > 0 for count in counts["draws"]), e.draws * len(x)
    detail = (
        f"on these {len(x)} images it is at most {100 * (len(x) - fails) / len(x):.2f} % in the worst of {e.draws} "
        f"draws, and {100 * (most - sum(counts['draws'])) / most:.2f} % on average"
    )
    yield Finding("robust_accuracy", True, detail)


def _logits(judge: Model, x: Tensor | Stack, batch_size: int, device: torch.device) -> Tensor:
    """Logits on the CPU, called on one fixed shape: what the engine did, so that the bits are the same."""
    parts = []
    with torch.inference_mode():
        for batch in x.split(batch_size):
            padded = torch.zeros(batch_size, *x.shape[1:])
            padded[: len(batch)] = batch
            parts.append(judge(padded.to(device))[: len(batch)].float().cpu())
    return torch.cat(parts) if parts else torch.zeros(0, 2)


def _wrong_margin(logits: Tensor, labels: Tensor, said: list[int]) -> Tensor:
    """How far the best wrong logit lies above the right one, (M,).

    NaN is a wrong answer, infinitely far, where the record `said` -1 of it; elsewhere it proves nothing and stays NaN.
    """
    right = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    margins = (others.amax(1, keepdim=True) - right).squeeze(1)
    return margins.masked_fill(_by_nan(logits, said), torch.inf)


def _by_nan(logits: Tensor, said: list[int]) -> Tensor:
    """Rows that are NaN and that the record says so of, bool (M,)."""
    return undefined(logits) & (torch.tensor(said, dtype=torch.int64) == -1)


def _predictions(field: str, logits: Tensor, said: list[int], rows: Sequence[int]) -> Finding:
    broken, ties = disagreeing(logits, said)
    tied = f", {ties} of them a tie here" if ties else ""
    return Finding(
        field, not broken, f"{len(said)} predictions{tied}; {rows_named([rows[i] for i in broken])}"
    )


def _column(e: _Evidence, name: str, actual: list[Any]) -> Finding:
    said = e.rows[name]
    broken = [i for i, (a, b) in enumerate(zip(said, actual, strict=False)) if a != b]
    held = not broken and len(said) == len(actual)
    return Finding(f"samples.{name}", held, f"of the images that were loaded; {rows_named(broken)}")
