"""What can go wrong for a user, each kind with its exit code.

Every message says what was asked, what was found, and the mend. The command line prints it as one line.
"""

import difflib
from collections.abc import Iterable

# What `robench list` shows.
LISTED = ("defense", "attack", "dataset", "protocol")
# A message shows no more names than this, and no more characters of a name.
_MOST, _LONGEST = 20, 80


class RobenchError(Exception):
    """A mistake or a lack that the user can mend; never shown with a traceback."""

    exit_code = 1


class CheckFailed(RobenchError):
    """A verification or a regression check did not hold."""

    exit_code = 1


class UsageError(RobenchError):
    """Wrong usage: an unknown name, a malformed spec, an impossible combination."""

    exit_code = 2


class ResourceError(RobenchError):
    """Data, a checkpoint or a results folder is missing, unreadable, in use or not what its card says."""

    exit_code = 3


def unknown_name(kind: str, name: str, known: Iterable[str], listing: str = "") -> UsageError:
    """The error for a name nobody has registered, with the nearest names and how to list all.

    Args:
        kind: the noun, singular, such as "defense".
        name: what was asked for.
        known: every name that would have been accepted.
        listing: how to list them; without it a message shows all names where they are few.
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
