"""Where records lie, and how one is written whole without losing another."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from robench.core.errors import ResourceError
from robench.core.io import Content, disk_errors, refuse_link, sync_folder, write_whole
from robench.data._base import Images
from robench.engine.outcome import Outcome
from robench.records import certificates, provenance, randomized, record, samples
from robench.records.cross_checks import DIAGNOSIS
from robench.records.record import Job, Record, read_record
from robench.statistics.accuracy import Accuracy
from robench.threats.threat import Threat

SUPERSEDED = "superseded"
# A run under way, in the folder of its record.
PARTIAL = ".partial"
_LONGEST = 100


def aside(inside: Sequence[str]) -> bool:
    """Whether what lies in these folders is no record of its own: replaced, not finished, or a diagnosis' run."""
    return SUPERSEDED in inside or any(
        part.endswith(PARTIAL) or part.partition("@")[0] == DIAGNOSIS for part in inside
    )


def slug(name: str) -> str:
    """`name` as one safe part of a path: letters, digits, dots, dashes and underscores, at most 100 of them.

    A name that is too long, or of letters that are left out, has a digest of all of it at its end.
    """
    signed = re.sub(r"(?<=[=(\[, ])-(?=[.\d])", "minus", name)
    safe = re.sub(r"[^A-Za-z0-9._]+", "-", signed).strip("-.") or "unnamed"
    if len(safe) <= _LONGEST and name.isascii():
        return safe
    return f"{safe[: _LONGEST - 9]}-{hashlib.sha256(name.encode(errors='backslashreplace')).hexdigest()[:8]}"


def record_folder(
    results: Path | str, protocol: str, defense: str, suite: str, knowledge: str = "full", seed: int = 0
) -> Path:
    """Where a run's record lies: <results>/<protocol>/<defense>/<suite>[@<knowledge>][+seed<k>]."""
    last = slug(suite)
    last += f"@{slug(knowledge)}" if knowledge != "full" else ""
    last += f"+seed{seed}" if seed != 0 else ""
    return Path(results) / slug(protocol) / slug(defense) / last


def place_of(results: Path | str, found: Record) -> Path:
    """Where a record belongs."""
    job = found.job
    return record_folder(results, job.protocol, job.defense.name, job.suite.name, job.knowledge, job.seed)


def shelf_place(folder: Path, name: str) -> Path:
    """A free place under the folder's `superseded/`."""
    place, count = folder / SUPERSEDED / name, 1
    while place.exists():
        count += 1
        place = folder / SUPERSEDED / f"{name}-{count}"
    return place


def make_record(
    job: Job,
    outcome: Outcome,
    *,
    command: str,
    started: datetime,
    finished: datetime,
    seconds: float,
    device: torch.device | str,
    extra: Mapping[str, Any] | None = None,
) -> Record:
    """The record of an outcome; `write_record` adds what belongs to its files.

    The outcome's own precision and batch size are written, which memory may have forced below the job's.

    Args:
        seconds: computing time in all, over every resumption.
        started, finished: with a time zone.
        extra: further top-level fields, `mce` say.
    """
    job = replace(
        job, precision=outcome.precision or job.precision, batch_size=outcome.batch_size or job.batch_size
    )
    clean = sum(name != "clean" for name in outcome.fooled_by)
    return Record(
        job=job,
        key=job.key,
        robench_version=provenance.robench_version(),
        git=provenance.git_state(),
        command=command,
        clean_accuracy=Accuracy.of(clean, job.n),
        robust_accuracy=Accuracy.of(int(outcome.robust.sum()), job.n),
        attacks=tuple(replace(cost, seconds=round(cost.seconds, 3)) for cost in outcome.attacks),
        passes=outcome.passes,
        seconds=round(seconds, 3),
        health=tuple(outcome.health),
        device=provenance.device_name(device),
        platform=provenance.platform_facts(),
        started=_iso(started),
        finished=_iso(finished),
        extra=extra or {},
    )


