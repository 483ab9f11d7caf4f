"""Errors that a user can fix, each with an exit code.

Every message states what was requested, what was found and how to fix it. The command line prints it as one line.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

# The kinds that `robench list` shows.
LISTED = ("defense", "attack", "dataset", "protocol")
# How many names a message lists, and how many characters of a name it shows.
MOST, _LONGEST = 5, 80
# What the names of files end with.
_SUFFIXES = (
    ".bin", ".ckpt", ".h5", ".json", ".npy", ".npz", ".onnx", ".parquet", ".pkl", ".pt", ".pth", ".py",
    ".safetensors", ".tar", ".toml", ".yaml", ".yml",
)  # fmt: skip
# How a file is given where a name was expected; of a defense by the end of the file's name.
_FORMS = {
    "defense": (
        "weights go with --checkpoint FILE beside a network, --defense timm:MODEL or --defense python:MODULE.FUNCTION; "
        "--defense torchscript:FILE reads a whole TorchScript network"
    ),
    "defense.onnx": "--defense onnx:FILE reads a network of ONNX",
    "defense.py": "--defense python:MODULE.FUNCTION calls a function of a module",
    "dataset": "folder:PATH, npz:PATH and parquet:PATH read files",
    "attack": "the file of a suite ends in .toml",
    "protocol": "the file of a protocol ends in .toml",
}


class RobenchError(Exception):
    """An error that the user can fix; never shown with a traceback."""

    exit_code = 1


class CheckFailed(RobenchError):
    """A verification or a regression check did not hold."""

    exit_code = 1


class UsageError(RobenchError):
    """Wrong usage: an unknown name, a malformed spec, an impossible combination."""

    exit_code = 2


class ResourceError(RobenchError):
    """Data, a checkpoint or a results folder is missing, unreadable, in use or different from what its card says."""

    exit_code = 3


def unknown_name(kind: str, name: str, known: Iterable[str], listing: str = "") -> UsageError:
    """The error for an unregistered name, with the closest matches and how to list all names.

    A name that is a path is answered as one.

    Args:
        kind: the noun, singular, such as "defense".
        name: the requested name.
        known: every accepted name.
        listing: how to list them; if empty, the message lists the names itself when they are few.
    """
    if is_path(name):
        return _path(kind, name)
    names = sorted(known)
    near = difflib.get_close_matches(name[:_LONGEST], names, n=3, cutoff=0.5)
    hint = f": did you mean {' or '.join(near)}?" if near else "."
    if kind in LISTED:
        listing = f"robench list {kind}s shows all {len(names)}"
    listing = listing or (
        f"{len(names)} are known" if near and len(names) > MOST else f"known: {some(names)}"
    )
    return UsageError(f'unknown {kind} "{shortened(name)}"{hint} {listing}')


def some(names: Iterable[str], asked: str = "") -> str:
    """Names for a message: all of them, or the five nearest to `asked` and how many more there are."""
    listed = list(names)
    if len(listed) <= MOST:
        return ", ".join(listed) or "none"
    if asked:
        asked = asked[:_LONGEST].lower()
        listed.sort(key=lambda name: -difflib.SequenceMatcher(None, name.lower(), asked).ratio())
    return f"{', '.join(listed[:MOST])} and {len(listed) - MOST} more"


def shortened(name: str) -> str:
    """A name as messages show it."""
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."


def is_path(name: str) -> bool:
    """Whether a name can only be meant as the path of a file or a folder."""
    if "(" in name or (":" in name and "\\" not in name):
        return False
    return "/" in name or "\\" in name or name.startswith("~") or name.lower().endswith(_SUFFIXES)


def _path(kind: str, name: str) -> UsageError:
    shown = shortened(name)
    try:
        path = Path(name).expanduser()
        there = "a folder" if path.is_dir() else "a file" if path.exists() else ""
    except (OSError, ValueError, RuntimeError):
        there = ""
    what = f"{shown} is {there}, not a {kind}" if there else f"{shown}: there is no such file"
    form = _FORMS.get(kind + Path(name).suffix.lower()) or _FORMS.get(kind, "")
    return UsageError(f"{what}{form and ': '}{form}")
