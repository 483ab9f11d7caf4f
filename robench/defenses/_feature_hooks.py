"""Capture a classifier's features while it computes its logits, so that one pass gives both."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

# Names that networks give to their sequence of blocks (or stages, in hierarchical networks).
_SEQUENCES = ("blocks", "stages", "layers")


@contextmanager
def capture_features(classifier: nn.Module, layers: str) -> Iterator[list[Tensor]]:
    """A context manager that appends the classifier's features to the list it yields, in order.

    Args:
        layers: "last" for the output of `forward_features`, "all" for the output of each block. The list stays
            empty for a network that does not call the former or has no blocks.
    """
    captured: list[Tensor] = []
    if layers == "all":
        hooks = [
            block.register_forward_hook(lambda *call: captured.append(call[2]))
            for block in blocks(classifier)
        ]
        try:
            yield captured
        finally:
            for hook in hooks:
                hook.remove()
        return
    network: Any = classifier
    forward_features = network.forward_features

    def capturing(*args, **kwargs) -> Tensor:
        captured.append(forward_features(*args, **kwargs))
        return captured[-1]

    # Shadow the class's method on this instance.
    network.forward_features = capturing
    try:
        yield captured
    finally:
        del network.forward_features


def blocks(classifier: nn.Module) -> list[nn.Module]:
    """The blocks (or stages) of the outermost module that has a sequence of them; empty if none has."""
    for module in classifier.modules():
        for name in _SEQUENCES:
            sequence = getattr(module, name, None)
            if isinstance(sequence, nn.Sequential | nn.ModuleList) and len(sequence):
                return list(sequence)
    return []
