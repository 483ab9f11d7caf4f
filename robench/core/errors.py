"""Errors that a user can fix, each with an exit code.

Every message states what was requested, what was found and how to fix it. The command line prints it as one line.
"""

import difflib
import pickle
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# The kinds of names that `robench list` shows.
LISTED = ("defense", "attack", "dataset", "protocol")
# The most names that a message lists, and the most characters of a name.
MOST, _LONGEST = 5, 80
# Suffixes of file names.
_SUFFIXES = (
    ".bin", ".ckpt", ".h5", ".json", ".npy", ".npz", ".onnx", ".parquet", ".pkl", ".pt", ".pth", ".py",
    ".safetensors", ".tar", ".toml", ".yaml", ".yml",
)  # fmt: skip
# How to pass a file where a name was expected; for a defense, by the suffix of the file.
_FORMS = {
    "defense": (
        "pass weights with --checkpoint FILE and their network with --defense timm:MODEL or "
        "--defense python:MODULE.FUNCTION; --defense torchscript:FILE reads a complete TorchScript network"
    ),
    "defense.onnx": "--defense onnx:FILE reads an ONNX network",
    "defense.py": "--defense python:MODULE.FUNCTION calls a function of a module",
    "dataset": "folder:PATH, npz:PATH and parquet:PATH read files",
    "attack": "the file name of a suite ends in .toml",
    "protocol": "the file name of a protocol ends in .toml",
}


class RobenchError(Exception):
    """An error that the user can fix; never shown with a traceback."""

    exit_code = 1


class CheckFailed(RobenchError):
    """A verification or a regression check did not hold."""


class UsageError(RobenchError):
    """Wrong usage: an unknown name, a malformed spec, an impossible combination."""

    exit_code = 2


class ResourceError(RobenchError):
    """Data, a checkpoint or a results folder is missing, unreadable, in use or different from what its card says."""

    exit_code = 3


def unknown_name(kind: str, name: str, known: Iterable[str], listing: str = "") -> UsageError:
    """The error for an unregistered name, with the closest matches and how to list all names.

    A name that is a path gets an answer about the path.

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
    nearest = " or ".join(filter(None, [", ".join(near[:-1]), *near[-1:]]))
    hint = f": did you mean {nearest}?" if near else "."
    if kind in LISTED:
        listing = f"robench list {kind}s shows all {len(names)}"
    many = near and len(names) > MOST
    listing = listing or (f"{len(names)} are known" if many else f"known: {some(names)}")
    return UsageError(f'unknown {kind} "{shortened(name)}"{hint} {listing}')


def some(names: Iterable[str], name: str = "") -> str:
    """Names for a message: all of them, or the five nearest to `name` and the number of the others."""
    choices = list(names)
    if len(choices) <= MOST:
        return ", ".join(choices) or "none"
    if name:
        wanted = name[:_LONGEST].lower()
        choices.sort(key=lambda choice: -difflib.SequenceMatcher(None, choice.lower(), wanted).ratio())
    return f"{', '.join(choices[:MOST])} and {len(choices) - MOST} more"


def shortened(name: str) -> str:
    """A name, shortened for a message."""
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."


def one_line(error: BaseException, most: int | None = 200) -> str:
    """The text of an error in one line of at most `most` characters (all for None); its type if it has no text.

    A longer text ends in dots, after a whole word where there is one.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if most is None or len(text) <= most:
        return text
    cut = text[: most - 3]
    return f"{cut.rpartition(' ')[0] or cut}..."


def is_path(name: str) -> bool:
    """Whether a name can only be the path of a file or folder."""
    if "(" in name or (":" in name and "\\" not in name):
        return False
    return "/" in name or "\\" in name or name.startswith("~") or name.lower().endswith(_SUFFIXES)


def _path(kind: str, name: str) -> UsageError:
    shown = shortened(name)
    try:
        path = Path(name).expanduser()
        actual = "a folder" if path.is_dir() else "a file" if path.exists() else ""
    except (OSError, ValueError, RuntimeError):
        actual = ""
    problem = f"{shown} is {actual}, not a {kind}" if actual else f"{shown}: there is no such file"
    form = _FORMS.get(kind + Path(name).suffix.lower()) or _FORMS.get(kind, "")
    return UsageError(f"{problem}{form and ': '}{form}")


def broken_package(error: Exception) -> ResourceError:
    """The error for a package that cannot be imported."""
    return ResourceError(
        f"a package cannot be imported ({one_line(error)}): robench doctor says how to mend it"
    )


def ended(process: str, code: int | None) -> ResourceError:
    """The error for a process ("a process of the run") that ended before its work, with its exit code if known."""
    if code is None or code < 0:
        # A signal: systems send SIGKILL where memory is short.
        cause = ", most likely out of memory: repeat the command with fewer --workers"
    else:
        cause = ": what it printed may say why"
    return ResourceError(f"{process} ended (exit code {code}){cause}; results saved before are kept")


def place_in_own_code(error: BaseException) -> str:
    """The file and line where an error began, if it began in code of the user; else "".

    That is code outside robench and the installed packages. An error that robench itself raises says enough.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, RobenchError):
        return ""
    own = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and not _is_installed(Path(frame.filename))
    ]
    return f"{own[-1][0]}, line {own[-1][1]}" if own else ""


def _is_installed(file: Path) -> bool:
    roots = (_PACKAGE, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")))
    return any(file.is_relative_to(root) for root in roots)


def portable(error: Exception) -> Exception:
    """A picklable copy of an error, with its traceback as a note unless it is a user's mistake."""
    lines = "".join(traceback.format_exception(error))
    # An error with a cause comes from a model, and the traceback of the cause is not pickled.
    is_mistake = isinstance(error, RobenchError) and error.__cause__ is None
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    if not is_mistake:
        error.add_note(f"in a process of the run:\n{lines}")
    return error
