"""The folders of records. Records are written atomically, and existing ones are never lost."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench.core.errors import ResourceError
from robench.core.io import Content, disk_errors, refuse_link, sync_folder, write_whole
from robench.records import certificate_file, provenance, randomized, record, samples
from robench.records.cross_checks import is_diagnosis
from robench.records.record import Job, Record, read_record
from robench.statistics.accuracy import Accuracy
from robench.threats.threat import Threat

if TYPE_CHECKING:
    import torch

    from robench.data._base import Images
    from robench.engine.outcome import Outcome

SUPERSEDED = "superseded"
# The folder of an unfinished run, in the folder of its record.
PARTIAL = ".partial"
_LONGEST = 100


def aside(folders: Sequence[str]) -> bool:
    """Whether a file in these nested folders belongs to a superseded record, an unfinished run or a diagnosis."""
    return SUPERSEDED in folders or any(part.endswith(PARTIAL) or is_diagnosis(part) for part in folders)


def is_current(file: Path, root: Path) -> bool:
    """Whether a file under a folder of results belongs to none of these."""
    return not aside(file.relative_to(root).parts[:-1])


def slug(name: str) -> str:
    """`name` as a safe file name: at most 100 letters, digits, dots, dashes and underscores.

    A name that is too long or has other letters ends in a digest of the whole name.
    """
    text = re.sub(r"(?<=[=(\[, ])-(?=[.\d])", "minus", name)
    safe = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "unnamed"
    if len(safe) <= _LONGEST and name.isascii():
        return safe
    return f"{safe[: _LONGEST - 9]}-{hashlib.sha256(name.encode(errors='backslashreplace')).hexdigest()[:8]}"


def record_folder(
    results: Path | str, protocol: str, defense: str, suite: str, knowledge: str = "full", seed: int = 0
) -> Path:
    """The folder of a run's record: <results>/<protocol>/<defense>/<suite>[@<knowledge>][+seed<k>]."""
    name = slug(suite)
    name += f"@{slug(knowledge)}" if knowledge != "full" else ""
    name += f"+seed{seed}" if seed != 0 else ""
    return Path(results) / slug(protocol) / slug(defense) / name


def place_of(results: Path | str, job: Job) -> Path:
    """The folder in which the record of a job belongs."""
    return record_folder(results, job.protocol, job.defense.name, job.suite.name, job.knowledge, job.seed)


def shelf_place(folder: Path, name: str) -> Path:
    """An unused path under the folder's `superseded/`."""
    place, count = folder / SUPERSEDED / name, 1
    while place.exists():
        count += 1
        place = folder / SUPERSEDED / f"{name}-{count}"
    return place


def make_record(
    job: Job,
    outcome: "Outcome",
    *,
    command: str,
    started: datetime,
    finished: datetime,
    seconds: float,
    device: "torch.device | str",
    extra: Mapping[str, Any] | None = None,
) -> Record:
    """The record of an outcome. `write_record` adds the digests of its files.

    Precision and batch size are those of the outcome, since a lack of memory can reduce them below those of the job.

    Args:
        seconds: total computing time, with all resumptions.
        started, finished: times with a time zone.
        extra: further top-level fields, such as `mce`.
    """
    job = replace(
        job, precision=outcome.precision or job.precision, batch_size=outcome.batch_size or job.batch_size
    )
    correct = sum(name != "clean" for name in outcome.fooled_by)
    return Record(
        job=job,
        key=job.key,
        robench_version=provenance.robench_version(),
        git=provenance.git_state(),
        command=command,
        clean_accuracy=Accuracy.of(correct, job.n),
        robust_accuracy=Accuracy.of(int(outcome.robust.sum()), job.n),
        attacks=tuple(replace(cost, seconds=round(cost.seconds, 3)) for cost in outcome.attacks),
        passes=outcome.passes,
        seconds=round(seconds, 3),
        health=tuple(outcome.health),
        device=provenance.device_name(device),
        platform=provenance.platform_facts(),
        started=iso(started),
        finished=iso(finished),
        extra={
            **(extra or {}),
            **{name: value for name in ("rows", "search") if (value := getattr(outcome, name))},
        },
    )


