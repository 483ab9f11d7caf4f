"""A network made faster for the search, at the price of other rounding: compiled, or with channels last."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robench.engine.backing_off import out_of_memory
from robench.engine.refusals import Model

# Batch sizes and modes of gradients for which a network is compiled: halved batches need a version each.
_VERSIONS = 64
_compiled: "WeakKeyDictionary[Any, Callable[..., Tensor]]" = WeakKeyDictionary()


class FastModel(nn.Module):
    """Calls a network in a faster way, and as it is if that fails.

    Args:
        model: the network; its other attributes are those of this one.
        compiles: whether to use `torch.compile`.
        channels_last: whether images have their channels last in memory, which suits convolutions on a GPU.

    Attributes:
        failure: why the network is called as it is, in one line; empty if nothing failed.
    """

    def __init__(self, model: Model, compiles: bool = False, channels_last: bool = False):
        super().__init__()
        # In a tuple: the weights are those of the network, which is frozen elsewhere.
        self.wrapped = (model,)
        self.compiles, self.channels_last = compiles, channels_last
        self.failure = ""

    def forward(self, x: Tensor) -> Tensor:
        model = self.wrapped[0]
        if self.failure:
            return model(x)
        try:
            fast = _compile(model) if self.compiles else model
            return fast(x.contiguous(memory_format=torch.channels_last) if self.channels_last else x)
        except Exception as error:
            if out_of_memory(error):
                raise
            logits = model(x)
            # The network works, so the failure is of the faster way.
            lines = str(error).strip().splitlines() or [""]
            self.failure = f"{type(error).__name__}: {lines[0]}"[:200]
            return logits

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__ or name == "wrapped":
            return super().__getattr__(name)
        return getattr(self.wrapped[0], name)


def _compile(model: Model) -> Callable[..., Tensor]:
    """The compiled network, the same one at every call."""
    if model not in _compiled:
        import torch._dynamo
        import torch._functorch.config

        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VERSIONS)
        # Attacks take several gradients at one point.
        torch._functorch.config.donated_buffer = False
        _compiled[model] = torch.compile(model, dynamic=False)
    return _compiled[model]


def has_convolutions(model: Model) -> bool:
    """Whether a network has convolutions of images other than a layer of patches."""
    return isinstance(model, nn.Module) and any(
        isinstance(module, nn.Conv2d) and module.kernel_size != module.stride for module in model.modules()
    )
