"""An interrupted training, beside its output: written whole or not at all, read without executing any."""

import os
from pathlib import Path
from typing import Any

import torch

from robench import files
from robench.errors import ResourceError


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path` by a temporary file, fsync and rename, so that a kill leaves old or new.

    Raises:
        ResourceError: when the folder is missing, full or not writable.
    """
    try:
        files.write_whole(path.absolute().parent, {path.name: content})
    except ResourceError as error:
        reason = getattr(error.__cause__, "strerror", None) or error
        raise ResourceError(f"{path} cannot be written ({reason}): give another place by --output") from error


def check_writable(path: Path) -> None:
    """Find out before a long training whether its outcome can be written.

    Raises:
        ResourceError: when it cannot.
    """
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    write_whole(probe, b"")
    probe.unlink()


def read_partial(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state of an interrupted training, on the CPU; None when there is none.

    Args:
        fingerprint: of the recipe, network, data and seed that are to be resumed.

    Raises:
        ResourceError: when the file is damaged, or belongs to another recipe or seed.
    """
    if not path.exists():
        return None
    mend = f"delete {path} or start over with --fresh"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        belongs = state["fingerprint"] == fingerprint
    except Exception as error:
        raise ResourceError(f"{path} is not an interrupted training that can be read: {mend}") from error
    if not belongs:
        raise ResourceError(
            f"{path} is an interrupted training by another recipe, network, data or seed: {mend}"
        )
    return state
