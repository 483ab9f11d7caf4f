"""Corrupted images on the disk, in the layouts that others read: what `robench corrupt` does, from Python."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from robench.data import Images, load_dataset
from robench.data._names import synsets
from robench.data.corruptions import COMMON, JPEG, SEVERITIES, VALIDATION, corrupt_all, library, to_jpeg
from robench.errors import ResourceError, UsageError, unknown_name
from robench.files import claim, write_whole
from robench.specs import parse

FACTS = "robench-corrupt.json"
GROUPS = {"common": COMMON, "validation": VALIDATION, "all": COMMON + VALIDATION}


def write_corrupted(
    dataset: str,
    output: Path | str,
    corruptions: Sequence[str] = COMMON,
    severities: Sequence[int] = SEVERITIES,
    *,
    samples: int | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    workers: int = 1,
    note: Callable[[str], None] = lambda text: None,
) -> Path:
    """Corrupt a data set's test images into a folder; called again, it goes on where it was interrupted.

    ImageNet's go into ImageNet-C's layout, <corruption>/<severity>/<synset>/<name>.JPEG, as JPEG files of its
    quality. All others go into CIFAR-10-C's, an array <corruption>.npy with the five severities one after
    another, and labels.npy, without JPEG. A file `robench-corrupt.json` says which, and of what.

    Args:
        dataset: as in `load_dataset`.
        corruptions: names.
        severities: of 1 to 5; the second layout has all five.
        samples: the first so many; None for all.
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
    images = load_dataset(dataset, "test", samples, data_dir)
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
    }
    output = Path(output)
    with claim(output):
        _agree(output, facts)
        for name in corruptions:
            if folders:
                for severity in severities:
                    _write_folder(images, output, name, severity, seed, workers)
                    note(f"{name} {severity} is in {output / name / str(severity)}")
            else:
                _write_array(images, output, name, seed, workers)
                note(f"{name} is in {output / name}.npy")
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
        write_whole(output, {FACTS: (json.dumps(facts, indent=2) + "\n").encode()})
        return
    except (OSError, ValueError) as error:
        raise ResourceError(f"{file} cannot be read: give an empty folder") from error
    if held != facts:
        other = next(
            (key for key in facts if not isinstance(held, dict) or held.get(key) != facts[key]), "more"
        )
        raise ResourceError(f"{output} holds another set, its {other} differs: give an empty folder")


def _write_folder(
    images: Images, output: Path, corruption: str, severity: int, seed: int, workers: int
) -> None:
    place = output / corruption / str(severity)
    paths = [
        place / synsets()[label] / f"ILSVRC2012_val_{number + 1:08d}.JPEG"
        for number, label in zip(images.ids.tolist(), images.y.tolist(), strict=True)
    ]
    lacking = [i for i, path in enumerate(paths) if not path.is_file()]
    rest = Images(
        images.name, images.split, images.x[lacking], images.y[lacking], images.ids[lacking], images.classes
    )
    for i, made in zip(lacking, corrupt_all(rest, corruption, severity, seed, workers=workers), strict=True):
        write_whole(paths[i].parent, {paths[i].name: to_jpeg(made)})


def _write_array(images: Images, output: Path, corruption: str, seed: int, workers: int) -> None:
    truths = output / "labels.npy"
    if not truths.is_file():
        write_whole(output, {truths.name: _npy(np.tile(images.y.numpy(), len(SEVERITIES)))})
    if (output / f"{corruption}.npy").is_file():
        return
    made = [
        image
        for severity in SEVERITIES
        for image in corrupt_all(images, corruption, severity, seed, workers=workers)
    ]
    write_whole(output, {f"{corruption}.npy": _npy(np.stack(made))})


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
