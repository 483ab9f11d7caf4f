"""Interrupted training, saved beside its output: written atomically, read without executing code."""

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from robench.core.errors import ResourceError
from robench.core.io import Damaged, read_sealed, seal, write_file
from robench.records.provenance import release

# Option for the place of a checkpoint, its log and the file of an interrupted training.
OPTION = "--output"


def check_writable(path: Path) -> None:
    """Check before a long training that its output can be written.

    Raises:
        ResourceError: when it cannot.
    """
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    write_file(probe, b"", OPTION)
    probe.unlink()


def write_partial(path: Path, state: Mapping[str, Any], fingerprint: str) -> None:
    """Save the state of a running training with the fingerprint of its settings.

    Raises:
        ResourceError: when the folder is missing, full or not writable.
    """
    buffer = io.BytesIO()
    made_by = {"robench": release(), "torch": str(torch.__version__)}
    torch.save({**state, "fingerprint": fingerprint, "made_by": made_by}, buffer)
    write_file(path, seal(buffer.getvalue()), OPTION)


def read_partial(path: Path, fingerprint: str, note: Callable[[str], None]) -> dict[str, Any] | None:
    """The state of an interrupted training, on the CPU; None when there is none, or when it is damaged.

    Args:
        fingerprint: of the recipe, network, data and seed that are to be resumed.
        note: called with one line about a damaged file.

    Raises:
        ResourceError: when the file belongs to another recipe or seed, or to another release of robench or torch,
            with which the training could be finished.
    """
    if not path.exists():
        return None
    mend = f"delete {path} or start over with --fresh"
    try:
        content = read_sealed(path)
    except Damaged as error:
        if _opened_as_archive(path):
            raise ResourceError(f"{path} is an interrupted training by another release: {mend}") from error
        note(f"{path.parent}: {error}; the training starts again")
        return None
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise ResourceError(
            f"{path} is an interrupted training by another recipe, network, data or seed: {mend}"
        )
    for name, now in {"robench": release(), "torch": str(torch.__version__)}.items():
        if (then := state["made_by"][name]) != now:
            raise ResourceError(
                f"{path} is an interrupted training by {name} {then}, and this is {now}: finish it with that one, or "
                f"{mend}"
            )
    return state


def _opened_as_archive(path: Path) -> bool:
    """Whether it is what `torch.save` writes, as releases kept it that did not seal it."""
    with suppress(OSError):
        return zipfile.is_zipfile(path) and path.read_bytes()[:2] == b"PK"
    return False
