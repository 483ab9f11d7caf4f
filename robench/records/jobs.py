"""Group the records of one job, whatever names they use for its parts."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from robench import catalog
from robench.canonical import dataset_name, defense_name, knowledge_name
from robench.catalog import own_name, protocol_name
from robench.core import specs
from robench.core.errors import ResourceError, UsageError
from robench.core.trust import like
from robench.records import record as record_file
from robench.records.record import Job, Record, read_record
from robench.records.store import aside, slug
from robench.threats.threat import NO_THREAT, Threat


def canonical(job: Job) -> Job:
    """The job under its current names. Its key may differ from the key in an older record."""
    dataset = job.dataset.name
    threat = _threat(job.threat)
    protocol = job.protocol
    if protocol in {own_name(name, job.threat, job.n) for name in (dataset, _base(dataset))}:
        protocol = like(protocol, protocol_name(dataset_name(dataset), threat, job.n))
    return replace(
        job,
        protocol=protocol,
        defense=replace(job.defense, name=defense_name(job.defense.name, dataset)),
        dataset=replace(job.dataset, name=dataset_name(dataset)),
        threat=threat,
        knowledge=knowledge_name(job.knowledge, dataset),
    )


def once(records: Iterable[Record]) -> list[Record]:
    """The records under canonical names, one for each job of a protocol.

    Records under the name of a shipped suite are preferred, and among those the latest.
    """
    kept: dict[tuple[str, str], Record] = {}
    for record in records:
        record = replace(record, job=canonical(record.job))
        place = (record.job.protocol, record.job.key)
        kept[place] = max(
            kept.get(place, record), record, key=lambda r: (r.job.suite.name in catalog.suites(), r.finished)
        )
    return list(kept.values())


def others(folder: Path, job: Job) -> Iterator[Record]:
    """The records of a job's suite and protocol in other folders, where names are spelled differently. Some may be of
    other jobs.

    Args:
        folder: the folder of the job's record. The search covers its siblings and other protocols.
    """
    defense = folder.parent.name
    old_names = (slug(defense).replace(f"{new}-", f"{old}-") for old, new in specs.RENAMED.items())
    names = {slug(defense), *old_names}
    places = [*folder.parent.glob("*")]
    places += [place for name in names for place in folder.parent.parent.parent.glob(f"*/{name}/*")]
    digests = (job.dataset.digest.encode(), (job.defense.checkpoint_sha256 or job.defense.name).encode())
    for place in sorted(dict.fromkeys(places)):
        file = place / record_file.FILE
        if place == folder or aside(place.parts[-1:]) or not file.is_file():
            continue
        try:
            # Parsing a record is slow, and most are of other images.
            encoded = file.read_bytes()
            record = read_record(place) if all(digest in encoded for digest in digests) else None
        except (OSError, ResourceError):
            continue
        wanted = (job.protocol, job.suite.name)
        if record and (canonical(record.job).protocol, record.job.suite.name) == wanted:
            yield record


def _threat(text: str) -> str:
    try:
        return text if text == NO_THREAT else like(text, str(Threat.parse(text, late=True)))
    except UsageError:
        return text


@cache
def shipped_threats() -> frozenset[str]:
    """The threats of the shipped protocols and suites."""
    threats = {str(protocol.threat) for protocol in catalog.protocols().values()}
    rungs = [rung for suite in catalog.suites().values() for rung in suite.rungs]
    return frozenset(threats | {str(threat) for rung in rungs for threat in rung.threats.values()})


def _base(dataset: str) -> str:
    try:
        return specs.parse(dataset).name
    except UsageError:
        return dataset
