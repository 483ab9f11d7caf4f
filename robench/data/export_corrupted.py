"""Writing corrupted images to disk in the layouts of ImageNet-C and CIFAR-10-C, for `robench corrupt`."""

import io
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from robench.core.errors import ResourceError, UsageError
from robench.core.io import claim, disk_errors, read_ordinary, write_file, write_quickly
from robench.core.specs import parse
from robench.corruption.make import JPEG, SMALLEST, enlargement, library
from robench.corruption.names import COMMON, SEVERITIES, VALIDATION, check_corruption
from robench.corruption.tasks import Task, in_order
from robench.data import Images
from robench.data._names import synsets
from robench.data.corrupted import bytes8, spans

# Number of images of each severity that RobustBench expects in .npy files.
_ROBUSTBENCH = 10_000
FACTS = "robench-corrupt.json"
# Images of each corruption and severity that are compared before their file is kept.
_COMPARED = 4
# End marker of JPEG files.
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
    """Write corrupted images to a folder; a repeated call continues after an interruption.

    Files that exist are kept if a random sample of their images, at each severity, is what would be written.

    ImageNet uses the layout of ImageNet-C, <corruption>/<severity>/<synset>/<name>.JPEG, with JPEG files of the same
    quality. Other datasets use that of CIFAR-10-C, without JPEG: an array <corruption>.npy with five severities one
    after another, and labels.npy. A file `robench-corrupt.json` describes the content.

    Args:
        images: images of the test split of a dataset.
        output: the folder, created if missing.
        corruptions: names of corruptions.
        severities: severities, 1 to 5; the second layout needs all five.
        seed: seed of the corruptions.
        workers: number of processes; results do not depend on it.
        note: called with a line of text after each part.

    Returns:
        The folder.

    Raises:
        UsageError: for an unknown name, or missing severities if the layout needs all.
        ResourceError: if images or the library are missing, or the folder cannot be written or contains other images
            or labels.
    """
    for name in corruptions:
        check_corruption(name, SEVERITIES[0], GROUPS["all"])
    folders = parse(images.name).name == "imagenet"
    if not folders and set(severities) != set(SEVERITIES):
        raise UsageError(f"{images.name} is written to .npy files with all five severities: omit --severity")
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
            f"the library needs images of at least {SMALLEST} px: these are corrupted at {facts['enlarged']} times "
            "their size and reduced again"
        )
    if not folders and len(images) != _ROBUSTBENCH:
        note(
            f"{len(images)} images: RobustBench only reads CIFAR files with {_ROBUSTBENCH:,} for each severity"
        )
    output = Path(output)
    # The output folder may be a symbolic link to another disk.
    with claim(output.resolve()):
        _check_facts(output, facts)
        if folders:
            _write_folders(images, output, corruptions, severities, seed, workers, note)
        else:
            _write_arrays(images, output, corruptions, seed, workers, note)
    return output


def _check_facts(output: Path, facts: dict) -> None:
    """Record the content of the folder; refuse a folder with other content."""
    file = output / FACTS
    try:
        recorded = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        others = [path.name for path in output.iterdir() if not path.name.startswith(".")]
        if others:
            raise ResourceError(f"{output} already contains {others[0]}: choose an empty folder") from None
        write_file(output / FACTS, (json.dumps(facts, indent=2) + "\n").encode())
        return
    except (OSError, ValueError) as error:
        raise ResourceError(f"{file} cannot be read: choose an empty folder") from error
    if recorded != facts:
        other = next(
            (key for key in facts if not isinstance(recorded, dict) or recorded.get(key) != facts[key]),
            "content",
        )
        raise ResourceError(f"{output} contains other images (different {other}): choose an empty folder")


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
    parts = len(list(spans(images)))
    work = [
        (number, [i for i in range(rows.start, rows.stop) if not _whole(place.joinpath(*names[i]))])
        for number, place in enumerate(places)
        for rows in spans(images)
    ]

    def tasks() -> Iterator[Task]:
        for number, rows in work:
            if rows:
                yield _task(images, rows, *cells[number], seed, jpeg=True)

    kept = set()
    for number, place in enumerate(places):
        missing = {row for _, rows in work[number * parts : (number + 1) * parts] for row in rows}
        rows = _sample([row for row in range(len(images)) if row not in missing], *cells[number])
        expected = _task(images, rows, *cells[number], seed, jpeg=True).files() if rows else []
        for row, content in zip(rows, expected, strict=True):
            file = place.joinpath(*names[row])
            _keep(file, read_ordinary(file) == content)
        if not missing:
            kept.add(number)
    results = in_order(tasks(), workers, files=True)
    for i, (number, rows) in enumerate(work):
        for synset in {names[row][0] for row in rows}:
            with disk_errors(output):
                (places[number] / synset).mkdir(parents=True, exist_ok=True)
        for row, file in zip(rows, next(results) if rows else (), strict=True):
            write_quickly(places[number].joinpath(*names[row]), file)
        if i + 1 == len(work) or work[i + 1][0] != number:
            note(f"{' '.join(map(str, cells[number]))} is {'kept ' * (number in kept)}in {places[number]}")


def _sample(rows: Sequence[int], corruption: str, severity: int) -> list[int]:
    """A few of the rows, at random but always the same for a corruption and severity."""
    return sorted(random.Random(f"{corruption} {severity}").sample(rows, min(len(rows), _COMPARED)))


def _whole(file: Path) -> bool:
    """Whether a JPEG file is complete; a power cut may have truncated it."""
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
    labels_file, labels = output / "labels.npy", np.tile(images.y.numpy(), len(SEVERITIES))
    if labels_file.is_file():
        _keep(labels_file, np.array_equal(_read_npy(labels_file), labels))
    else:
        write_file(labels_file, _npy(labels))
    for name in corruptions:
        if (file := output / f"{name}.npy").is_file():
            array = _read_npy(file)
            _, channels, height, width = images.x.shape
            complete = array.dtype == np.uint8 and array.shape == (len(labels), height, width, channels)
            _keep(file, complete)
            for part, severity in zip(np.split(array, len(SEVERITIES)), SEVERITIES, strict=True):
                rows = _sample(range(len(images)), name, severity)
                expected = _task(images, rows, name, severity, seed, jpeg=False).run().pixels
                _keep(file, np.array_equal(part[rows], expected))
    missing = [name for name in corruptions if not (output / f"{name}.npy").is_file()]
    parts = [range(rows.start, rows.stop) for rows in spans(images)]
    results = in_order(
        (
            _task(images, rows, name, severity, seed, jpeg=False)
            for name in missing
            for severity in SEVERITIES
            for rows in parts
        ),
        workers,
    )
    for name in corruptions:
        if name in missing:
            complete = np.concatenate([next(results).pixels for _ in SEVERITIES for _ in parts])
            write_file(output / f"{name}.npy", _npy(complete))
        note(f"{name} is {'kept ' * (name not in missing)}in {output / name}.npy")


def _keep(file: Path, same: bool) -> None:
    """Refuse to keep a file that is not the one that would be written."""
    if not same:
        raise ResourceError(
            f"{file} differs from what would be written: remove it, or choose an empty folder"
        )


def _read_npy(file: Path) -> np.ndarray:
    """The array in a file, read on access; an empty one if the file is damaged."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.empty(0)


def _task(images: Images, rows: Sequence[int], name: str, severity: int, seed: int, jpeg: bool) -> Task:
    chosen = list(rows)
    return Task(bytes8(images.x[chosen]), tuple(images.ids[chosen].tolist()), name, severity, seed, jpeg)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
