"""The images that an attack found: held until they are saved, then on the disk alone."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from robench.errors import ResourceError


@dataclass(frozen=True)
class Place:
    """Where an image was saved: a row of a file."""

    file: Path
    row: int

    def read(self) -> Tensor:
        """The image, (C, H, W).

        Raises:
            ResourceError: when the file is gone or damaged.
        """
        try:
            with safe_open(self.file, "pt") as file:
                return file.get_slice("image")[self.row]
        except (OSError, SafetensorError) as error:
            raise ResourceError(f"{self.file} is gone or damaged: repeat the run with --fresh") from error


class Found(Mapping[int, Tensor]):
    """The image that fools the defense, (C, H, W), of each sample that has one.

    Attributes:
        fresh: those that are not saved yet.
    """

    def __init__(self, saved: Mapping[int, Place] | None = None):
        self.fresh: dict[int, Tensor] = {}
        self._saved = dict(saved or {})

    @classmethod
    def together(cls, parts: Iterable["Found"]) -> "Found":
        """What processes found that share the samples."""
        both = cls()
        for part in parts:
            both.fresh |= part.fresh
            both._saved |= part._saved
        return both

    def __setitem__(self, sample: int, image: Tensor) -> None:
        self.fresh[sample] = image

    def __getitem__(self, sample: int) -> Tensor:
        return self.fresh[sample] if sample in self.fresh else self._saved[sample].read()

    def __iter__(self) -> Iterator[int]:
        return iter(self.fresh.keys() | self._saved.keys())

    def __len__(self) -> int:
        return len(self.fresh.keys() | self._saved.keys())

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return sum(image.nbytes for image in self.fresh.values())

    def let_go(self, places: Mapping[int, Place]) -> None:
        """Forget the fresh images, which have been saved at `places`."""
        self._saved |= places
        for sample in places:
            del self.fresh[sample]
