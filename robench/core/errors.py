"""Errors that a user can fix, each with an exit code.

Every message states what was requested, what was found and how to fix it. The command line prints it as one line.
"""

import difflib
from collections.abc import Iterable

# The kinds that `robench list` shows.
LISTED = ("defense", "attack", "dataset", "protocol")
# How many names a message lists, and how many characters of a name it shows.
_MOST, _LONGEST = 20, 80


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

    Args:
        kind: the noun, singular, such as "defense".
        name: the requested name.
        known: every accepted name.
        listing: how to list them; if empty, the message lists the names itself when they are few.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name[:_LONGEST], names, n=3, cutoff=0.5)
    hint = f": did you mean {' or '.join(near)}?" if near else "."
    if kind in LISTED:
        listing = f"robench list {kind}s shows all {len(names)}"
    few = len(names) <= _MOST
    listing = listing or (f"known: {', '.join(names)}" if few else f"{len(names)} names are known")
    shown = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."
    return UsageError(f'unknown {kind} "{shown}"{hint} {listing}')
