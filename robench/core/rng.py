"""Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3").

Every number is philox(key, counter), where the key is derived from (seed, purpose) and the counter from (element,
step, rank, sample). Numbers therefore do not depend on the batch size, the order of work, the number of workers or
interruptions. Integers and uniforms are exact on every device; normals are rounded from float64.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors of one shape (or broadcasting), each holding 32-bit words.
        key: two 32-bit words.

    Returns:
        Four int64 tensors of 32-bit words.
    """
    words = torch.broadcast_tensors(*counter)
    if words[0].device.type != "cpu":
        return _rounds(words, key)
    # NumPy takes half the time of torch for arrays of this size.
    return tuple(torch.from_numpy(word) for word in _rounds([word.numpy() for word in words], key))


def _rounds(words: Sequence[Any], key: tuple[int, int]) -> tuple[Any, ...]:
    """The rounds of `philox` on int64 tensors or arrays."""
    c0, c1, c2, c3 = words
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap and keep their low 64 bits; the mask makes the shift logical.
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


@dataclass(frozen=True)
class Stream:
    """The random numbers of one purpose: `Stream.of(seed, "apgd(loss=\\"ce\\")")`."""

    key: tuple[int, int]

    @classmethod
    def of(cls, *purpose: object) -> "Stream":
        """The stream keyed by the seed and the parts of its purpose."""
        digest = hashlib.sha256("\x1f".join(map(str, purpose)).encode()).digest()
        return cls((int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")))

    def bits(self, sample: Tensor, rank: Tensor, step: Tensor | int, count: int) -> Tensor:
        """`count` random 32-bit words for each row, int64 (S, count) in 0 .. 2**32 - 1.

        Args:
            sample, rank: (S,) int64.
            step: (S,) int64, or one number for all rows.
        """
        device = sample.device
        blocks = torch.arange(-(-count // 4), device=device)[None, :]
        step = torch.as_tensor(step, device=device).expand(len(sample))
        words = philox((blocks, step[:, None], rank[:, None], sample[:, None]), self.key)
        return torch.stack(words, 2).flatten(1)[:, :count]

    def uniform(self, sample: Tensor, rank: Tensor, step: Tensor | int, shape: tuple[int, ...]) -> Tensor:
        """Uniform float32 numbers in [0, 1), (S, *shape)."""
        words = self.bits(sample, rank, step, math.prod(shape))
        return ((words >> 8).float() * 2.0**-24).view(-1, *shape)

    def normal(self, sample: Tensor, rank: Tensor, step: Tensor | int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 numbers, (S, *shape), by the Box-Muller transform."""
        count = math.prod(shape)
        words = self.bits(sample, rank, step, 2 * count).double()
        radius = (-2 * ((words[:, :count] + 0.5) * 2.0**-32).log()).sqrt()
        return (radius * (2 * math.pi * 2.0**-32 * words[:, count:]).cos()).float().view(-1, *shape)


class _Noise:
    """The source of a randomized model's numbers during one call."""

    def __init__(self, stream: Stream, sample: Tensor, rank: Tensor, step: Tensor):
        self.stream, self.sample, self.rank, self.step = stream, sample, rank, step
        self.uses = 0
        self.parts = 1

    def stream_of_next_use(self) -> Stream:
        self.uses += 1
        return Stream.of(*self.stream.key, self.uses)


_noise: ContextVar[_Noise | None] = ContextVar("noise", default=None)


@contextmanager
def noise(stream: Stream, sample: Tensor, rank: Tensor, step: Tensor) -> Iterator[None]:
    """Inside the block, `normal_like` and `uniform_like` draw the numbers of each row independently of the others.

    The numbers depend on the row's sample, rank and step, and on the number of earlier draws in the block.

    Args:
        sample, rank, step: (N,) int64, one entry for each row of the model's input batch.
    """
    token = _noise.set(_Noise(stream, sample, rank, step))
    try:
        yield
    finally:
        _noise.reset(token)


@contextmanager
def parts(count: int) -> Iterator[None]:
    """Inside the block, each row of the batch is split into `count` consecutive rows.

    The numbers of `normal_like` and `uniform_like` then depend on the original row and the position within it.
    """
    source = _noise.get()
    if source is None:
        yield
        return
    before, source.parts = source.parts, source.parts * count
    try:
        yield
    finally:
        source.parts = before


def normal_like(x: Tensor) -> Tensor:
    """Standard normal numbers with the shape and dtype of `x`, (N,) or (N, ...), drawn row by row inside `noise` and by
    torch's generator elsewhere."""
    return _like(x, Stream.normal, torch.randn_like)


def uniform_like(x: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) with the shape and dtype of `x`, drawn as in `normal_like`."""
    return _like(x, Stream.uniform, torch.rand_like)


def _like(x: Tensor, draw, elsewhere) -> Tensor:
    source = _noise.get()
    if source is None or len(x) != len(source.sample) * source.parts:
        return elsewhere(x)
    size = source.parts * x.shape[1] if x.dim() > 1 else source.parts
    shape = (size, *x.shape[2:])
    numbers = draw(source.stream_of_next_use(), source.sample, source.rank, source.step, shape)
    return numbers.to(x.device, x.dtype).reshape(x.shape)
