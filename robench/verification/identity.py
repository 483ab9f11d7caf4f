"""Compare the defense, suite, images and files that a record names with those at hand."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
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
from robench.records.estimate import SUFFIX
from robench.records.findings import Finding, equal
from robench.records.inputs import nameless
from robench.records.record import SCHEMA, DefenseFacts, Record


def findings(record: Record, folder: Path, images: Images, loaded: Loaded | None) -> Iterator[Finding]:
    """Check the key, the defense, the dataset, the suite and the files.

    Args:
        loaded: the defense that the record names, or its replacement; None to skip the check.

    Raises:
        ResourceError: when a file of the record is missing.
    """
    job = record.job
    yield Finding("schema", True, f"{SCHEMA}; every field has the type that the schema gives it")
    key_detail = "sha256 over defense, attacks, dataset, n, threat, knowledge, seed, precision and batch_size"
    yield equal("key", record.key, job.key, key_detail)
    if loaded is not None:
        yield from _defense(record, loaded, images)
    for name in ("name", "split", "digest"):
        claim, actual = getattr(job.dataset, name), getattr(images, name)
        yield equal(f"dataset.{name}", claim, actual, "the images that were loaded")
    yield from _suite(record)
    yield from _files(record, folder)


def _defense(record: Record, loaded: Loaded, images: Images) -> Iterator[Finding]:
    if nameless(record):
        yield from _weights(record, loaded)
        return
    claims = asdict(record.job.defense)
    for name, value in asdict(DefenseFacts.of(loaded)).items():
        claim = claims[name]
        # A record may omit the number of parameters, an older one the state; a user's own checkpoint has no family.
        if claim is not None and (claim or name != "state_sha256") and (value or name != "family"):
            yield equal(f"defense.{name}", claim, value, "the defense that was loaded")
    if "classes" in record.extra:
        class_counts = {"counted": len(images.classes), "of": loaded.knows}
        yield equal("classes", record.extra["classes"], class_counts, "of the classes that the network knows")


def _weights(record: Record, loaded: Loaded) -> Iterator[Finding]:
    """A model without a name is identified by its weights alone."""
    claims, source = record.job.defense, "the defense that was named"
    if claims.parameters is not None:
        actual = sum(p.numel() for p in loaded.defense.parameters())
        yield equal("defense.parameters", claims.parameters, actual, source)
    if claims.state_sha256:
        yield equal("defense.state_sha256", claims.state_sha256, loaded.state_sha256, source)
        yield equal("defense.checkpoint_sha256", claims.checkpoint_sha256, loaded.state_sha256, source)


def _suite(record: Record) -> Iterator[Finding]:
    """Check that a suite known by its name, or named by its specs, has the attacks that the name implies.

    The name of an unknown suite is taken on trust.
    """
    suite = record.job.suite
    name = suite.name.removesuffix(SUFFIX) if record.job.half_width else suite.name
    known_suite = catalog.suites().get(name)
    if known_suite is not None and known_suite.rungs:
        detail = f"{suite.name} is a ladder of runs, and each run has its own suite"
        yield Finding("suite.name", False, detail)
        return
    try:
        if record.corrupted:
            attack_specs = known_suite.attacks if known_suite else specs.split(suite.name, "+")
            expected = tuple(map(str, corruptions(attack_specs)))
        else:
            threat = record.job.threat_model
            attack_specs = known_suite.specs(threat.norm) if known_suite else specs.split(name, "+")
            expected = tuple(spec for spec, _ in build_attacks(attack_specs, threat))
    except RobenchError as error:
        if known_suite is not None:
            yield Finding("suite.name", False, f"{suite.name} is not for {record.job.threat}: {error}")
        return
    if known_suite is not None or expected:
        yield equal("suite.name", suite.attacks, expected, f"the attacks of {suite.name}")


def _files(record: Record, folder: Path) -> Iterator[Finding]:
    expected = [samples.FILE] if record.corrupted else sorted([samples.FILE, certificates.FILE])
    yield equal("files", sorted(record.files), expected, "the files of such a record")
    for name in expected:
        if name not in record.files:
            continue
        try:
            actual: Any = hashlib.sha256(read_ordinary(folder / name)).hexdigest()
        except OSError as error:
            remedy = "repeat the run with --fresh, or restore the file"
            raise ResourceError(f"{folder / name}: {error.strerror or error}: {remedy}") from error
        yield equal(f"files.{name}", record.files[name], actual, "digest of the file")
