"""`timm:NAME` and `hf-hub:OWNER/NAME`: timm's models, with timm's published weights or those of --checkpoint.

Wightman, "PyTorch Image Models", doi 10.5281/zenodo.4414861.
"""

from typing import Any

import timm
from timm.data.config import resolve_data_config
from torch import nn

from robench.core import registry
from robench.core.errors import ResourceError, UsageError, unknown_name
from robench.data.preprocessing import of_evaluation
from robench.defenses.loaders import _base
from robench.defenses.loaders._base import Channels, Found, Source, fill, normalisation, one_line, wrap


@registry.loaders.register("timm")
def load(
    source: Source,
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: Channels = None,
    std: Channels = None,
) -> Found:
    """A model of timm by its timm name, including the tag: `timm:resnet50.a1_in1k`.

    Args:
        num_classes, image_size, mean, std: None for the values of timm's weights of that name. Another number of
            classes needs a checkpoint, since published weights have no head for it.

    Raises:
        UsageError: for a name unknown to timm, or a model without a classifier or without weights.
        ResourceError: if the weights cannot be downloaded.
    """
    if not timm.is_model(source.target):
        known = timm.list_models()
        raise unknown_name("timm model", source.target, known, f"timm.list_models() shows all {len(known)}")
    return _load(source, source.target, num_classes, image_size, mean, std)


@registry.loaders.register("hf-hub")
def load_hub(
    source: Source,
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: Channels = None,
    std: Channels = None,
) -> Found:
    """A timm model on the Hugging Face hub, `hf-hub:OWNER/NAME[@REVISION]`, from safetensors if available.

    The hub holds the description of the network, so the hub or its local cache is needed even with --checkpoint.

    Args:
        num_classes, image_size, mean, std: as for `timm`.
    """
    owner, _, name = source.target.partition("/")
    if not owner or not name or "/" in name:
        raise UsageError(f'malformed "{source}": expected hf-hub:OWNER/NAME')
    return _load(source, f"hf-hub:{source.target}", num_classes, image_size, mean, std)


def _load(
    source: Source, name: str, classes: int | None, size: int | None, mean: Channels, std: Channels
) -> Found:
    with_weights = not source.checkpoint and not source.bare
    network = _create(source, name, classes, size)
    config: dict[str, Any] = network.pretrained_cfg
    normalised = normalisation(mean, std, (config["mean"], config["std"]))
    if with_weights:
        network = _pretrained(source, name, config, classes, size)
    network_classes = getattr(network, "num_classes", 0)
    if not network_classes:
        raise UsageError(f"{source} has no classifier: add num_classes=... and pass a file with --checkpoint")
    channels, *sides = config["input_size"]
    if channels != 3 or len(set(sides)) != 1:
        raise UsageError(f"{source} takes images of shape {tuple(config['input_size'])}: expected (3, S, S)")
    side = size or sides[0]
    data = resolve_data_config(pretrained_cfg=config)
    preprocessing = of_evaluation(
        side, data["crop_pct"], data["interpolation"], data["crop_mode"], data.get("crop_border_pixels")
    )
    defense = wrap(source, network, side, normalised, network_classes, preprocessing)
    return fill(defense, source.checkpoint, source.weights) if source.checkpoint else Found(defense)


def _create(source: Source, name: str, classes: int | None, size: int | None) -> Any:
    """The network with random weights."""
    options: dict[str, Any] = {"num_classes": classes} if classes is not None else {}
    try:
        with _base.quiet():
            network: Any = timm.create_model(name, pretrained=False, **options)
        if size is not None and network.pretrained_cfg.get("fixed_input_size"):
            network = timm.create_model(name, pretrained=False, img_size=size, **options)
    # timm passes on any error of a network's constructor or of the hub.
    except Exception as error:
        if name.startswith("hf-hub:"):
            raise ResourceError(
                f"{source} cannot be reached ({one_line(error)}): check the name and the network, or name "
                "its architecture, timm:NAME, and pass its weights with --checkpoint"
            ) from error
        raise UsageError(f"{source} cannot be built: {one_line(error)}") from error
    return network


def _pretrained(
    source: Source, name: str, config: dict[str, Any], classes: int | None, size: int | None
) -> nn.Module:
    if not any(config.get(key) for key in ("hf_hub_id", "url", "file")):
        raise UsageError(f"{source} comes without trained weights: pass a file with --checkpoint")
    if classes not in (None, config["num_classes"]):
        raise UsageError(
            f"the published weights of {source} have {config['num_classes']} classes: for {classes} pass a "
            "file with --checkpoint"
        )
    resized: dict[str, Any] = {"img_size": size} if size and config.get("fixed_input_size") else {}
    return _base.attempt(source, lambda: timm.create_model(name, pretrained=True, **resized))
