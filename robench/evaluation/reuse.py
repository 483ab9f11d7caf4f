"""Reuse of a saved record instead of repeating its run."""

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
    """The complete record of this job, in `folder` or in another folder of the results; None if there is none.

    A record is superseded if the defense now classifies some images differently, for example because its code has
    changed.
    """
    record = None
    if (folder / "record.json").is_file():
        with suppress(ResourceError):
            record = read_record(folder)
    if record is None or not _is_of_job(record, job, options):
        record = next((other for other in jobs.others(folder, job) if _is_of_job(other, job, options)), None)
    if record is None:
        return None
    folder = record.folder or folder
    if reason := contradiction(record, loaded.defense, images, choose_device(options.device)):
        superseded = supersede(folder)
        options.note(
            f"the record in {folder} does not match the current {loaded.name}: {reason}; it was moved to {superseded}"
        )
        return None
    # Another release may give warnings that this record does not contain.
    recorded, current = record.robench_version, robench_version()
    version = "" if recorded == current else f", made by robench {recorded} (this is {current})"
    options.note(f"using the saved record in {folder}{version}; --fresh runs it again")
    if any("gradient" in warning.text for warning in record.health):
        options.note(
            f"{folder}: only the logits were compared, and its warnings concern gradients: use --fresh if they changed"
        )
    for warning in old_draws(record):
        options.note(f"{folder}: {warning.text}")
    return record


def retire(folder: Path, job: Job, options: Options) -> None:
    """Move records of this job in other folders to `superseded/`, because a new record replaces them."""
    for record in jobs.others(folder, job):
        if _is_of_job(record, job, options) and record.folder:
            supersede(record.folder)


def _is_of_job(record: Record, job: Job, options: Options) -> bool:
    # With "auto", the batch size may differ: a run reduces it when it runs out of memory.
    if options.batch_size == "auto":
        job = replace(job, batch_size=record.job.batch_size)
    return job.key in (record.key, jobs.canonical(record.job).key)
