"""Warnings that a single run cannot give: from other records on the same images, and from diagnoses.

They are marks like those of a run, and stand beside them wherever a record is shown; no file is changed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robench.core import strict_json
from robench.core.errors import ResourceError
from robench.core.io import read_ordinary
from robench.engine.outcome import ResultWarning
from robench.engine.tolerances import beyond_chance
from robench.records.identity import subjects
from robench.records.randomized import chosen_on
from robench.records.reading import LeftOut, files_named
from robench.records.record import Record
from robench.records.samples import held
from robench.threats.threat import Threat

DIAGNOSIS = "diagnosis"
FILE = "diagnosis.json"
SCHEMA = 1
# Attackers who know the defense, and those who know less and ask it nothing.
_WHITE = ("full", "bpda", "surrogate")


def with_doubts(
    records: Sequence[Record], roots: Iterable[Path | str]
) -> tuple[tuple[Record, ...], tuple[LeftOut, ...]]:
    """The records, each with the marks that others and the diagnoses under `roots` put on it.

    Returns:
        The records, and what cannot be read of the diagnoses.
    """
    number = subjects(records)

    def subject(record: Record) -> tuple:
        """The defense under any name, the images and the threat."""
        threat = record.job.threat
        if record.corrupted:
            return (number[id(record)], threat)
        parsed = Threat.parse(threat)
        return (number[id(record)], parsed.kind, parsed.eps)

    transfer = _transfer(records, subject)
    diagnosed: dict[tuple, dict[ResultWarning, None]] = {}
    found, left_out = _diagnoses(roots)
    for each in found:
        marks = diagnosed.setdefault(_about(each), {})
        marks.update({ResultWarning(mark["code"], mark["text"]): None for mark in each["health"]})
    # What is diagnosed of a defense holds for it under its other names.
    spread: dict[tuple, dict[ResultWarning, None]] = {}
    for record in records:
        marks = diagnosed.get(_about(record.to_dict()), {})
        spread.setdefault((*subject(record), record.job.knowledge), {}).update(marks)
    made = []
    for record in records:
        extra = [*transfer.get(subject(record), []), *spread[(*subject(record), record.job.knowledge)]]
        if not _knows(record):
            extra = []
        extra += old_draws(record)
        known = {mark.code for mark in record.health}
        extra = [mark for mark in extra if mark.code not in known]
        made.append(replace(record, health=(*record.health, *extra)) if extra else record)
    return tuple(made), left_out


def old_draws(record: Record) -> list[ResultWarning]:
    """The mark of a randomised defense's record that is judged on the draws its candidates were chosen on."""
    if not chosen_on(record):
        return []
    text = (
        "judged on the draws of noise that its candidates were chosen on, which makes robust accuracy look lower than "
        "it is: robench results migrate judges it again on fresh draws"
    )
    return [ResultWarning("chosen-draws", text)]


def _knows(record: Record) -> bool:
    return record.job.knowledge.partition(":")[0] in _WHITE


def _about(content: dict[str, Any]) -> tuple:
    """What a diagnosis and the records that it speaks of share: weights, data set, threat and knowledge."""
    defense, dataset = content["defense"], content["dataset"]
    named = (defense["name"], defense["checkpoint_sha256"], dataset["name"], dataset["split"])
    return (*named, content["threat"], content["knowledge"])


def _transfer(
    records: Sequence[Record], subject: Callable[[Record], tuple]
) -> dict[tuple, list[ResultWarning]]:
    """Images that fell to an attacker who does not know the defense, and to none who does."""
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        groups.setdefault(subject(record), []).append(record)
    marks: dict[tuple, list[ResultWarning]] = {}
    for about, own in groups.items():
        white = [record for record in own if _knows(record)]
        black = [record for record in own if not _knows(record)]
        if not white or not black:
            continue
        standing = [held(record) for record in white]
        if any(each is None for each in standing):
            continue
        left = np.logical_and.reduce([each for each in standing if each is not None])
        for record in black:
            found = held(record)
            won = int((left & ~found).sum()) if found is not None else 0
            if beyond_chance(won, record.job.n):
                text = (
                    f"{record.job.suite.name} with knowledge {record.job.knowledge} fooled {won} images that survived "
                    "every white-box attack: gradients may be masked"
                )
                marks.setdefault(about, []).append(ResultWarning("transfer-beats-white-box", text))
                break
    return marks


def _diagnoses(roots: Iterable[Path | str]) -> tuple[list[dict[str, Any]], tuple[LeftOut, ...]]:
    found: dict[Path, dict[str, Any]] = {}
    left_out = []
    for root in roots:
        if Path(root).is_file():
            continue
        for file in files_named(FILE, root):
            if isinstance(file, LeftOut):
                left_out.append(file)
            elif (place := file.resolve()) not in found:
                try:
                    found[place] = read_diagnosis(file)
                except ResourceError as error:
                    left_out.append(LeftOut.of(file, error))
    return list(found.values()), tuple(left_out)


def read_diagnosis(file: Path) -> dict[str, Any]:
    """The content of a diagnosis.json.

    Raises:
        ResourceError: when it is missing, damaged or of another kind.
    """
    mend = "repeat robench diagnose, or remove it"
    try:
        content = strict_json.loads(read_ordinary(file, strict_json.LONGEST + 1))
        marks = [part for mark in content["health"] for part in (mark["code"], mark["text"])]
        if content["schema"] == SCHEMA and all(isinstance(part, str) for part in (*_about(content), *marks)):
            return content
    except OSError as error:
        raise ResourceError(f"{file}: {error.strerror or error}: {mend}") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise ResourceError(f"{file}: damaged or no diagnosis of schema {SCHEMA}: {mend}")
