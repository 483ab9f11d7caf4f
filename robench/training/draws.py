"""Random numbers of a training that do not depend on how a batch is cut into parts.

A batch is cut into parts for gradient accumulation, and for the processes of torchrun. Each part draws the random
numbers of the whole batch and keeps those of its own rows, so that a row has the same random start, mask and
stochastic depth however the batch is cut.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def seed_for(*purpose: object) -> int:
    """Derive a 63-bit seed for torch's generators from the parts of a purpose."""
    digest = hashlib.sha256("\x1f".join(map(str, purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True)
class Part:
    """Rows `start` to `start + count` of a batch of `size`."""

    start: int
    count: int
    size: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.count)

    def draws(self) -> Any:
        """A context in which random numbers for the part's rows are those of the whole batch's rows."""
        return nullcontext() if self.count == self.size else _WholeBatch(self)


def cut(size: int, parts: int, unit: int = 1) -> list[Part]:
    """Cut a batch into consecutive parts that differ in length by at most one unit; some may be empty.

    Args:
        unit: number of consecutive rows that stay together.
    """
    units = -(-size // unit)
    edges = [min(size, unit * (units * k // parts)) for k in range(parts + 1)]
    return [Part(start, end - start, size) for start, end in pairwise(edges)]


def positions(n: int, device: torch.device) -> Tensor:
    """The rows of the batch that the current part of `n` rows holds, (n,) int64."""
    start = _current[-1].start if _current and _current[-1].count == n else 0
    return torch.arange(start, start + n, device=device)


@contextmanager
def same_draws(parts: list[Part], device: torch.device) -> Iterator[Callable[[], None]]:
    """Yield a function that returns torch's generators to their state at the start of the batch, for the next part."""
    if len(parts) == 1:
        yield lambda: None
        return
    state = generators(device)
    yield lambda: set_generators(state, device)


def generators(device: torch.device) -> list[Tensor]:
    """The states of torch's generators of the CPU and of a GPU."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_generators(states: list[Tensor], device: torch.device) -> None:
    """Set the states that `generators` returned."""
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1].cpu(), device)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of torch's CPU, NumPy and Python inside the block, and restore them afterwards."""
    state, python_state = torch.default_generator.get_state(), random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 - timm draws from it
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


class _WholeBatch(TorchFunctionMode):
    """Draws tensors whose first dimension is the part's rows, once or twice, for the whole batch, and keeps these rows.

    Other random numbers are the same in every part.
    """

    def __init__(self, part: Part):
        super().__init__()
        self.part = part

    def __enter__(self) -> "_WholeBatch":
        _current.append(self.part)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _current.pop()
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        draw = _DRAWS.get(func)
        kwargs = kwargs or {}
        return draw(self.part, func, args, kwargs) if draw else func(*args, **kwargs)


def _copies(part: Part, length: int) -> int:
    """How often a tensor of this length has the part's rows: twice if clean and adversarial images are joined."""
    return next((k for k in (1, 2) if length == k * part.count), 0)


def _keep(part: Part, whole: Tensor, copies: int) -> Tensor:
    """The part's rows of a tensor for the whole batch, or for several copies of it."""
    rows = whole.view(copies, part.size, *whole.shape[1:])[:, part.rows]
    return rows.reshape(copies * part.count, *whole.shape[1:])


def _in_place(part: Part, func: Any, args: Any, kwargs: Any) -> Tensor:
    return args[0].copy_(_like(part, func, args, kwargs))


def _like(part: Part, func: Any, args: Any, kwargs: Any) -> Tensor:
    tensor, *rest = args
    copies = _copies(part, len(tensor)) if tensor.dim() else 0
    if not copies:
        return func(*args, **kwargs)
    whole = tensor.new_empty(copies * part.size, *tensor.shape[1:])
    return _keep(part, func(whole, *rest, **kwargs), copies)


def _gamma(part: Part, func: Any, args: Any, kwargs: Any) -> Tensor:
    """A Gamma distribution with one parameter per row, the same in every row."""
    tensor, *rest = args
    if not (tensor.dim() and len(tensor) == part.count and part.count):
        return func(*args, **kwargs)
    return func(tensor[:1].expand(part.size, *tensor.shape[1:]), *rest, **kwargs)[part.rows]


def _sized(part: Part, func: Any, args: Any, kwargs: Any) -> Tensor:
    """torch.rand(n, p), torch.rand((n, p)) and torch.randint(high, (n, p))."""
    place = next((i for i, value in enumerate(args) if isinstance(value, tuple | list)), None)
    scalars = func is torch.randint
    size = list(args[place] if place is not None else kwargs.get("size", () if scalars else args))
    copies = _copies(part, size[0]) if size else 0
    if not copies:
        return func(*args, **kwargs)
    size[0] = copies * part.size
    if place is not None:
        args = (*args[:place], tuple(size), *args[place + 1 :])
    elif "size" in kwargs:
        kwargs = {**kwargs, "size": tuple(size)}
    else:
        args = tuple(size)
    return _keep(part, func(*args, **kwargs), copies)


_DRAWS: dict[Any, Callable[[Part, Any, Any, Any], Tensor]] = {
    torch.Tensor.uniform_: _in_place,
    torch.Tensor.normal_: _in_place,
    torch.Tensor.bernoulli_: _in_place,
    torch.Tensor.random_: _in_place,
    torch.Tensor.exponential_: _in_place,
    torch.rand_like: _like,
    torch.randn_like: _like,
    torch.randint_like: _like,
    torch._standard_gamma: _gamma,  # pyright: ignore[reportPrivateImportUsage]
    torch.rand: _sized,
    torch.randn: _sized,
    torch.randint: _sized,
}
_current: list[Part] = []
