"""Collect the usable records under some folders, and the reasons why others cannot be used."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from robench.core import registry, specs
from robench.core.errors import ResourceError, RobenchError
from robench.core.io import open_ordinary
from robench.corruption.suite import cells, corruptions
from robench.records import certificate_file, certification, estimate, inputs, samples
from robench.records import record as record_file
from robench.records.certification import Certification
from robench.records.cross_checks import with_warnings
from robench.records.jobs import once, shipped_threats
from robench.records.randomized import ANSWERS, FIELD
from robench.records.reading import LeftOut, read_all
from robench.records.record import Record, read_record
from robench.records.remote import local_copy
from robench.records.store import is_current
from robench.threats.threat import NO_THREAT, Threat

if TYPE_CHECKING:
    import pyarrow as pa

# The files that a record has beside its record.json.
FILES = (samples.FILE, certificate_file.FILE, inputs.FILE)
# Tolerance of fractions and their intervals, which are stored in full precision.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Collection(Sequence[Record]):
    """The records under some folders.

    Attributes:
        records: the records that can be used.
        left_out: the other files, with the reasons.
        certifications: the lower bounds that robench certify saved there.
    """

    records: tuple[Record, ...]
    left_out: tuple[LeftOut, ...] = ()
    certifications: tuple[Certification, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


def collect(results: Iterable[Path | str]) -> Collection:
    """The records under the folders, sorted by path, with the warnings from other records and diagnoses.

    Superseded and partial records and the runs of a diagnosis are ignored. A record that cannot be used is left out
    and is not an error. Names are canonical, and each job has one record.

    Raises:
        ResourceError: when a folder does not exist.
    """
    roots = [local_copy(root, pull=True) for root in results]
    records, left_out = read_all(record_file.FILE, roots, usable, is_current)
    folders = [root for root in roots if not root.is_file()]
    warned, damaged = with_warnings(tuple(once(records)), folders)
    certifications, unreadable = certification.collect(folders)
    return Collection(warned, (*left_out, *damaged, *unreadable), tuple(certifications))


def usable(path: Path | str) -> Record | LeftOut:
    """The record in a folder, or at the path of its record.json, if it passes `check`."""
    path = Path(path)
    try:
        record = read_record(path)
        folder = record.folder or path
        check(record, lambda name: open_ordinary(folder / name))
    # A file from elsewhere may raise any error, which must not hide the other records.
    except Exception as error:
        return LeftOut.of(path, error)
    return record


def check(record: Record, opened: Callable[[str], BinaryIO]) -> None:
    """Refuse a record that is inconsistent or names something unknown. `verify` checks whether its figures are true.

    Args:
        opened: opens a file of the record by its name.

    Raises:
        ResourceError: in one line, when the threat, dataset or a spec is unknown or malformed, figures contradict each
            other, or a file beside it is missing, damaged or has another number of samples.
    """
    try:
        _check_names(record)
        _check_figures(record)
        check_files(record)
        rows = _read(opened, samples.FILE, lambda file: samples.decode(file.read()))
        check_rows(record, rows)
        # Certificates are large and may be missing from a record that is shown on a board.
        _read(opened, certificate_file.FILE, certificate_file.check_header, needed=False)
    except ResourceError:
        raise
    except RobenchError as error:
        raise ResourceError(str(error)) from error


def check_files(record: Record) -> None:
    """Refuse a record whose `files` names anything else than `FILES`.

    A file of another name could be the result of another command, which would count without having been run.

    Raises:
        ResourceError: naming the first such file.
    """
    if others := [name for name in record.files if name not in FILES]:
        raise ResourceError(f"files.{others[0]} is not a file of a record: expected {', '.join(FILES)}")


def _read(
    opened: Callable[[str], BinaryIO], name: str, read: Callable[[BinaryIO], Any], needed: bool = True
) -> Any:
    try:
        with opened(name) as file:
            return read(file)
    except FileNotFoundError:
        if needed:
            raise ResourceError(f"{name} is missing") from None
    except OSError as error:
        raise ResourceError(f"{name}: {error.strerror or error}") from error
    except ValueError as error:
        raise ResourceError(f"{name}: {error}") from error


def _check_names(record: Record) -> None:
    job = record.job
    if record.corrupted != (job.threat == NO_THREAT):
        raise ResourceError(
            f'threat is "{job.threat}": only runs under corruptions have the threat {NO_THREAT}'
        )
    if not record.corrupted and _has_arguments(job.threat_model) and job.threat not in shipped_threats():
        _ = job.threat_model.coordinates  # Building them checks the arguments, and imports torch.
    registry.datasets.describe(specs.parse(job.dataset.name).name.partition(":")[0])
    for spec in job.suite.attacks:
        specs.parse(spec)
    if record.corrupted:
        _check_cells(record)


def _has_arguments(threat: Threat) -> bool:
    return bool(threat.name and specs.parse(threat.name).arguments)


def _check_cells(record: Record) -> None:
    """Check that a run under corruptions has an accuracy for every corruption and severity of its suite."""
    expected = cells(corruptions(record.job.suite.attacks))
    accuracy = record.extra["corruptions"]["accuracy"]
    recorded = {(name, int(severity)) for name, by_severity in accuracy.items() for severity in by_severity}
    if not expected or recorded != {(cell.name, cell.severity) for cell in expected}:
        raise ResourceError(
            "corruptions.accuracy does not have the corruptions and severities of suite.attacks"
        )
    if ("mce" in record.extra) != ("relative_mce" in record.extra):
        raise ResourceError("mce and relative_mce must both be present, or neither")


def _check_figures(record: Record) -> None:
    """Check that every accuracy lies in its interval and agrees with its count."""
    n, extra = record.job.n, record.extra
    for name in ("clean_accuracy", "robust_accuracy"):
        accuracy = getattr(record, name)
        _check_share(name, accuracy.value, accuracy.interval)
        if not abs(accuracy.value - accuracy.correct / n) <= _ROUNDING:
            raise ResourceError(f"{name}.value is not {accuracy.correct} of {n}")
    shares = {
        f"{FIELD}.{part}.{name}": share
        for part in ("clean", "robust")
        for name, share in extra.get(FIELD, {}).get(part, {}).items()
    }
    tables = {"corrupted_accuracy": extra.get("corrupted_accuracy", {})}
    for corruption, by_severity in extra.get("corruptions", {}).get("accuracy", {}).items():
        tables[f"corruptions.accuracy.{corruption}"] = by_severity
    shares |= {f"{table}.{name}": share for table, named in tables.items() for name, share in named.items()}
    if estimate.FIELD in extra:
        shares["estimate.at_most"] = extra[estimate.FIELD]["at_most"]
    shares |= {name: extra[name] for name in ("mce", "relative_mce") if name in extra}
    for name, share in shares.items():
        _check_share(name, share["value"], share["interval"])


def _check_share(name: str, value: float, interval: Sequence[float]) -> None:
    low, high = interval
    if not low - _ROUNDING <= value <= high + _ROUNDING:
        raise ResourceError(f"{name}: {value:.6g} is outside its interval, {low:.6g} to {high:.6g}")


def check_rows(record: Record, rows: "pa.Table") -> None:
    """Refuse rows of samples.parquet from which the figures of a record cannot be counted.

    Raises:
        ResourceError: in one line, when the number of rows or draws, or the kind of record, is another.
    """
    n = record.job.n
    if len(rows) != n:
        raise ResourceError(f"{samples.FILE} has {len(rows)} rows, but the record has n = {n}")
    if len(set(rows["id"].to_pylist())) < n:
        raise ResourceError(f"{samples.FILE} has duplicate ids")
    has_corrupted = samples.CORRUPTED.name in rows.schema.names
    if has_corrupted != record.corrupted:
        raise ResourceError(
            f"{samples.FILE} is {'not ' if record.corrupted else ''}from a run under corruptions"
        )
    if has_corrupted:
        width = len(cells(corruptions(record.job.suite.attacks)))
        if any(len(row) != width for row in rows[samples.CORRUPTED.name].to_pylist()):
            raise ResourceError(f"{samples.FILE} has rows without exactly {width} corruptions and severities")
    sampled = estimate.FIELD in record.extra
    if sampled != (estimate.ORDER in rows.schema.names):
        raise ResourceError(f"{samples.FILE} is {'not ' if sampled else ''}from an estimate")
    if not sampled and estimate.NOT_ATTACKED in rows["fooled_by"].to_pylist():
        raise ResourceError(f"{samples.FILE} has rows that were not attacked, as only an estimate has")
    randomised = record.extra.get(FIELD, {})
    draws = randomised.get("draws", 1)
    for name in ("clean_draws", "draws"):
        if any(not 0 <= wrong <= draws for wrong in rows[name].to_pylist()):
            raise ResourceError(f"{samples.FILE} has {name} outside 0 to {draws}, the number of draws")
    if bool(randomised.get("fresh")) != (ANSWERS["robust"] in rows.schema.names):
        raise ResourceError(f"{samples.FILE} and {FIELD}.fresh disagree about whether there are fresh draws")
    for name in ANSWERS.values() if randomised.get("fresh") else ():
        if any(len(row) != draws for row in rows[name].to_pylist()):
            raise ResourceError(f"{samples.FILE} has {name} without exactly {draws} draws")


def in_memory(contents: dict[str, bytes]) -> Callable[[str], BinaryIO]:
    """The argument `opened` of `check` for files in memory."""

    def opened(name: str) -> BinaryIO:
        if name not in contents:
            raise FileNotFoundError(name)
        return io.BytesIO(contents[name])

    return opened
