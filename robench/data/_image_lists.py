"""Lists of ImageNet validation images: the 5,000 of RobustBench, or another list in the same format."""

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from robench.core.errors import ResourceError
from robench.core.trust import admit

ROBUSTBENCH = "robustbench"
# Path inside the package robustbench, and the digest of the file in release 1.1.1.
_INSIDE = "helper_files/imagenet_test_image_ids.txt"
_SHA256 = "d4121626d07722a0126c35b1563042e46a546f1a05ce705f2cdc635896d58574"
_LINE = re.compile(r"(?:n\d{8}/)?ILSVRC2012_val_(\d{8})(?:\.JPEG)?")


@dataclass(frozen=True)
class Listed:
    """A line of a list, with the number in its file name minus one."""

    number: int
    text: str

    def __str__(self) -> str:
        return self.text


def read_list(ids: str, name: str) -> list[Listed]:
    """Read a list of images, in its order.

    Args:
        ids: "robustbench", or a file with one line for each image, such as n09468604/ILSVRC2012_val_00015253.JPEG.
        name: name of the dataset, for messages.

    Raises:
        ResourceError: if the list is missing or has been changed, a line is not an image, or an image is repeated.
    """
    if ids != ROBUSTBENCH:
        admit(ids, "is a file here")
    file = _of_robustbench(name) if ids == ROBUSTBENCH else Path(ids).expanduser()
    try:
        content = file.read_bytes()
        lines = content.decode().split()
    except OSError as error:
        raise ResourceError(
            f'{file}: {error.strerror}: ids of {name} takes "{ROBUSTBENCH}" or the path of a list'
        ) from error
    except UnicodeDecodeError as error:
        raise ResourceError(f"{file} is not a list of images: {error.reason}") from error
    if ids == ROBUSTBENCH and hashlib.sha256(content).hexdigest() != _SHA256:
        raise ResourceError(
            f"{file} is not the list of robustbench 1.1.1: pip install --no-deps robustbench==1.1.1"
        )
    images: dict[int, Listed] = {}
    for place, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        number = int(match[1]) - 1 if match else -1
        if number < 0 or number in images:
            expected = "expected a line such as n09468604/ILSVRC2012_val_00015253.JPEG"
            problem = "is repeated" if number in images else expected
            raise ResourceError(f'{file} has as its entry {place} "{line[:60]}": {problem}')
        images[number] = Listed(number, line)
    if not images:
        raise ResourceError(f"{file} is empty: ids of {name} needs a list of images")
    return list(images.values())


def _of_robustbench(name: str) -> Path:
    # Located without importing it, because the import needs packages that the list does not.
    spec = importlib.util.find_spec("robustbench")
    if spec is None or not spec.submodule_search_locations:
        raise ResourceError(
            f"the list of {name} comes with robustbench: pip install --no-deps robustbench==1.1.1, or set ids to the "
            f"path of its {_INSIDE}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / _INSIDE
