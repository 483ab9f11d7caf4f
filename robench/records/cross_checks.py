"""Warnings that need more than one run: from other records on the same images, and from diagnoses.

They are shown together with the warnings of the run wherever a record is shown. No file is changed.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robench.core import strict_json
from robench.core.errors import ResourceError
from robench.core.grouping import grouped
from robench.engine.outcome import ResultWarning
from robench.engine.tolerances import beyond_chance
from robench.records import estimate, json_files
from robench.records.identity import subjects
from robench.records.randomized import chosen_on
from robench.records.reading import LeftOut, read_all
from robench.records.record import Record
from robench.records.samples import held
from robench.threats.knowledge import Knowledge

DIAGNOSIS = "diagnosis"
FILE = "diagnosis.json"
SCHEMA = 1


def is_diagnosis(folder: str) -> bool:
    """Whether a folder has a name that robench diagnose gives: diagnosis[@<knowledge>][+seed<k>]."""
    return re.split("[@+]", folder)[0] == DIAGNOSIS


def _is_of_diagnose(file: Path, root: Path) -> bool:
    # A file of this name in another folder is not from robench diagnose.
    return is_diagnosis(file.absolute().parent.name)


def with_warnings(
    records: Sequence[Record], roots: Iterable[Path]
) -> tuple[tuple[Record, ...], tuple[LeftOut, ...]]:
    """Add the warnings from other records and from the diagnoses under `roots` to the records.

    Returns:
        The records, and the diagnoses that cannot be read.
    """
    number = subjects(records)

    def subject(record: Record) -> tuple:
        """The defense under any name, the images and the threat."""
        threat = record.job.threat
        if record.corrupted:
            return (number[id(record)], threat)
        parsed = record.job.threat_model
        return (number[id(record)], parsed.kind, parsed.eps)

    transfer = _transfer(records, subject)
    diagnosed: dict[tuple, dict[ResultWarning, None]] = {}
    diagnoses, left_out = read_all(FILE, roots, read_diagnosis, _is_of_diagnose)
    for diagnosis in diagnoses:
        warnings = (ResultWarning(warning["code"], warning["text"]) for warning in diagnosis["health"])
        diagnosed.setdefault(_about(diagnosis), {}).update(dict.fromkeys(warnings))
    # A diagnosis of a defense also applies to the same defense under other names.
    spread: dict[tuple, dict[ResultWarning, None]] = {}
    for record in records:
        warnings = diagnosed.get(_about(record.to_dict()), {})
        spread.setdefault((*subject(record), record.job.knowledge), {}).update(warnings)
    warned = []
    for record in records:
        extra = [*transfer.get(subject(record), []), *spread[(*subject(record), record.job.knowledge)]]
        if not _knows(record):
            extra = []
        extra += own_warnings(record)
        known = {warning.code for warning in record.health}
        extra = [warning for warning in extra if warning.code not in known]
        warned.append(replace(record, health=(*record.health, *extra)) if extra else record)
    return tuple(warned), tuple(left_out)


def own_warnings(record: Record) -> list[ResultWarning]:
    """The warnings that follow from the content of a record and that its `health` leaves out."""
    known = {warning.code for warning in record.health}
    warnings = [*old_draws(record), *estimate.warnings_of(record.extra)]
    return [warning for warning in warnings if warning.code not in known]


def old_draws(record: Record) -> list[ResultWarning]:
    """The warning for a record that is judged on the draws that its candidates were chosen on."""
    if not chosen_on(record):
        return []
    text = (
        "judged on the noise draws that its candidates were chosen on, which underestimates robust accuracy: robench "
        "results migrate judges it again on fresh draws"
    )
    return [ResultWarning("chosen-draws", text)]


def _knows(record: Record) -> bool:
    """Whether it is a white-box attack, which queries the defense."""
    return Knowledge.of(record.job.knowledge).level.feedback


def _about(content: dict[str, Any]) -> tuple:
    """The key that a diagnosis shares with its records: weights, dataset, threat and knowledge."""
    defense, dataset = content["defense"], content["dataset"]
    named = (defense["name"], defense["checkpoint_sha256"], dataset["name"], dataset["split"])
    return (*named, content["threat"], content["knowledge"])


def _transfer(
    records: Sequence[Record], subject: Callable[[Record], tuple]
) -> dict[tuple, list[ResultWarning]]:
    """Warn if an attacker who does not know the defense fooled images that no white-box attack fooled."""
    warnings: dict[tuple, list[ResultWarning]] = {}
    for about, subject_records in grouped(records, subject).items():
        white = [record for record in subject_records if _knows(record)]
        black = [record for record in subject_records if not _knows(record)]
        if not white or not black:
            continue
        standing = [held(record) for record in white]
        if any(robust is None for robust in standing):
            continue
        left = np.logical_and.reduce([robust for robust in standing if robust is not None])
        for record in black:
            robust = held(record)
            fooled = int((left & ~robust).sum()) if robust is not None else 0
            if beyond_chance(fooled, record.job.n):
                text = (
                    f"{record.job.suite.name} with knowledge {record.job.knowledge} fooled {fooled} images that "
                    "survived every white-box attack: gradients may be masked"
                )
                warnings.setdefault(about, []).append(ResultWarning("transfer-beats-white-box", text))
                break
    return warnings


def read_diagnosis(file: Path) -> dict[str, Any]:
    """The content of a diagnosis.json.

    Raises:
        ResourceError: when it is missing, damaged or of another kind.
    """
    remedy = "repeat robench diagnose, or remove it"
    try:
        content = strict_json.loads(json_files.read_limited(file))
        texts = [part for warning in content["health"] for part in (warning["code"], warning["text"])]
        if content["schema"] == SCHEMA and all(isinstance(part, str) for part in (*_about(content), *texts)):
            return content
    except OSError as error:
        raise ResourceError(f"{file}: {error.strerror or error}: {remedy}") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise ResourceError(f"{file}: damaged or no diagnosis of schema {SCHEMA}: {remedy}")
