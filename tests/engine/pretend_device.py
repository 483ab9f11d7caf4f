"""A device that is not there: what a GPU would refuse or wait for, found on a CPU.

Inside `PretendDevice()` a tensor moved to `DEVICE` holds its values on the CPU and says that it lies elsewhere. An
operation that mixes it with a CPU tensor raises `MixedDevices`, as CUDA does; every copy between the two, every
synchronization and every kernel is counted, those of the network and of its gradient apart from the engine's.
"""

import contextlib
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import robench

# A backend that autograd serves from the calling thread, as it serves the CPU.
DEVICE = torch.device("lazy")
ENGINE, NETWORK, GRADIENT = "engine", "network", "gradient"
SYNC, TO_HOST, TO_DEVICE, KERNEL = "sync", "to host", "to device", "kernel"

_CPU = torch.device("cpu")
_ROOT = str(Path(robench.__file__).parent)
# Their result's size or value must be known on the host before the program goes on.
_WAITING = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_dim",
    "_unique2",
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_INDICES = (torch.int64, torch.int32, torch.bool, torch.uint8)
# Nothing is launched: the result is another view of the same memory.
_FREE = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "diagonal", "expand", "lift_fresh", "permute",
    "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold",
    "unsqueeze", "view",
}  # fmt: skip
_FACTORIES = (torch.tensor, torch.as_tensor, torch.scalar_tensor)


# All tensors on the device, where its memory is measured.
_LIVE: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


class MixedDevices(RuntimeError):
    """CPU and device tensors in one operation."""


class _There(Tensor):
    """A tensor on the device; `here` are its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "_There":
        there = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            device=DEVICE,
        )
        there.here = here
        return there

    def __repr__(self) -> str:  # type: ignore[override]
        return f"there({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on a tensor of a pretended device, outside of it")


class PretendDevice(TorchDispatchMode):
    """The device, while it is entered.

    Attributes:
        counts: (region, kind) -> how often.
        before: the counts before each call of the network.
        places: (kind, file:line) -> how often, of the engine alone.
        peak: most bytes of memory that tensors on the device had at one time; 0 unless `memory`, for summing is slow.
    """

    def __init__(self, memory: bool = False):
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.before: list[Counter[tuple[str, str]]] = []
        self.places: Counter[tuple[str, str]] = Counter()
        self.region, self.memory = ENGINE, memory
        self.peak = self._operations = 0
        self._open = contextlib.ExitStack()

    def __enter__(self):
        self._open.enter_context(_Factories())
        # Wrapped tensors cannot be made in inference mode.
        self._open.enter_context(mock.patch("torch.inference_mode", _no_inference))
        self._open.enter_context(mock.patch("torch.autocast", _no_autocast))
        gradient = torch.autograd.grad
        self._open.enter_context(
            mock.patch("torch.autograd.grad", lambda *a, **k: self.inside(GRADIENT, gradient, *a, **k))
        )
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._open.close()

    def inside(self, region: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function whose operations count for another region."""
        before, self.region = self.region, region
        try:
            return function(*args, **kwargs)
        finally:
            self.region = before

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here: torch's guard against it takes longer than an operation.
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        there = [tensor for tensor in tensors if isinstance(tensor, _There)]
        target = kwargs.get("device")
        target = None if target is None else torch.device(target)
        if not there and target != DEVICE:
            return func(*args, **kwargs)
        self._count(name, args, tensors, there, target)
        if name not in ("_to_copy", "copy_"):
            self._refuse_mixed(func, name, args, tensors, there)
        if target is not None:
            kwargs = {**kwargs, "device": _CPU}
        out = func(*_with(_here, args), **{key: _with(_here, value) for key, value in kwargs.items()})
        lands_there = target == DEVICE if target is not None else bool(there)
        if name == "copy_" or isinstance(kwargs.get("out"), _There):
            return args[0] if name == "copy_" else kwargs["out"]
        if not lands_there:
            return out
        known = {id(tensor.here): tensor for tensor in there}
        out = _with(lambda tensor: known[id(tensor)] if id(tensor) in known else _There(tensor), out)
        if self.memory:
            self._measure(out)
        return out

    def _measure(self, out: Any) -> None:
        _LIVE.update((id(tensor), tensor) for tensor in _tensors((out,)))
        self._operations += 1
        # Summing takes longer than an operation.
        if self._operations % 16 == 0:
            self.peak = max(self.peak, _live_bytes())

    def _count(self, name: str, args: Any, tensors: list, there: list, target: torch.device | None) -> None:
        kinds = []
        if name == "_to_copy" and target is not None:
            if there and target != DEVICE:
                kinds = [TO_HOST]
            elif not there and target == DEVICE:
                kinds = [TO_DEVICE]
        elif name == "copy_" and isinstance(args[0], _There) != isinstance(args[1], _There):
            kinds = [TO_DEVICE if isinstance(args[0], _There) else TO_HOST]
        if not kinds and (there or target == DEVICE):
            if name in _WAITING:
                kinds = [SYNC]
            elif name in _INDEXING and any(
                isinstance(t, _There) and t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1])
            ):
                # A mask is turned into places, whose number the host waits for.
                kinds = [SYNC, KERNEL]
            elif name not in _FREE:
                kinds = [KERNEL]
        if name in _INDEXING and there and any(_is_here(t) for t in _tensors(args[1])):
            kinds.append(TO_DEVICE)
        for kind in kinds:
            self.counts[self.region, kind] += 1
            if self.region == ENGINE and kind != KERNEL:
                self.places[kind, _line()] += 1

    def _refuse_mixed(self, func: Any, name: str, args: Any, tensors: list, there: list) -> None:
        if not there or self.region != ENGINE:
            return
        # CUDA takes numbers without dimensions from the CPU, and indices, which it copies over.
        strangers = [tensor for tensor in tensors if _is_here(tensor)]
        if name in _INDEXING and isinstance(args[0], _There):
            strangers = [tensor for tensor in strangers if tensor.dtype not in _INDICES]
        if strangers:
            shapes = [f"{'device' if isinstance(t, _There) else 'cpu'} {tuple(t.shape)}" for t in tensors]
            raise MixedDevices(f"{func} at {_line()}: {', '.join(shapes)}")


