"""What a defense takes and gives, in words: what `robench show` prints, without fetching weights."""

from pathlib import Path

from torch import Tensor

from robench.catalog import Card
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.defenses import build_purifier, find_card, loaders
from robench.defenses._base import Defense, with_purifier
from robench.defenses._checkpoints import split_location


def network_of(
    spec: specs.Spec, folder: Path = Path(), checkpoint: str = "", classifier: str = ""
) -> Defense:
    """The network of a spec, with whatever weights it happens to have: not to be attacked.

    Args:
        folder, checkpoint: of a card, whose file some loaders need to know the network.
        classifier: the defense behind it, where the spec is a purifier's.

    Raises:
        RobenchError: when it cannot be built here.
    """
    if spec.name in registry.purifiers:
        card = find_card(classifier or "standard-digits")
        inner = (
            network_of(card.spec, card.path.parent, card.checkpoint, card.classifier)
            if card
            else network_of(specs.parse(classifier))
        )
        return with_purifier(build_purifier(spec), inner)
    if not loaders.scheme_of(spec.name):
        return specs.build(spec, registry.defenses.get(spec.name))
    place, weights, _ = split_location(checkpoint, folder)
    path = folder / place
    given = path if checkpoint and "://" not in checkpoint and path.is_file() else None
    return loaders.open_spec(spec, given, bare=True, weights=weights if given else "")[0].defense


def of_card(card: Card) -> dict[str, str]:
    """`describe` of a card's network. See `network_of` for what is raised."""
    return describe(network_of(card.spec, card.path.parent, card.checkpoint, card.classifier))


def of_spec(text: str) -> dict[str, str]:
    """`describe` of a spec's network, with who provides it. See `network_of` for what is raised."""
    spec = specs.parse(text)
    holder = _holder(spec.name)
    return {"from": holder, **describe(network_of(spec))}


def _holder(name: str) -> str:
    if scheme := loaders.scheme_of(name):
        return registry.loaders.holder(scheme)
    return registry.purifiers.holder(name) or registry.defenses.holder(name)


def describe(defense: Defense) -> dict[str, str]:
    """Input, normalisation, classes and nature of a defense, as lines of a table.

    Raises:
        UsageError: when it is no Defense.
    """
    if not isinstance(defense, Defense):
        raise UsageError(f"a {type(defense).__name__} was built: expected a robench.defenses.Defense")
    side = defense.image_size
    yes = {True: "yes", False: "no"}
    return {
        "images": f"(N, {defense.channels}, {side}, {side}), float32 in [0, 1]",
        "mean": _numbers(defense.mean),
        "std": _numbers(defense.std),
        "preprocessing": defense.preprocessing or "not said",
        "classes": str(defense.num_classes),
        "parameters": f"{sum(p.numel() for p in defense.parameters()):,}",
        "purifier": type(defense.purifier).__name__ if defense.purifier is not None else "none",
        "stochastic": yes[defense.stochastic],
        "differentiable": yes[defense.differentiable],
        "features": yes[callable(getattr(defense.classifier, "forward_features", None))],
    }


def _numbers(values: Tensor | None) -> str:
    if values is None:
        return "none: pixels go in as they are"
    return ", ".join(f"{value:.6g}" for value in values.flatten().tolist())
