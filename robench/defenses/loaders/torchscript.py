"""`torchscript:FILE`: a scripted or traced module written by `torch.jit.save`.

TorchScript does not run Python, but it is a program: open only files that you trust.
"""

import json
import warnings
from typing import Any

import torch

from robench.core import registry
from robench.core.errors import ResourceError, one_line
from robench.defenses.loaders._base import Channels, Found, Source, normalisation, wrap

# Our choice: a file's description of itself, written by torch.jit.save(module, FILE, _extra_files={NOTE: json}).
NOTE = "robench.json"


@registry.loaders.register("torchscript")
def load(source: Source, image_size: int | None = None, mean: Channels = None, std: Channels = None) -> Found:
    """A TorchScript module from images, normalized by `mean` and `std` if given, to logits.

    The file may carry these in an extra file `robench.json`, {"image_size": 32, "mean": [...], "std": [...]};
    the spec takes precedence. --checkpoint replaces FILE by another file.

    Raises:
        UsageError: if neither the file nor the spec gives image_size, or if the output is not logits (N, K).
        ResourceError: if the file is missing or not TorchScript.
    """
    path, note = source.file, {NOTE: ""}
    try:
        with warnings.catch_warnings():
            # torch emits a deprecation warning for TorchScript on every load.
            warnings.simplefilter("ignore")
            network = torch.jit.load(path, map_location="cpu", _extra_files=note)
    except (RuntimeError, ValueError, OSError) as error:
        raise ResourceError(
            f"{path} is not a complete TorchScript file ({one_line(error)}): write it with torch.jit.save"
        ) from error
    description = _read(source, note[NOTE])
    normalised = normalisation(mean, std, (description.get("mean"), description.get("std")))
    size = description.get("image_size") if image_size is None else image_size
    return Found(wrap(source, network, size, normalised), path)


def _read(source: Source, text: str | bytes) -> dict[str, Any]:
    try:
        description = json.loads(text) if text else {}
    except ValueError:
        description = None
    if not isinstance(description, dict):
        raise ResourceError(f"{source} carries a {NOTE} that is not a JSON object: save the file again")
    return description
