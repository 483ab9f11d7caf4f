"""`onnx:FILE`: an ONNX graph, converted to PyTorch by onnx2torch, so that gradients exist."""

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from robench import registry
from robench.defenses.loaders._base import Channels, Found, Source, needed, normalisation, one_line, wrap
from robench.errors import ResourceError, UsageError

INSTALL = 'pip install "robench[onnx]"'
# ONNX's standard metadata for images (MetadataProps.md of the specification) as mean and std for pixels in [0, 1].
_RANGE = "Image.NominalPixelRange"
_RANGES = {
    "Normalized_0_1": (None, None),
    "Normalized_1_1": (0.5, 0.5),
    "NominalRange_0_255": (0.0, 1 / 255),
}
_FORMAT = "Image.BitmapPixelFormat"


@registry.loaders.register("onnx")
def load(source: Source, image_size: int | None = None, mean: Channels = None, std: Channels = None) -> Found:
    """An ONNX classifier from images (N, 3, S, S), normalised by `mean` and `std` if given, to logits.

    The size is that of the graph's input. The normalisation is what the file's metadata says: `mean` and `std`,
    JSON lists (our choice), or ONNX's own `Image.NominalPixelRange`. What the spec says comes first.
    --checkpoint puts another file in the place of FILE.

    Raises:
        UsageError: when the input is no free batch of square colour images, or there are no logits (N, K).
        ResourceError: when a package or the file is missing, the file is damaged, or uses what onnx2torch does
            not know.
    """
    path = source.file
    onnx, onnx2torch = needed("onnx", source, INSTALL), needed("onnx2torch", source, INSTALL)
    try:
        graph = onnx.load(path)
        onnx.checker.check_model(graph)
    # protobuf and onnx raise errors that share no base.
    except Exception as error:
        raise ResourceError(f"{path} is no whole ONNX file ({one_line(error)}): export it again") from error
    said = {item.key: item.value for item in graph.metadata_props}
    # A normalisation that cannot be read is no matter where the spec gives one.
    normalised = normalisation(mean, std, _normalisation(path, said) if mean is None else (None, None))
    network = _convert(source, onnx, onnx2torch, graph)
    return Found(wrap(source, network, image_size or _size(source, graph), normalised), path)


def _size(source: Source, graph: Any) -> int:
    weights = {each.name for each in graph.graph.initializer}
    inputs = [each for each in graph.graph.input if each.name not in weights]
    if len(inputs) != 1:
        raise UsageError(f"{source} has {len(inputs)} inputs: expected one, images (N, 3, S, S)")
    sides = [d.dim_value or (d.dim_param or "?") for d in inputs[0].type.tensor_type.shape.dim]
    if len(sides) != 4 or sides[1] not in (3, "?") or sides[2] != sides[3] or isinstance(sides[0], int):
        shape = ", ".join(map(str, sides))
        raise UsageError(f"{source} takes ({shape}): expected (N, 3, S, S), the batch dimension free")
    if not isinstance(sides[2], int):
        raise UsageError(f"{source} takes images of any size: add image_size=..., in pixels")
    return sides[2]


def _normalisation(path: Path, said: dict[str, str]) -> tuple[Channels, Channels]:
    if said.get(_FORMAT, "Rgb8") != "Rgb8":
        raise UsageError(f"{path} takes {said[_FORMAT]} images: expected Rgb8")
    if "mean" in said or "std" in said:
        try:
            return json.loads(said.get("mean", "null")), json.loads(said.get("std", "null"))
        except ValueError as error:
            raise ResourceError(f"{path} has a mean or std that is no JSON list: export it again") from error
    known = said.get(_RANGE, "Normalized_0_1")
    if known not in _RANGES:
        raise UsageError(f"{path} has {_RANGE}={known}: give mean=... and std=... for pixels in [0, 1]")
    return _RANGES[known]


def _convert(source: Source, onnx: Any, onnx2torch: Any, graph: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return onnx2torch.convert(graph)
        # It raises NotImplementedError for an operation, and others for a version of one.
        except Exception as error:
            raise ResourceError(f"{source} cannot be converted ({one_line(error)})") from error
