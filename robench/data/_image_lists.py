"""Lists of ImageNet's validation images: RobustBench's 5,000, or anybody's in the same form."""

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from robench.core.errors import ResourceError
from robench.core.trust import admit

ROBUSTBENCH = "robustbench"
# In the package of that name; the digest is that of release 1.1.1.
_INSIDE = "helper_files/imagenet_test_image_ids.txt"
_SHA256 = "d4121626d07722a0126c35b1563042e46a546f1a05ce705f2cdc635896d58574"
_LINE = re.compile(r"(?:n\d{8}/)?ILSVRC2012_val_(\d{8})(?:\.JPEG)?")


@dataclass(frozen=True)
class Listed:
    """A line of a list.

    Attributes:
        number: in the file's name, less one.
        text: the line.
    """

    number: int
    text: str

    def __str__(self) -> str:
        return self.text


def read_list(ids: str, name: str) -> list[Listed]:
    """The images of a list, in its order.

    Args:
        ids: "robustbench", or a file with a line an image such as n09468604/ILSVRC2012_val_00015253.JPEG.
        name: of the data set, for messages.

    Raises:
        ResourceError: when there is no such list, or it is another, or a line is no image, or one comes twice.
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
        raise ResourceError(f"{file} is no list of images: {error.reason}") from error
    if ids == ROBUSTBENCH and hashlib.sha256(content).hexdigest() != _SHA256:
        raise ResourceError(
            f"{file} is not the list of robustbench 1.1.1: pip install --no-deps robustbench==1.1.1"
        )
    found: dict[int, Listed] = {}
    for place, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        number = int(match[1]) - 1 if match else -1
        if number < 0 or number in found:
            what = (
                "comes twice"
                if number in found
                else "expected n09468604/ILSVRC2012_val_00015253.JPEG or the like"
            )
            raise ResourceError(f'{file} has as its entry {place} "{line[:60]}": {what}')
        found[number] = Listed(number, line)
    if not found:
        raise ResourceError(f"{file} is empty: ids of {name} needs a list of images")
    return list(found.values())


def _of_robustbench(name: str) -> Path:
    # Found without importing it, which needs packages that the list does not.
    found = importlib.util.find_spec("robustbench")
    if found is None or not found.submodule_search_locations:
        raise ResourceError(
            f"the list of {name} comes with robustbench: pip install --no-deps robustbench==1.1.1, or give the path of "
            f"its {_INSIDE} as ids"
        )
    return Path(next(iter(found.submodule_search_locations))) / _INSIDE
