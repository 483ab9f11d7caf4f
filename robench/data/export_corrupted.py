"""Corrupted images on the disk, in the layouts that others read: what `robench corrupt` does, from Python."""

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from robench.core.errors import ResourceError, UsageError, unknown_name
from robench.core.io import claim, disk_errors, write_file, write_quickly
from robench.core.specs import parse
from robench.corruption.make import JPEG, SMALLEST, enlargement, library
from robench.corruption.names import COMMON, SEVERITIES, VALIDATION
from robench.corruption.tasks import Task, in_order
from robench.data import Images
from robench.data._names import synsets
from robench.data.corrupted import bytes8, spans

# Where RobustBench's reader of .npy files looks for the next severity, whatever the file holds.
_ROBUSTBENCH = 10_000
FACTS = "robench-corrupt.json"
# What every JPEG file ends with.
_END = b"\xff\xd9"
GROUPS = {"common": COMMON, "validation": VALIDATION, "all": COMMON + VALIDATION}


def write_corrupted(
    images: Images,
    output: Path | str,
    corruptions: Sequence[str] = COMMON,
    severities: Sequence[int] = SEVERITIES,
    *,
    seed: int = 0,
    workers: int = 1,
    note: Callable[[str], None] = lambda text: None,
) -> Path:
    """Corrupt images into a folder; called again, it goes on where it was interrupted.

    ImageNet's go into ImageNet-C's layout, <corruption>/<severity>/<synset>/<name>.JPEG, as JPEG files of its
    quality. All others go into CIFAR-10-C's, an array <corruption>.npy with the five severities one after
    another, and labels.npy, without JPEG. A file `robench-corrupt.json` says which, and of what.

    Args:
        images: of the data set's test split.
        corruptions: names.
        severities: of 1 to 5; the second layout has all five.
        workers: processes; they change no pixel.
        note: told of every part that is done.

    Returns:
        The folder.

    Raises:
        UsageError: for an unknown name, or some severities alone where the layout has all.
        ResourceError: when images or the library are missing, the folder cannot be written, or holds another set.
    """
    known = GROUPS["all"]
    for name in corruptions:
        if name not in known:
            raise unknown_name("corruption", name, {*known})
    folders = parse(images.name).name == "imagenet"
    if not folders and set(severities) != set(SEVERITIES):
        raise UsageError(f"{images.name} goes into .npy files of all five severities: leave --severity out")
    facts = {
        "dataset": images.name,
        "digest": images.digest,
        "n": len(images),
        "seed": seed,
        "library": library(),
        "jpeg": dict(JPEG) if folders else None,
        "enlarged": enlargement(*images.x.shape[2:]),
    }
    if facts["enlarged"] > 1:
        note(
            f"the library takes images from {SMALLEST} px on: these are corrupted at {facts['enlarged']} times their "
            "size and made small again"
        )
    if not folders and len(images) != _ROBUSTBENCH:
        note(f"{len(images)} images: RobustBench reads CIFAR's files with {_ROBUSTBENCH:,} a severity alone")
    output = Path(output)
    # A person may well keep the images elsewhere, by a link.
    with claim(output.resolve()):
        _agree(output, facts)
        if folders:
            _write_folders(images, output, corruptions, severities, seed, workers, note)
        else:
            _write_arrays(images, output, corruptions, seed, workers, note)
    return output


def _agree(output: Path, facts: dict) -> None:
    """Note what the folder holds; refuse one that holds something else."""
    file = output / FACTS
    try:
        held = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        strangers = [each.name for each in output.iterdir() if not each.name.startswith(".")]
        if strangers:
            raise ResourceError(f"{output} holds {strangers[0]} already: give an empty folder") from None
        write_file(output / FACTS, (json.dumps(facts, indent=2) + "\n").encode())
        return
    except (OSError, ValueError) as error:
        raise ResourceError(f"{file} cannot be read: give an empty folder") from error
    if held != facts:
        other = next(
            (key for key in facts if not isinstance(held, dict) or held.get(key) != facts[key]), "more"
        )
        raise ResourceError(f"{output} holds another set, its {other} differs: give an empty folder")


def _write_folders(
    images: Images,
    output: Path,
    corruptions: Sequence[str],
    severities: Sequence[int],
    seed: int,
    workers: int,
    note: Callable[[str], None],
) -> None:
    names = [
        (synsets()[label], f"ILSVRC2012_val_{number + 1:08d}.JPEG")
        for number, label in zip(images.ids.tolist(), images.y.tolist(), strict=True)
    ]
    cells = [(name, severity) for name in corruptions for severity in severities]
    places = [output / name / str(severity) for name, severity in cells]
    work = [
        (
            number,
            [row for row in range(rows.start, rows.stop) if not _whole(place.joinpath(*names[row]))],
        )
        for number, place in enumerate(places)
        for rows in spans(images)
    ]

    def tasks() -> Iterator[Task]:
        for number, rows in work:
            if rows:
                yield _task(images, rows, *cells[number], seed, jpeg=True)

    made = in_order(tasks(), workers, files=True)
    for i, (number, rows) in enumerate(work):
        for synset in {names[row][0] for row in rows}:
            with disk_errors(output):
                (places[number] / synset).mkdir(parents=True, exist_ok=True)
        for row, file in zip(rows, next(made) if rows else (), strict=True):
            write_quickly(places[number].joinpath(*names[row]), file)
        if i + 1 == len(work) or work[i + 1][0] != number:
            note(f"{' '.join(map(str, cells[number]))} is in {places[number]}")


def _whole(file: Path) -> bool:
    """Whether a JPEG file is there to its last bytes, which a power cut may have cost it."""
    try:
        with file.open("rb") as opened:
            opened.seek(-len(_END), os.SEEK_END)
            return opened.read() == _END
    except OSError:
        return False


def _write_arrays(
    images: Images,
    output: Path,
    corruptions: Sequence[str],
    seed: int,
    workers: int,
    note: Callable[[str], None],
) -> None:
    truths = output / "labels.npy"
    if not truths.is_file():
        write_file(truths, _npy(np.tile(images.y.numpy(), len(SEVERITIES))))
    lacking = [name for name in corruptions if not (output / f"{name}.npy").is_file()]
    parts = [range(rows.start, rows.stop) for rows in spans(images)]
    made = in_order(
        (
            _task(images, rows, name, severity, seed, jpeg=False)
            for name in lacking
            for severity in SEVERITIES
            for rows in parts
        ),
        workers,
    )
    for name in corruptions:
        if name in lacking:
            whole = np.concatenate([next(made).pixels for _ in SEVERITIES for _ in parts])
            write_file(output / f"{name}.npy", _npy(whole))
        note(f"{name} is in {output / name}.npy")


def _task(images: Images, rows: Sequence[int], name: str, severity: int, seed: int, jpeg: bool) -> Task:
    chosen = list(rows)
    return Task(bytes8(images.x[chosen]), tuple(images.ids[chosen].tolist()), name, severity, seed, jpeg)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