def write_record(
    folder: Path, new: Record, outcome: "Outcome", images: "Images", threat: Threat | None = None
) -> Record:
    """Write record.json, samples.parquet and adversarials.safetensors atomically, record.json last.

    A folder with a record.json is therefore complete. A different record in the folder is first moved to
    `superseded/`. Old files stay in place until all new ones are on disk.

    Args:
        threat: the threat of the job; parsed from the job if None.

    Returns:
        The record with the digests of its files and its folder.

    Raises:
        ResourceError: when the disk is full or the folder cannot be written.
        ValueError: when the outcome has missing rows or images that its perturbations do not reach.
    """
    from robench.records import certificates  # imports torch

    if not new.job.n == len(images) == len(outcome.fooled_by):
        raise ValueError(f"n = {new.job.n}, {len(images)} images, {len(outcome.fooled_by)} outcomes")
    contents: dict[str, Content] = {
        samples.FILE: samples.encode(outcome, images),
        certificates.FILE: certificates.encode(outcome, images, threat or new.job.threat_model),
    }
    return write_files(folder, replace(new, extra={**new.extra, **_drawn(outcome, images)}), contents)


def write_files(folder: Path, new: Record, contents: Mapping[str, Content]) -> Record:
    """Write a record like `write_record`, with other files beside it.

    Args:
        contents: the contents by file name, without record.json.
    """
    new = replace(new, folder=Path(folder))

    def encode_record(digests: Mapping[str, str]) -> bytes:
        nonlocal new
        new = replace(new, files=dict(digests))
        return new.encode()

    write_whole(
        Path(folder),
        {**contents, record.FILE: encode_record},
        make_way=lambda: _keep_other(Path(folder), new),
    )
    return new


def _drawn(outcome: "Outcome", images: "Images") -> dict[str, Any]:
    """The fields that only the record of a randomized defense has."""
    if outcome.of_draws == 1:
        return {}
    rows = {"label": images.y.tolist()}
    for name in ("clean_prediction", "prediction", "clean_draws", "draws", "clean_answers", "answers"):
        column = getattr(outcome, name)
        if column is not None:
            rows[name] = column.tolist()
    return {randomized.FIELD: randomized.figures(rows, outcome.of_draws)}


def _keep_other(folder: Path, new: Record) -> None:
    if not (folder / record.FILE).is_file():
        return
    try:
        old = read_record(folder)
    except ResourceError:
        supersede(folder)
        return
    if (old.key, old.files) != (new.key, new.files):
        supersede(folder)


def iso(moment: datetime) -> str:
    """A time in UTC, as records have it: "2026-01-31T12:00:00Z"."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """Fill a temporary folder, which becomes `place` at the end of the block. After an error there is neither."""
    place.parent.mkdir(parents=True, exist_ok=True)
    copy = Path(tempfile.mkdtemp(prefix=".", suffix=PARTIAL, dir=place.parent))
    try:
        copy.chmod(0o755)
        yield copy
        sync_folder(copy)
        copy.rename(place)
    except Exception:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    sync_folder(place.parent)


def supersede(
    folder: Path,
    file: str = record.FILE,
    read: Callable[[Path], Any] = read_record,
    others: Sequence[str] = (samples.FILE, certificate_file.FILE),
) -> Path | None:
    """Move the result in `folder` to `superseded/<first 8 digits of its key>/`, which boards ignore.

    An interruption at any time leaves the result complete in the old place, the new place or both.

    Args:
        file: the file that makes the folder a result.
        read: reads it, for its key and the names of the other files.
        others: their names if it cannot be read.

    Returns:
        The new folder of the result; None if there was none.

    Raises:
        ResourceError: when the disk is full or the folder cannot be written.
    """
    if not (folder / file).is_file():
        return None
    try:
        old = read(folder)
        name, others = old.key[:8], tuple(old.files)
    except ResourceError:
        name = "unreadable"
    present = [member for member in others if slug(member) == member and (folder / member).is_file()]
    with disk_errors(folder):
        refuse_link(folder / SUPERSEDED)
        place = shelf_place(folder, name)
        with whole_folder(place) as copy:
            for member in (*present, file):
                shutil.copy2(folder / member, copy / member, follow_symlinks=False)
        # The file that makes the folder a result is removed first.
        for member in (file, *present):
            (folder / member).unlink()
    return place
