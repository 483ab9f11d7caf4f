"""`onnx:FILE`: an ONNX graph, run in PyTorch, so that gradients exist."""

import json
from pathlib import Path
from typing import Any

from robench.core import registry
from robench.core.errors import ResourceError, UsageError
from robench.defenses.loaders._base import Channels, Found, Source, needed, normalisation, one_line, wrap
from robench.defenses.loaders._onnx_graph import Graph

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

    Grey images, (N, 1, S, S), are taken too.

    The size is that of the graph's input. The normalisation is what the file's metadata says: `mean` and `std`,
    JSON lists (our choice), or ONNX's own `Image.NominalPixelRange`. What the spec says comes first.
    --checkpoint puts another file in the place of FILE.

    Raises:
        UsageError: when the input is no free batch of square colour images, or there are no logits (N, K).
        ResourceError: when a package or the file is missing, the file is damaged, or uses an operator that is
            not in `_onnx_ops.OPS`.
    """
    path = source.file
    onnx = needed("onnx", source, INSTALL)
    try:
        graph = onnx.load(path, load_external_data=False)
        scattered = any(
            onnx.external_data_helper.uses_external_data(each) for each in graph.graph.initializer
        )
        if not scattered:
            onnx.checker.check_model(graph)
    # protobuf and onnx raise errors that share no base.
    except Exception as error:
        raise ResourceError(f"{path} is no whole ONNX file ({one_line(error)}): export it again") from error
    if scattered:
        raise UsageError(
            f"{path} keeps its weights in another file, which its digest would not cover: write one file, "
            "onnx.save(onnx.load(FILE), NEW)"
        )
    said = {item.key: item.value for item in graph.metadata_props}
    # A normalisation that cannot be read is no matter where the spec gives one.
    normalised = normalisation(mean, std, _normalisation(path, said) if mean is None else (None, None))
    size, channels = _size(source, graph, image_size)
    return Found(wrap(source, Graph(graph), size, normalised, channels=channels), path)


def _size(source: Source, graph: Any, asked: int | None) -> tuple[int, int | None]:
    """Side and channels of the images, None for channels that the graph leaves open."""
    weights = {each.name for each in graph.graph.initializer}
    inputs = [each for each in graph.graph.input if each.name not in weights]
    if len(inputs) != 1:
        raise UsageError(f"{source} has {len(inputs)} inputs: expected one, images (N, 3, S, S)")
    sides = [d.dim_value or (d.dim_param or "?") for d in inputs[0].type.tensor_type.shape.dim]
    if len(sides) != 4 or sides[1] not in (3, 1, "?") or sides[2] != sides[3] or isinstance(sides[0], int):
        shape = ", ".join(map(str, sides))
        raise UsageError(f"{source} takes ({shape}): expected (N, 3, S, S), the batch dimension free")
    if not isinstance(sides[2], int) and asked is None:
        raise UsageError(f"{source} takes images of any size: add image_size=..., in pixels")
    side = asked if asked is not None else int(sides[2])
    return side, sides[1] if isinstance(sides[1], int) else None


def _normalisation(path: Path, said: dict[str, str]) -> tuple[Channels, Channels]:
    if said.get(_FORMAT, "Rgb8") not in ("Rgb8", "Gray8"):
        raise UsageError(f"{path} takes {said[_FORMAT]} images: expected Rgb8 or Gray8")
    if "mean" in said or "std" in said:
        try:
            return json.loads(said.get("mean", "null")), json.loads(said.get("std", "null"))
        except ValueError as error:
            raise ResourceError(f"{path} has a mean or std that is no JSON list: export it again") from error
    known = said.get(_RANGE, "Normalized_0_1")
    if known not in _RANGES:
        raise UsageError(f"{path} has {_RANGE}={known}: give mean=... and std=... for pixels in [0, 1]")
    return _RANGES[known]
