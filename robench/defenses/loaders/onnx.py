"""`onnx:FILE`: an ONNX graph, run in PyTorch to have gradients."""

import json
from pathlib import Path
from typing import Any

import torch

from robench.core import registry
from robench.core.errors import ResourceError, UsageError, one_line
from robench.core.formatting import install
from robench.defenses.loaders._base import Channels, Found, Source, needed, normalisation, wrap
from robench.defenses.loaders._onnx_graph import Graph
from robench.defenses.loaders._onnx_ops import TYPES

INSTALL = install("onnx")
# ONNX's standard metadata for images (MetadataProps.md of the specification) as mean and std for pixels in [0, 1].
_RANGE = "Image.NominalPixelRange"
_RANGES = {"Normalized_0_1": (None, None), "Normalized_1_1": (0.5, 0.5), "NominalRange_0_255": (0.0, 1 / 255)}
_FORMAT = "Image.BitmapPixelFormat"


@registry.loaders.register("onnx")
def load(source: Source, image_size: int | None = None, mean: Channels = None, std: Channels = None) -> Found:
    """An ONNX classifier from images (N, 3, S, S), normalized by `mean` and `std` if given, to logits.

    Grayscale images, (N, 1, S, S), are also supported.

    The image size is that of the graph's input. The normalization is that of the spec, or else of the file's metadata:
    `mean` and `std`, JSON lists (our choice), or ONNX's own `Image.NominalPixelRange`. --checkpoint replaces FILE by
    another file.

    Raises:
        UsageError: if the input is not a batch of any number of square float images, or the output not logits (N, K).
        ResourceError: if a package or the file is missing, the file is damaged, it was exported in training mode, or it
            uses an operator that is not in `_onnx_ops.OPS`.
    """
    path = source.file
    onnx = needed("onnx", source, INSTALL)
    try:
        graph = onnx.load(path, load_external_data=False)
        scattered = any(map(onnx.external_data_helper.uses_external_data, graph.graph.initializer))
        if not scattered:
            onnx.checker.check_model(graph)
    # Errors of protobuf and onnx have no common base class.
    except Exception as error:
        raise ResourceError(
            f"{path} is not a complete ONNX file ({one_line(error)}): export it again"
        ) from error
    if scattered:
        raise UsageError(
            f"{path} keeps its weights in another file, which its digest would not cover: write one file, "
            "onnx.save(onnx.load(FILE), NEW)"
        )
    metadata = {item.key: item.value for item in graph.metadata_props}
    # An unreadable normalisation is ignored if the spec gives one.
    normalised = normalisation(mean, std, _normalisation(path, metadata) if mean is None else (None, None))
    size, channels = _size(source, graph, image_size)
    return Found(wrap(source, Graph(graph), size, normalised, channels=channels), path)


def _size(source: Source, graph: Any, image_size: int | None) -> tuple[int, int | None]:
    """Side and channels of the images; None for channels that the graph does not specify."""
    weights = {weight.name for weight in graph.graph.initializer}
    inputs = [tensor for tensor in graph.graph.input if tensor.name not in weights]
    if len(inputs) != 1:
        raise UsageError(f"{source} has {len(inputs)} inputs: expected one, images (N, 3, S, S)")
    kind = TYPES.get(inputs[0].type.tensor_type.elem_type, torch.float32)
    if not kind.is_floating_point:
        dtype = str(kind).removeprefix("torch.")
        raise UsageError(f"{source} takes images of {dtype}: expected floats, whose gradients attacks need")
    sides = [d.dim_value or (d.dim_param or "?") for d in inputs[0].type.tensor_type.shape.dim]
    if len(sides) != 4 or sides[1] not in (3, 1, "?") or sides[2] != sides[3] or isinstance(sides[0], int):
        shape = ", ".join(map(str, sides))
        raise UsageError(f"{source} takes ({shape}): expected (N, 3, S, S), the batch dimension free")
    if not isinstance(sides[2], int) and image_size is None:
        raise UsageError(f"{source} takes images of any size: add image_size=..., in pixels")
    side = image_size if image_size is not None else int(sides[2])
    return side, sides[1] if isinstance(sides[1], int) else None


def _normalisation(path: Path, metadata: dict[str, str]) -> tuple[Channels, Channels]:
    if metadata.get(_FORMAT, "Rgb8") not in ("Rgb8", "Gray8"):
        raise UsageError(f"{path} takes {metadata[_FORMAT]} images: expected Rgb8 or Gray8")
    if "mean" in metadata or "std" in metadata:
        try:
            return json.loads(metadata.get("mean", "null")), json.loads(metadata.get("std", "null"))
        except ValueError as error:
            raise ResourceError(
                f"{path} has a mean or std that is not a JSON list: export it again"
            ) from error
    known = metadata.get(_RANGE, "Normalized_0_1")
    if known not in _RANGES:
        raise UsageError(f"{path} has {_RANGE}={known}: give mean=... and std=... for pixels in [0, 1]")
    return _RANGES[known]
