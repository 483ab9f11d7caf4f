"""What a run keeps on disk while it plays: its state, and each fooling image once.

The folder holds `state.safetensors`, replaced whole at every save, and `found-NNNN.safetensors`, each written
once. The state says how many of those belong to it, so a kill between two writes loses only what is newer.
"""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from robench.engine.found import Place
from robench.files import refuse_link, write_whole

_STATE = "state.safetensors"
_BEGUN = "begun.json"

# Raised whenever what is saved changes: what another layout left behind is not gone on with.
LAYOUT = 4

# Seconds between two saves, at the least; a save may cost one part in twenty of the time it protects.
_INTERVAL, _SHARE = 2.0, 20
# Bytes of images found that are held until then, at the most.
_MOST = 1 << 24


@dataclass(frozen=True)
class Saved:
    """What a run goes on from.

    Attributes:
        tensors, facts: as they were saved.
        found: attack -> sample -> where the image is.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    found: dict[int, dict[int, Place]]


class Store(Protocol):
    """Where a run keeps what it would be sorry to lose."""

    def load(self) -> Saved | None: ...

    def save(
        self,
        tensors: dict[str, Tensor],
        facts: dict[str, Any],
        attack: int = 0,
        found: Mapping[int, Tensor] | None = None,
    ) -> dict[int, Place]: ...

    def due(self, held: int = 0) -> bool: ...

    def shares(self) -> int: ...

    def share(self, index: int, of: int) -> "Store": ...


class FolderStore:
    """A run's partial results in a folder.

    Args:
        folder: made on the first save.
        key: what the run is; a folder of another run is not resumed from.
    """

    def __init__(self, folder: Path, key: str):
        self.folder = folder
        self._of = key
        self.key = f"{key} layout {LAYOUT}"
        self.shards = 0
        self._last = time.monotonic()
        self._cost = 0.0

    @property
    def resumes(self) -> bool:
        """Whether there is a state of this run to go on from."""
        return self.shares() > 0

    def shares(self) -> int:
        """How many processes shared the run that left a state here; 0 where there is none."""
        if self.load() is not None:
            return 1
        numbers = [folder.name.split("-of-") for folder in self.folder.glob("share-*-of-*")]
        found = [int(of) for share, of in numbers if self._share(share, of).load() is not None]
        return max(found, default=0)

    def share(self, index: int, of: int) -> "FolderStore":
        """Where one of the processes that share a run keeps its own."""
        return self._share(f"share-{index}", str(of))

    def _share(self, share: str, of: str) -> "FolderStore":
        return FolderStore(self.folder / f"{share}-of-{of}", self._of)

    def begin(self, moment: str) -> str:
        """Note when the run began; a run that is resumed began when it first did.

        Raises:
            ResourceError: when the folder cannot be written.
        """
        refuse_link(self.folder)
        try:
            begun = json.loads((self.folder / _BEGUN).read_text())
        except (OSError, ValueError):
            begun = {}
        if begun.get("key") != self.key:
            self.drop()
            begun = {"key": self.key, "started": moment}
            write_whole(self.folder, {_BEGUN: json.dumps(begun).encode()})
        return begun["started"]

    def due(self, held: int = 0) -> bool:
        """Whether it is time to save again, when `held` bytes of images wait for it."""
        return held >= _MOST or time.monotonic() - self._last >= max(_INTERVAL, _SHARE * self._cost)

    def save(
        self,
        tensors: dict[str, Tensor],
        facts: dict[str, Any],
        attack: int = 0,
        found: Mapping[int, Tensor] | None = None,
    ) -> dict[int, Place]:
        """Write the state, and the images that an attack found since the last save.

        Returns:
            Where each image is.

        Raises:
            ResourceError: when the folder cannot be written.
        """
        begun, places = time.monotonic(), {}
        if found:
            ids = sorted(found)
            images = torch.stack([found[i].cpu() for i in ids])
            content = save(
                {"id": torch.tensor(ids), "image": images.contiguous(), "attack": torch.tensor(attack)}
            )
            name = self._shard(self.shards)
            write_whole(self.folder, {name: content})
            places = {sample: Place(self.folder / name, row) for row, sample in enumerate(ids)}
            self.shards += 1
        metadata = {"key": self.key, "facts": json.dumps(facts), "shards": str(self.shards)}
        # Tensors may share memory while they live; on disk each stands for itself.
        plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        write_whole(self.folder, {_STATE: save(plain, metadata)})
        self._last = time.monotonic()
        self._cost = self._last - begun
        return places

    def load(self) -> Saved | None:
        """The last state saved under this key, or None."""
        found: dict[int, dict[int, Place]] = {}
        try:
            with safe_open(self.folder / _STATE, "pt") as file:
                metadata = file.metadata()
                if metadata.get("key") != self.key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            shards = int(metadata["shards"])
            for number in range(shards):
                path = self.folder / self._shard(number)
                with safe_open(path, "pt") as file:
                    ids, attack = file.get_tensor("id"), int(file.get_tensor("attack"))
                places = {sample: Place(path, row) for row, sample in enumerate(ids.tolist())}
                found.setdefault(attack, {}).update(places)
        except (OSError, SafetensorError):
            return None
        self.shards = shards
        return Saved(tensors, json.loads(metadata["facts"]), found)

    def drop(self) -> None:
        """Forget everything: the run is over, or starts anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.shards = 0

    def _shard(self, number: int) -> str:
        return f"found-{number:04d}.safetensors"
