"""The work of corrupting images, shared between processes; how many changes no pixel."""

import hashlib
import io
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from robench.corruption.cache import Cache
from robench.corruption.make import JPEG, corrupt, decode_jpeg, library, maker, to_jpeg
from robench.corruption.workers import Workers

# Asked for every chunk; found by reading files.
_maker = cache(maker)


@dataclass(frozen=True)
class Task:
    """Some images under one corruption.

    Attributes:
        pixels: (N, H, W, 3) uint8.
        ids: of the images, N of them.
        jpeg: whether they go through a JPEG file.
        digest: of `pixels` and `ids`, see `digest_of`.
        cache: where the result is looked for and kept; None to make it anew.
    """

    pixels: np.ndarray
    ids: tuple[int, ...]
    corruption: str
    severity: int
    seed: int
    jpeg: bool
    digest: str = ""
    cache: Cache | None = None

    def run(self) -> "Made":
        """The images corrupted."""
        return Made.of(decode_jpeg(each) if isinstance(each, bytes) else each for each in self._images())

    def files(self) -> list[bytes]:
        """The images as JPEG files; `jpeg` must be set."""
        return [each if isinstance(each, bytes) else to_jpeg(each) for each in self._images()]

    def _images(self) -> Sequence[bytes | np.ndarray]:
        kept = self.cache.get(self._key()) if self.cache else None
        if kept is not None:
            return _decode(kept, self.jpeg)
        made: list[bytes | np.ndarray] = []
        for image, sample in zip(self.pixels, self.ids, strict=True):
            plain = corrupt(image, self.corruption, self.severity, sample, self.seed)
            made.append(to_jpeg(plain) if self.jpeg else plain)
        if self.cache:
            self.cache.put(self._key(), _encode(made))
        return made

    def _key(self) -> str:
        decisive = (_maker(), self.digest, self.corruption, self.severity, self.seed)
        return _hash("\x1f".join(map(str, (*decisive, sorted(JPEG.items()) if self.jpeg else ""))).encode())


@dataclass(frozen=True)
class Made:
    """Corrupted images, (N, H, W, 3) uint8, and the sha256 of their bytes."""

    pixels: np.ndarray
    digest: str

    @classmethod
    def of(cls, images: Iterable[np.ndarray]) -> "Made":
        pixels = np.stack(list(images))
        return cls(pixels, _hash(pixels.tobytes()))


def digest_of(pixels: np.ndarray, ids: Sequence[int]) -> str:
    """sha256 over images (N, H, W, 3) uint8 and their ids: what a cache knows them by."""
    return _hash(np.array([*pixels.shape, *ids], dtype=np.int64).tobytes() + pixels.tobytes())


def in_order(tasks: Iterable[Task], workers: int = 1, files: bool = False) -> Iterator:
    """What the tasks make, in their order: `Made`, or JPEG files.

    Args:
        tasks: taken as they are needed, a few ahead.
        workers: processes; 1 for this one alone.
        files: ask for JPEG files.

    Raises:
        ResourceError: when a process dies, or the library is not installed.
    """
    method = "files" if files else "run"
    if workers <= 1:
        for task in tasks:
            yield getattr(task, method)()
        return
    library()
    with Workers(workers) as crew:
        waiting: deque = deque()
        for task in tasks:
            waiting.append(crew.submit(task, method))
            # Enough that nobody waits, few enough that memory stays bounded.
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _encode(images: Sequence[bytes | np.ndarray]) -> bytes:
    """One block: JPEG files behind each other with their lengths before them, or an array."""
    file = io.BytesIO()
    files = [each for each in images if isinstance(each, bytes)]
    if files:
        np.save(file, np.array([len(each) for each in files], dtype=np.int64))
        file.write(b"".join(files))
    else:
        np.save(file, np.stack(images))
    return file.getvalue()


def _decode(content: bytes, jpeg: bool) -> Sequence[bytes | np.ndarray]:
    file = io.BytesIO(content)
    first = np.load(file, allow_pickle=False)
    return [file.read(length) for length in first.tolist()] if jpeg else list(first)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
