"""The partial file of a training, saved next to its output: written atomically, read without executing code."""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from robench.core import specs
from robench.core.errors import ResourceError
from robench.core.io import Damaged, read_sealed, seal, write_file
from robench.records.provenance import release
from robench.training.recipe import Recipe, decisive_fields

# The option that selects another location, for messages about files that cannot be written.
OPTION = "--output"


def fingerprint(builder: specs.Spec, recipe: Recipe, data: str) -> str:
    """Digest of everything that determines the weights: network, recipe with its seed, and data.

    An interrupted training resumes only if its fingerprint is the same.
    """
    settings = json.dumps([str(builder), decisive_fields(recipe), data], sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()


def check_writable(path: Path) -> None:
    """Check, before a long training, that its output can be written.

    Raises:
        ResourceError: if it cannot be written.
    """
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    write_file(probe, b"", OPTION)
    probe.unlink()


def write_partial(path: Path, state: Mapping[str, Any], fingerprint: str) -> None:
    """Save the state of a running training with the fingerprint of its settings.

    Raises:
        ResourceError: if the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({**state, "fingerprint": fingerprint, "made_by": _versions()}, buffer)
    write_file(path, seal(buffer.getvalue()), OPTION)


def read_partial(path: Path, fingerprint: str, report: Callable[[str], None]) -> dict[str, Any] | None:
    """Read the state of an interrupted training, on the CPU; None if the file is missing or damaged.

    Args:
        fingerprint: fingerprint of the training to resume.
        report: called with one line about a damaged file.

    Raises:
        ResourceError: if the file was written with another recipe, network, data or seed, or by another version of
            robench or torch, which could still finish the training.
    """
    if not path.exists():
        return None
    remedy = f"delete {path} or start over with --fresh"
    try:
        content = read_sealed(path)
    except Damaged as error:
        if _is_unsealed(path):
            raise ResourceError(f"{path} was saved by another release of robench: {remedy}") from error
        report(f"{path.parent}: {error}; the training starts over")
        return None
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise ResourceError(
            f"{path} is an interrupted training with another recipe, network, data or seed: {remedy}"
        )
    for name, version in _versions().items():
        if (saved := state["made_by"][name]) != version:
            raise ResourceError(
                f"{path} was saved by {name} {saved}, but this is {name} {version}: finish the training with that "
                f"release, or {remedy}"
            )
    return state


def _versions() -> dict[str, str]:
    return {"robench": release(), "torch": str(torch.__version__)}


def _is_unsealed(path: Path) -> bool:
    """Whether the file is a plain `torch.save` archive, as early releases wrote it."""
    with suppress(OSError):
        return zipfile.is_zipfile(path) and path.read_bytes()[:2] == b"PK"
    return False