class _Factories(TorchFunctionMode):
    """`torch.tensor(..., device=DEVICE)` and the like: made on the CPU and copied."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if (
            func in _FACTORIES
            and kwargs.get("device") is not None
            and torch.device(kwargs["device"]) == DEVICE
        ):
            del kwargs["device"]
            return func(*args, **kwargs).to(DEVICE)
        if func is Tensor.tolist and isinstance(args[0], _There):
            return args[0].cpu().tolist()
        if func is Tensor.new_tensor and isinstance(args[0], _There):
            kwargs.setdefault("dtype", args[0].dtype)
            return torch.tensor(*args[1:], **kwargs).to(DEVICE)
        return func(*args, **kwargs)


class Network(nn.Module):
    """A network whose work counts as the network's."""

    def __init__(self, network: nn.Module, device: PretendDevice):
        super().__init__()
        self.network = network
        # In a list: modules that are attributes are registered, a mode must not be copied.
        self.device = [device]

    def forward(self, x: Tensor) -> Tensor:
        self.device[0].before.append(self.device[0].counts.copy())
        return self.device[0].inside(NETWORK, self.network, x)

    def forward_features(self, x: Tensor) -> Tensor:
        features: Any = self.network.forward_features
        return self.device[0].inside(NETWORK, features, x)


def _no_inference(mode: bool = True) -> contextlib.AbstractContextManager[Any]:
    return torch.no_grad() if mode else contextlib.nullcontext()


def _no_autocast(
    device: str, *args: Any, enabled: bool = True, **kwargs: Any
) -> contextlib.AbstractContextManager[Any]:
    assert not enabled or device == "cpu", "lower precision is not pretended"
    return contextlib.nullcontext()


def _live_bytes() -> int:
    storages = {
        tensor.here.untyped_storage().data_ptr(): tensor.here.untyped_storage()
        for tensor in list(_LIVE.values())
    }
    return sum(storage.nbytes() for storage in storages.values())


def _is_here(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, _There) and value.dim() > 0


def _here(tensor: Tensor) -> Tensor:
    return tensor.here if isinstance(tensor, _There) else tensor


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments of an operation: torch's own trees take longer than the operation."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _with(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Arguments or results of an operation with `function` of each of their tensors."""
    if isinstance(value, Tensor):
        return function(value)
    return type(value)(_with(function, each) for each in value) if isinstance(value, list | tuple) else value


def _line() -> str:
    """The innermost line of robench that is being run."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith(_ROOT):
            return f"{frame.f_code.co_filename[len(_ROOT) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
