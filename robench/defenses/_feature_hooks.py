"""Overhearing a classifier's features while it computes its logits, so that one pass gives both."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

# What networks of blocks call the sequence of them (of stages, where they are hierarchical).
_SEQUENCES = ("blocks", "stages", "layers")


@contextmanager
def capture_features(classifier: nn.Module, layers: str) -> Iterator[list[Tensor]]:
    """Inside the block, what the classifier computes on its way is put into the list given, in order.

    Args:
        layers: "last" for what its `forward_features` gives, "all" for each of its blocks. Nothing is heard
            of a network that does not call the former, or has none of the latter.
    """
    heard: list[Tensor] = []
    if layers == "all":
        hooks = [
            block.register_forward_hook(lambda *said: heard.append(said[2])) for block in blocks(classifier)
        ]
        try:
            yield heard
        finally:
            for hook in hooks:
                hook.remove()
        return
    network: Any = classifier
    forward_features = network.forward_features

    def listening(*args, **kwargs) -> Tensor:
        heard.append(forward_features(*args, **kwargs))
        return heard[-1]

    # Shadows the class's method for this one object.
    network.forward_features = listening
    try:
        yield heard
    finally:
        del network.forward_features


def blocks(classifier: nn.Module) -> list[nn.Module]:
    """The blocks (or stages) of the outermost part that has a sequence of them; empty where none has."""
    for module in classifier.modules():
        for name in _SEQUENCES:
            sequence = getattr(module, name, None)
            if isinstance(sequence, nn.Sequential | nn.ModuleList) and len(sequence):
                return list(sequence)
    return []
