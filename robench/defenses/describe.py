"""Describe the input and output of a defense for `robench show`, without fetching weights."""

from pathlib import Path

from torch import Tensor

from robench.catalog import Card
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.core.io import is_file
from robench.defenses import build_purifier, find_card, loaders
from robench.defenses._base import Defense, with_purifier
from robench.defenses._checkpoints import split_location


def network_of(
    spec: specs.Spec, folder: Path = Path(), checkpoint: str = "", classifier: str = ""
) -> Defense:
    """Build the network of a spec with arbitrary weights, for description only.

    Args:
        folder, checkpoint: those of a card; some loaders need the file to build the network.
        classifier: the defense behind the purifier, for a purifier's spec.

    Raises:
        RobenchError: if the network cannot be built here.
    """
    if spec.name in registry.purifiers:
        card = find_card(classifier or "standard-digits")
        inner = _network_of_card(card) if card else network_of(specs.parse(classifier))
        return with_purifier(build_purifier(spec), inner)
    if not loaders.scheme_of(spec.name):
        return specs.build(spec, registry.defenses.get(spec.name))
    place, weights, _ = split_location(checkpoint, folder)
    path = folder / place
    given = path if checkpoint and "://" not in checkpoint and is_file(path) else None
    return loaders.open_spec(spec, given, bare=True, weights=weights if given else "")[0].defense


def _network_of_card(card: Card) -> Defense:
    return network_of(card.spec, card.path.parent, card.checkpoint, card.classifier)


def of_card(card: Card) -> dict[str, str]:
    """`describe` for a card's network; raises as `network_of` does."""
    return describe(_network_of_card(card))


def of_spec(text: str) -> dict[str, str]:
    """`describe` for a spec's network, with its provider; raises as `network_of` does."""
    spec = specs.parse(text)
    if scheme := loaders.scheme_of(spec.name):
        holder = registry.loaders.holder(scheme)
    else:
        holder = registry.purifiers.holder(spec.name) or registry.defenses.holder(spec.name)
    return {"from": holder, **describe(network_of(spec))}


def describe(defense: Defense) -> dict[str, str]:
    """Input, normalization, classes and properties of a defense, as lines of a table.

    Raises:
        UsageError: if it is not a Defense.
    """
    if not isinstance(defense, Defense):
        raise UsageError(f"a {type(defense).__name__} was built: expected a robench.defenses.Defense")
    side = defense.image_size
    words = {True: "yes", False: "no"}
    return {
        "images": f"(N, {defense.channels}, {side}, {side}), float32 in [0, 1]",
        "mean": _numbers(defense.mean),
        "std": _numbers(defense.std),
        "preprocessing": defense.preprocessing or "unknown",
        "classes": str(defense.num_classes),
        "parameters": f"{sum(p.numel() for p in defense.parameters()):,}",
        "purifier": type(defense.purifier).__name__ if defense.purifier is not None else "none",
        "stochastic": words[defense.stochastic],
        "differentiable": words[defense.differentiable],
        "features": words[callable(getattr(defense.classifier, "forward_features", None))],
    }


def _numbers(values: Tensor | None) -> str:
    if values is None:
        return "none: pixels are not normalized"
    return ", ".join(f"{value:.6g}" for value in values.flatten().tolist())
