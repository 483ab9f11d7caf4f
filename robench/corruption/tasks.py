"""Corrupting images in parallel processes; results do not depend on their number."""

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

# Cached, because it is called for every chunk and reads files.
_maker = cache(maker)


@dataclass(frozen=True)
class Task:
    """A chunk of images to corrupt.

    Attributes:
        pixels: (N, H, W, 3) uint8.
        ids: ids of the N images.
        corruption, severity, seed: see `robench.corruption.make.corrupt`.
        jpeg: whether the images pass through a JPEG file.
        digest: digest of `pixels` and `ids`, see `digest_of`.
        cache: cache of results; None for no cache.
    """

    pixels: np.ndarray
    ids: tuple[int, ...]
    corruption: str
    severity: int
    seed: int
    jpeg: bool
    digest: str = ""
    cache: Cache | None = None

    def run(self) -> "CorruptedImages":
        """Corrupt the images."""
        pixels = (decode_jpeg(image) if isinstance(image, bytes) else image for image in self._images())
        return CorruptedImages.of(pixels)

    def files(self) -> list[bytes]:
        """Corrupt the images and return JPEG files; `jpeg` must be set."""
        return [image if isinstance(image, bytes) else to_jpeg(image) for image in self._images()]

    def _images(self) -> Sequence[bytes | np.ndarray]:
        cached = self.cache.get(self._key()) if self.cache else None
        if cached is not None:
            return _decode(cached, self.jpeg)
        images: list[bytes | np.ndarray] = []
        for image, sample in zip(self.pixels, self.ids, strict=True):
            corrupted = corrupt(image, self.corruption, self.severity, sample, self.seed)
            images.append(to_jpeg(corrupted) if self.jpeg else corrupted)
        if self.cache:
            self.cache.put(self._key(), _encode(images))
        return images

    def _key(self) -> str:
        jpeg = sorted(JPEG.items()) if self.jpeg else ""
        parts = (_maker(), self.digest, self.corruption, self.severity, self.seed, jpeg)
        return _hash("\x1f".join(map(str, parts)).encode())


@dataclass(frozen=True)
class CorruptedImages:
    """Corrupted images, (N, H, W, 3) uint8, with the sha256 of their bytes."""

    pixels: np.ndarray
    digest: str

    @classmethod
    def of(cls, images: Iterable[np.ndarray]) -> "CorruptedImages":
        pixels = np.stack(list(images))
        return cls(pixels, _hash(pixels.tobytes()))


def digest_of(pixels: np.ndarray, ids: Sequence[int]) -> str:
    """sha256 over images (N, H, W, 3) uint8 and their ids, which identifies them in the cache."""
    return _hash(np.array([*pixels.shape, *ids], dtype=np.int64).tobytes() + pixels.tobytes())


def in_order(tasks: Iterable[Task], workers: int = 1, files: bool = False) -> Iterator:
    """Yield the results of tasks in order: `CorruptedImages`, or lists of JPEG files.

    Args:
        tasks: the tasks, consumed a few ahead.
        workers: number of processes, 1 for the current one.
        files: whether to return JPEG files.

    Raises:
        ResourceError: if a process dies, or the library is not installed.
    """
    method = "files" if files else "run"
    if workers <= 1:
        for task in tasks:
            yield getattr(task, method)()
        return
    library()
    with Workers(workers) as pool:
        pending: deque = deque()
        for task in tasks:
            pending.append(pool.submit(task, method))
            # Enough to keep all processes busy, few enough to bound memory.
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _encode(images: Sequence[bytes | np.ndarray]) -> bytes:
    """Serialize images: the lengths of JPEG files followed by the files, or one array."""
    file = io.BytesIO()
    files = [image for image in images if isinstance(image, bytes)]
    if files:
        np.save(file, np.array([len(image) for image in files], dtype=np.int64))
        file.write(b"".join(files))
    else:
        np.save(file, np.stack(images))
    return file.getvalue()


def _decode(content: bytes, jpeg: bool) -> Sequence[bytes | np.ndarray]:
    file = io.BytesIO(content)
    array = np.load(file, allow_pickle=False)
    return [file.read(length) for length in array.tolist()] if jpeg else list(array)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
