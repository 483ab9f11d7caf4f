"""The record that answers a job, so that it need not be run again."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from robench.core.errors import ResourceError
from robench.data import Images
from robench.defenses import Loaded
from robench.engine.device import choose_device
from robench.evaluation.answering import contradiction
from robench.evaluation.options import Options
from robench.records import jobs
from robench.records.cross_checks import old_draws
from robench.records.provenance import robench_version
from robench.records.record import Job, Record, read_record
from robench.records.store import supersede


def saved_record(folder: Path, job: Job, loaded: Loaded, images: Images, options: Options) -> Record | None:
    """The complete record of this job in `folder`, or one that lies elsewhere; None where there is none.

    A record whose defense answers some images differently now, because its code has changed, say, is superseded.
    """
    record = None
    if (folder / "record.json").is_file():
        with suppress(ResourceError):
            record = read_record(folder)
    if record is None or not _same(record, job, options):
        record = next((other for other in jobs.others(folder, job) if _same(other, job, options)), None)
    if record is None:
        return None
    folder = record.folder or folder
    if reason := contradiction(record, loaded.defense, images, choose_device(options.device)):
        kept = supersede(folder)
        options.note(
            f"the record in {folder} is not of {loaded.name} as it is now: {reason}; it is kept in {kept}"
        )
        return None
    # Another release may give warnings that this record does not hold.
    made, here = record.robench_version, robench_version()
    by = "" if made == here else f", made by robench {made} (this is {here})"
    options.note(f"answered from {folder}{by}; --fresh runs it again")
    for mark in old_draws(record):
        options.note(f"{folder}: {mark.text}")
    return record


def retire(folder: Path, job: Job, options: Options) -> None:
    """Move records of this job that lie elsewhere to `superseded/`: the new one takes their place."""
    for record in jobs.others(folder, job):
        if _same(record, job, options) and record.folder:
            supersede(record.folder)


def _same(record: Record, job: Job, options: Options) -> bool:
    """Whether a record is of this job."""
    # A run that ran out of memory went on with smaller batches than "auto" had chosen: its record still counts.
    asked = replace(job, batch_size=record.job.batch_size) if options.batch_size == "auto" else job
    return asked.key in (record.key, jobs.canonical(record.job).key)
