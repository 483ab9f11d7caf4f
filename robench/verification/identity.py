"""Which defense, suite, images and files a record names, held against those that are here."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robench import catalog
from robench.attacks.build import build_attacks
from robench.core import specs
from robench.core.errors import ResourceError, RobenchError
from robench.core.io import read_ordinary
from robench.corruption.suite import corruptions
from robench.data._base import Images
from robench.defenses import Loaded
from robench.records import certificates, samples
from robench.records.findings import Finding, equal
from robench.records.inputs import nameless
from robench.records.record import SCHEMA, Record


def findings(record: Record, folder: Path, images: Images, loaded: Loaded | None) -> Iterator[Finding]:
    """Key, defense, data set, suite and files.

    Args:
        loaded: the defense that the record names, or what was brought in its place; None to leave it unchecked.

    Raises:
        ResourceError: when a file of the record is missing.
    """
    job = record.job
    yield Finding("schema", True, f"{SCHEMA}; every field has the type that the schema gives it")
    decisive = "sha256 over defense, attacks, dataset, n, threat, knowledge, seed, precision and batch_size"
    yield equal("key", record.key, job.key, decisive)
    if loaded is not None:
        yield from _defense(record, loaded, images)
    yield equal("dataset.name", job.dataset.name, images.name, "the images that were loaded")
    yield equal("dataset.split", job.dataset.split, images.split, "the images that were loaded")
    yield equal("dataset.digest", job.dataset.digest, images.digest, "the images that were loaded")
    yield from _suite(record)
    yield from _files(record, folder)


def _defense(record: Record, loaded: Loaded, images: Images) -> Iterator[Finding]:
    if nameless(record):
        yield from _weights(record, loaded)
        return
    actual = {
        "name": loaded.name,
        "family": loaded.family,
        "card_digest": loaded.card_digest,
        "checkpoint_sha256": loaded.checkpoint_sha256,
        "parameters": sum(p.numel() for p in loaded.defense.parameters()),
        "classifier": loaded.classifier,
        **({"state_sha256": loaded.state_sha256} if record.job.defense.state_sha256 else {}),
    }
    for name, value in actual.items():
        claim = getattr(record.job.defense, name)
        # A record need not say how many there are, and a checkpoint that was brought has its family from elsewhere.
        if claim is not None and (value or name != "family"):
            yield equal(f"defense.{name}", claim, value, "the defense that was loaded")
    if "classes" in record.extra:
        counted = {"counted": len(images.classes), "of": loaded.knows}
        yield equal("classes", record.extra["classes"], counted, "of those that the network knows")


def _weights(record: Record, loaded: Loaded) -> Iterator[Finding]:
    """Of a model without a name: its weights alone identify it."""
    claims, what = record.job.defense, "the defense that was named"
    if claims.parameters is not None:
        actual = sum(p.numel() for p in loaded.defense.parameters())
        yield equal("defense.parameters", claims.parameters, actual, what)
    if claims.state_sha256:
        yield equal("defense.state_sha256", claims.state_sha256, loaded.state_sha256, what)
        yield equal("defense.checkpoint_sha256", claims.checkpoint_sha256, loaded.state_sha256, what)


def _suite(record: Record) -> Iterator[Finding]:
    """A suite that is known by its name, or named by its specs, must be the attacks that it stands for.

    Of a suite that is not known here nothing is said: its name rests on trust.
    """
    suite = record.job.suite
    chosen = catalog.suites().get(suite.name)
    if chosen is not None and chosen.rungs:
        yield Finding("suite.name", False, f"{suite.name} is a ladder of runs, each with a suite of its own")
        return
    try:
        if record.corrupted:
            texts = chosen.attacks if chosen else specs.split(suite.name, "+")
            meant = tuple(map(str, corruptions(texts)))
        else:
            threat = record.job.threat_model
            texts = chosen.specs(threat.norm) if chosen else specs.split(suite.name, "+")
            meant = tuple(spec for spec, _ in build_attacks(texts, threat))
    except RobenchError as error:
        if chosen is not None:
            yield Finding("suite.name", False, f"{suite.name} is not for {record.job.threat}: {error}")
        return
    if chosen is not None or meant:
        yield equal("suite.name", suite.attacks, meant, f"what {suite.name} stands for")


def _files(record: Record, folder: Path) -> Iterator[Finding]:
    expected = [samples.FILE] if record.corrupted else sorted([samples.FILE, certificates.FILE])
    yield equal("files", sorted(record.files), expected, "the files that belong to such a record")
    for name in expected:
        if name not in record.files:
            continue
        try:
            actual: Any = hashlib.sha256(read_ordinary(folder / name)).hexdigest()
        except OSError as error:
            mend = "repeat the run with --fresh, or restore the file"
            raise ResourceError(f"{folder / name}: {error.strerror or error}: {mend}") from error
        yield equal(f"files.{name}", record.files[name], actual, "the file as it is")