def write_record(
    folder: Path, found: Record, outcome: Outcome, images: Images, threat: Threat | None = None
) -> Record:
    """Write record.json, samples.parquet and adversarials.safetensors, each whole, record.json last.

    So a folder with a record.json is complete. A record that is there and says something else is first kept
    under `superseded/`; every old file stays in place until all new ones are on the disk.

    Args:
        threat: the job's; None to read its text.

    Returns:
        The record with the digests of its files and its folder.

    Raises:
        ResourceError: when the disk is full or the folder cannot be written.
        ValueError: when the outcome breaks the engine's promises (rows missing, unreachable images).
    """
    if not found.job.n == len(images) == len(outcome.fooled_by):
        raise ValueError(f"n = {found.job.n}, {len(images)} images, {len(outcome.fooled_by)} outcomes")
    contents: dict[str, Content] = {
        samples.FILE: samples.encode(outcome, images),
        certificates.FILE: certificates.encode(outcome, images, threat or found.job.threat_model),
    }
    return write_files(folder, replace(found, extra={**found.extra, **_drawn(outcome, images)}), contents)


def write_files(folder: Path, found: Record, contents: Mapping[str, Content]) -> Record:
    """Write a record and its files as `write_record` does, for a kind of run with files of its own.

    Args:
        contents: file name -> content, without record.json.
    """
    found = replace(found, folder=Path(folder))

    def last(digests: Mapping[str, str]) -> bytes:
        nonlocal found
        found = replace(found, files=dict(digests))
        return found.encode()

    write_whole(
        Path(folder),
        {**contents, record.FILE: last},
        make_way=lambda: _keep_other(Path(folder), found),
    )
    return found


def _drawn(outcome: Outcome, images: Images) -> dict[str, Any]:
    """What the record of a randomised defense says besides."""
    if outcome.of_draws == 1:
        return {}
    rows = {"label": images.y.tolist()}
    for name in ("clean_prediction", "prediction", "clean_draws", "draws", "clean_answers", "answers"):
        column = getattr(outcome, name)
        if column is not None:
            rows[name] = column.tolist()
    return {randomized.FIELD: randomized.figures(rows, outcome.of_draws)}


def _keep_other(folder: Path, found: Record) -> None:
    if not (folder / record.FILE).is_file():
        return
    try:
        old = read_record(folder)
    except ResourceError:
        supersede(folder)
        return
    if (old.key, old.files) != (found.key, found.files):
        supersede(folder)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def supersede(folder: Path) -> Path | None:
    """Move the record in `folder` to `superseded/<first 8 of its key>/`, where boards do not look.

    A kill at any moment leaves it in one place or the other, or in both.

    Returns:
        Where it lies now; None when there was no record.

    Raises:
        ResourceError: when the disk is full or the folder cannot be written.
    """
    if not (folder / record.FILE).is_file():
        return None
    try:
        old = read_record(folder)
        name, files = old.key[:8], (*old.files, record.FILE)
    except ResourceError:
        name, files = "unreadable", (samples.FILE, certificates.FILE, record.FILE)
    with disk_errors(folder):
        shelf = folder / SUPERSEDED
        refuse_link(shelf)
        shelf.mkdir(exist_ok=True)
        place = shelf_place(folder, name)
        copy = Path(tempfile.mkdtemp(prefix=".", suffix=PARTIAL, dir=shelf))
        copy.chmod(0o755)
        try:
            present = [file for file in files if slug(file) == file and (folder / file).is_file()]
            for file in present:
                shutil.copy2(folder / file, copy / file, follow_symlinks=False)
            sync_folder(copy)
            copy.rename(place)
        except OSError:
            shutil.rmtree(copy, ignore_errors=True)
            raise
        sync_folder(shelf)
        # record.json goes first: what remains without it is no record.
        for file in reversed(present):
            (folder / file).unlink()
    return place
