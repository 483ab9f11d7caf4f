"""Verify a certification: prove the bounds of some images again, and judge all its adversarial examples.

The rows are drawn after the certification was made, so a result with many false rows is found out by a few. The rest
follows by arithmetic from the rows.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from robench.certification import ABSTAINED, Case, find_certifier
from robench.core.io import read_ordinary
from robench.data._base import Images
from robench.defenses import Loaded
from robench.engine.batched_model import frozen
from robench.engine.setup import Setup
from robench.engine.tolerances import close
from robench.records import certificates
from robench.records.certification import ROWS, Certification, Rows, read, read_rows
from robench.records.findings import Finding, equal, rows_named, same, same_accuracy
from robench.records.record import DefenseFacts
from robench.records.samples import input_digests
from robench.statistics.accuracy import Accuracy
from robench.threats.threat import Threat
from robench.verification.replay import Sample, missed

# Tolerance of a radius, which follows from the votes or is proven without any.
_RADIUS = 1e-4
# Images that are proven again if the user does not say how many.
SAMPLE = 10
# On another device or release of torch, rounding may move this share of the votes of an image.
_MOVED = 0.01
_PART = 8


def verify(
    folder: Path, loaded: Loaded, images: Images, device: torch.device, sample: Sample
) -> list[Finding]:
    """Verify a certification; the last finding states what is proven.

    Args:
        loaded: the defense that it names, on `device`.
        images: the images that it names.
        sample: which images to prove again.

    Raises:
        ResourceError: when a file is missing or damaged.
        UsageError: when the method does not suit the defense.
    """
    result, rows = read(folder), read_rows(folder)
    checked = [*_names(result, loaded, images), *_files(result, folder), *_rows(rows, images)]
    if not all(finding.held for finding in checked):
        return checked
    setup = Setup(
        loaded.defense, result.seed, device, result.batch_size, stochastic=loaded.defense.stochastic
    )
    case = Case(loaded, images, setup, Threat.parse(result.threat))
    with frozen(loaded.defense):
        find_certifier(result.method).check(case)
        checked += [*_proof(result, case), *_arithmetic(result, rows), *_votes(result, rows, case)]
        chosen = sample.rows(rows.id.tolist())
        checked.append(_bounds(result, rows, case, chosen))
        if result.attacked:
            checked += _examples(result, rows, case, folder)
    if all(finding.held for finding in checked):
        upper = f" and at most {result.attacked.accuracy.correct}" if result.attacked else ""
        proven = f"at least {result.certified.correct}{upper} of {result.n} images at {result.threat}"
        checked.append(Finding("certified", True, proven, proven=proven))
    return checked


def trust(result: Certification, sample: Sample) -> str:
    """What verification leaves open, in one sentence."""
    n, drawn = result.n, min(sample.count, result.n)
    attack = "attacked.suite and attacked.draws, " if result.attacked else ""
    always = f"{attack}the protocol's name, times, passes and the machine"
    if drawn == n:
        return f"on trust: {always}"
    false = max(1, round(0.2 * n))
    return (
        f"on trust: {always}, and the bounds of {n - drawn} images; had {false} of {n} been false, {drawn} random "
        f"images would have missed them with probability {missed(n, false, drawn):.2g} (--replay {n} proves all again)"
    )


def _names(result: Certification, loaded: Loaded, images: Images) -> Iterator[Finding]:
    for name, actual in asdict(DefenseFacts.of(loaded)).items():
        yield equal(f"defense.{name}", getattr(result.defense, name), actual, "the defense that was loaded")
    for name in ("name", "split", "digest"):
        claimed, actual = getattr(result.dataset, name), getattr(images, name)
        yield equal(f"dataset.{name}", claimed, actual, "the images that were loaded")
    yield equal("n", result.n, len(images), "the images that were loaded")


def _files(result: Certification, folder: Path) -> Iterator[Finding]:
    yield Finding("files", ROWS in result.files, f"{', '.join(sorted(result.files))}")
    for name in (ROWS, certificates.FILE):
        if name in result.files:
            actual = hashlib.sha256(read_ordinary(folder / name)).hexdigest()
            yield equal(f"files.{name}", result.files[name], actual, "digest of the file")


def _rows(rows: Rows, images: Images) -> Iterator[Finding]:
    for name, actual in (
        ("id", images.ids.tolist()),
        ("label", images.y.tolist()),
        ("digest", input_digests(images.x)),
    ):
        claimed = getattr(rows, name).tolist()
        yield Finding(f"bounds.{name}", claimed == actual, f"that of the {len(actual)} images")
    wrong = np.flatnonzero(~(np.isfinite(rows.radius) & (rows.radius >= 0))).tolist()
    yield Finding("bounds.radius", not wrong, f"finite and at least 0; {rows_named(wrong)}")


def _proof(result: Certification, case: Case) -> Iterator[Finding]:
    """Check what the method says of this proof."""
    certifier, threat = find_certifier(result.method), case.threat
    assert threat is not None
    yield equal("norm", result.norm, certifier.norm or threat.norm, "of the method")
    yield equal("alpha", result.alpha, certifier.alpha, "of the method")
    yield equal("of_vote", result.of_vote, certifier.of_vote, "of the method")
    yield equal("facts", result.facts, certifier.facts(case), "of the method and the defense")


def _arithmetic(result: Certification, rows: Rows) -> Iterator[Finding]:
    """Check every figure that follows from the rows."""
    eps, counted = Threat.parse(result.threat).eps, "counted from the rows"
    yield Finding(
        "certified", result.certified == rows.certified(eps), f"{result.certified.correct} {counted}"
    )
    # A method without a norm proves a single radius.
    radii = [radius for radius, _ in rows.curve(eps)] if find_certifier(result.method).norm else [eps]
    wrong = [radius for radius, share in result.curve if share != rows.certified(radius)]
    held = not wrong and same([radius for radius, _ in result.curve], radii)
    yield Finding("curve", held, f"{len(radii)} radii {counted}")
    yield equal("average_radius", result.average_radius, rows.average_radius, counted)
    yield equal("abstained", result.abstained, int((rows.prediction == ABSTAINED).sum()), counted)
    names = {""}
    if result.attacked:
        expected = Accuracy.of(int((rows.fooled_by == "").sum()), result.n)
        yield from same_accuracy("attacked.accuracy", result.attacked.accuracy, expected, "Wilson's, 95 %")
        attacked = int((~rows.holds(eps) & (rows.fooled_by != "clean")).sum())
        yield equal("attacked.attacked", result.attacked.attacked, attacked, counted)
        both = (rows.fooled_by != "") & rows.holds(eps)
        yield Finding("bounds.fooled_by", not both.any(), "no image is both certified and fooled")
        names |= {"clean", "+".join(result.attacked.suite)}
    yield Finding("bounds.fooled_by", names >= set(rows.fooled_by.tolist()), "the attacks of this result")


def _votes(result: Certification, rows: Rows, case: Case) -> Iterator[Finding]:
    """Check the radii against the votes they follow from."""
    radii = find_certifier(result.method).radii(case, rows.votes.tolist())
    if radii is not None:
        wrong = np.flatnonzero(~close(rows.radius, radii.numpy(), _RADIUS)).tolist()
        yield Finding("bounds.radius", not wrong, f"follow from the votes; {rows_named(wrong)}")


def _bounds(result: Certification, rows: Rows, case: Case, chosen: list[int]) -> Finding:
    """Prove the bounds of some images again."""
    certifier, wrong = find_certifier(result.method), []
    for start in range(0, len(chosen), _PART):
        part = chosen[start : start + _PART]
        again = certifier.bounds(case, part)
        slack = _MOVED * int(again.forward.max())
        for place, row in enumerate(part):
            votes = abs(int(again.votes[place]) - int(rows.votes[row]))
            same_radius = close(rows.radius[row], again.radius[place].item(), _RADIUS)
            same_class = int(again.prediction[place]) == rows.prediction[row]
            if not (same_class and (0 < votes <= slack or (votes == 0 and same_radius))):
                wrong.append(row)
    return Finding("bounds.radius", not wrong, f"{len(chosen)} images proven again; {rows_named(wrong)}")


def _examples(result: Certification, rows: Rows, case: Case, folder: Path) -> Iterator[Finding]:
    """Judge the adversarial examples and the images that are wrong without one."""
    images, threat, certifier = case.images, case.threat, find_certifier(result.method)
    assert threat is not None
    attacked = np.flatnonzero((rows.fooled_by != "") & (rows.fooled_by != "clean")).tolist()
    wrong = np.flatnonzero(rows.fooled_by == "clean").tolist()
    x_adv = images.x[attacked]
    if attacked:
        held = certificates.certificates_of(folder, images, threat)
        same_rows = held.ids.tolist() == images.ids[attacked].tolist()
        yield Finding("adversarials.id", same_rows, "one adversarial example for each fooled image")
        if not same_rows:
            return
        delta = held.delta[list(range(len(attacked)))]
        x_adv = certificates.apply(threat, images.x[attacked], delta, images.ids[attacked])
        outside = [
            r
            for r, ok in zip(attacked, threat.contains(images.x[attacked], x_adv).tolist(), strict=True)
            if not ok
        ]
        yield Finding("adversarials.delta", not outside, f"inside {threat} and [0, 1]; {rows_named(outside)}")
    refuted = []
    for where, x in ((attacked, x_adv), (wrong, images.x[wrong])):
        for start in range(0, len(where), _PART):
            part = where[start : start + _PART]
            predicted = certifier.verdict(case, x[start : start + _PART], part).tolist()
            refuted += [
                row
                for row, answer in zip(part, predicted, strict=True)
                if answer in (ABSTAINED, int(images.y[row])) or answer != rows.attacked_prediction[row]
            ]
    detail = f"{len(attacked) + len(wrong)} images are misclassified; {rows_named(refuted)}"
    yield Finding("bounds.attacked_prediction", not refuted, detail)
