"""`torchscript:FILE`: a scripted or traced module that `torch.jit.save` wrote.

TorchScript runs no Python, but it is a program all the same: open files of people you trust.
"""

import json
import warnings
from typing import Any

import torch

from robench.core import registry
from robench.core.errors import ResourceError
from robench.defenses.loaders._base import Channels, Found, Source, normalisation, one_line, wrap

# Our choice: what a file may say of itself, written by torch.jit.save(module, FILE, _extra_files={NOTE: json}).
NOTE = "robench.json"


@registry.loaders.register("torchscript")
def load(source: Source, image_size: int | None = None, mean: Channels = None, std: Channels = None) -> Found:
    """A TorchScript module from images, normalised by `mean` and `std` if given, to logits.

    The file may carry these in an extra file `robench.json`, {"image_size": 32, "mean": [...], "std": [...]};
    what the spec says comes first. --checkpoint puts another file in the place of FILE.

    Raises:
        UsageError: when neither the file nor the spec gives image_size, or it gives no logits (N, K).
        ResourceError: when the file is missing or is no TorchScript.
    """
    path, note = source.file, {NOTE: ""}
    try:
        with warnings.catch_warnings():
            # torch speaks of TorchScript as deprecated on every load.
            warnings.simplefilter("ignore")
            network = torch.jit.load(path, map_location="cpu", _extra_files=note)
    except (RuntimeError, ValueError, OSError) as error:
        raise ResourceError(
            f"{path} is no whole TorchScript file ({one_line(error)}): write it by torch.jit.save"
        ) from error
    said = _read(source, note[NOTE])
    normalised = normalisation(mean, std, (said.get("mean"), said.get("std")))
    size = said.get("image_size") if image_size is None else image_size
    return Found(wrap(source, network, size, normalised), path)


def _read(source: Source, text: str | bytes) -> dict[str, Any]:
    try:
        said = json.loads(text) if text else {}
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise ResourceError(f"{source} carries a {NOTE} that is no JSON object: save the file again")
    return said
