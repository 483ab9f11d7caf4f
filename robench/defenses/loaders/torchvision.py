"""`torchvision:NAME`: torchvision's classifiers, with its published weights or those of --checkpoint."""

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from robench.core import registry
from robench.core.errors import UsageError, unknown_name
from robench.data.preprocessing import of_sizes
from robench.defenses.loaders._base import Channels, Found, Source, attempt, fill, normalisation, wrap

# Options that torchvision sets for the published weights of these two models.
_INCEPTION = {"transform_input": True, "aux_logits": True, "init_weights": False}
_WITH_WEIGHTS = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}


@registry.loaders.register("torchvision")
def load(
    source: Source,
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: Channels = None,
    std: Channels = None,
) -> Found:
    """A classifier of torchvision, with its default weights or those of --checkpoint: `torchvision:resnet50`.

    Args:
        num_classes, image_size, mean, std: None for the values of the default weights' transforms. Another number
            of classes needs a checkpoint, since published weights have no head for it.

    Raises:
        UsageError: for a name unknown to torchvision.
        ResourceError: if the weights cannot be downloaded.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if source.target not in known:
        listing = f"torchvision.models.list_models() shows all {len(known)}"
        raise unknown_name("torchvision classifier", source.target, known, listing)
    # Each model has its own class of weights, which the stubs do not cover.
    sets: Any = torchvision.models.get_model_weights(source.target)
    weights = sets.DEFAULT
    published = len(weights.meta["categories"])
    transforms = weights.transforms()
    normalised = normalisation(mean, std, (transforms.mean, transforms.std))
    file = None
    if source.checkpoint or source.bare:
        options = _WITH_WEIGHTS.get(source.target, {})
        network = torchvision.models.get_model(
            source.target, weights=None, num_classes=num_classes or published, **options
        )
    elif num_classes not in (None, published):
        raise UsageError(
            f"the published weights of {source} have {published} classes: for {num_classes} pass a file with "
            "--checkpoint"
        )
    else:
        network, file = attempt(source, lambda: _published(source.target, weights))
    size = image_size or transforms.crop_size[0]
    # The preprocessing is known only for the published image size.
    preprocessing = ""
    if size == transforms.crop_size[0]:
        preprocessing = of_sizes(transforms.resize_size, transforms.crop_size, transforms.interpolation.value)
    defense = wrap(source, network, size, normalised, num_classes or published, preprocessing)
    return fill(defense, source.checkpoint, source.weights) if source.checkpoint else Found(defense, file)


def _published(name: str, weights: Any) -> tuple[nn.Module, Path]:
    # torchvision unpickles without restrictions, so the file is first read here as tensors only; torchvision then
    # finds it in the cache.
    torch.hub.load_state_dict_from_url(weights.url, progress=False, check_hash=True, weights_only=True)
    network = torchvision.models.get_model(name, weights=weights, progress=False)
    return network, Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
