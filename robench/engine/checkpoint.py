"""What a run keeps on disk while it plays: its state, and each fooling image once.

The folder holds `state`, a sealed file replaced whole at every save, and `found-NNNN.safetensors`, each written once.
The state lists the sha256 of the images that belong to it, so a kill between two writes loses only what is newer, and
a file that was damaged, deleted or taken from another run is noticed. What is damaged is dropped and played again. So
is what another release of robench or torch, another device or another run left behind: a resumed run ends in the same
bytes as an uninterrupted one.

A run in several shares keeps one such folder per share. It resumes with the shares it began with, whatever number is
asked for; shares of different splits are never combined.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from robench.core.errors import ResourceError
from robench.core.io import Damaged, claim, read_sealed, refuse_link, seal, write_whole
from robench.engine.adversarial_examples import Place, Shard

_STATE = "state"
_ORIGIN = "origin"

# Seconds between two saves, at the least; a save may cost one part in twenty of the time it protects.
_INTERVAL, _SHARE = 2.0, 20
# Maximum bytes of unsaved images.
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
    """Where a run saves its partial results."""

    note: Callable[[str], None]

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

    def claimed(self) -> AbstractContextManager[None]: ...

    def forget(self, reason: str) -> None: ...


class FolderStore:
    """A run's partial results in a folder.

    Args:
        folder: made on the first save.
        key: what the run is; a folder of another run is not resumed from.
        made_by: what else must be the same, such as the release: name -> value.
        note: called with one line about what is dropped, and why.
        share: the share of the run that is kept here; empty for all of it.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        made_by: Mapping[str, str] | None = None,
        note: Callable[[str], None] = lambda text: None,
        share: str = "",
    ):
        self.folder = folder
        self.origin = {"settings": key, **(made_by or {})}
        self.note = note
        self._share_of = share
        # The sha256 of each file of images that belongs to the state.
        self.shards: list[str] = []
        self._last = time.monotonic()
        self._cost = 0.0

    @property
    def resumes(self) -> bool:
        """Whether there is a state of this run to go on from."""
        return self.shares() > 0

    def shares(self) -> int:
        """Number of shares of the run that left a state here; 0 if there is none."""
        if self.load() is not None:
            return 1
        return max((of for part, of in self._parts() if part.load() is not None), default=0)

    def share(self, index: int, of: int) -> "FolderStore":
        """The store of one share of the run."""
        name = f"share-{index}-of-{of}"
        key, made_by = self.origin["settings"], {k: v for k, v in self.origin.items() if k != "settings"}
        return FolderStore(self.folder / name, key, made_by, self.note, name)

    def claimed(self) -> AbstractContextManager[None]:
        """A lock against others who play this share; the folder of a whole run is locked by its record's.

        Raises:
            ResourceError: inside the block, when another process plays the share.
        """
        return claim(self.folder) if self._share_of else nullcontext()

    def _parts(self) -> list[tuple["FolderStore", int]]:
        """The stores of all shares that are here, and the number of shares of each one's run."""
        numbers = (folder.name.split("-") for folder in sorted(self.folder.glob("share-*-of-*")))
        pairs = [(int(n[1]), int(n[3])) for n in numbers if len(n) == 4 and n[1].isdigit() and n[3].isdigit()]
        return [(self.share(index, of), of) for index, of in pairs]

    def begin(self, moment: str, shares: int = 0) -> str:
        """Note when the run began; a run that is resumed began when it first did.

        What another run, release or device left in the folder is dropped, except for shares that were asked for.

        Args:
            shares: number of shares that are played one by one (`Run.play_share`); 0 for a whole run.

        Raises:
            ResourceError: when the folder cannot be written, or holds what these shares do not belong to.
        """
        refuse_link(self.folder)
        place = self.folder / _ORIGIN
        try:
            begun = json.loads(read_sealed(place))
        except Damaged:
            begun = None
        if begun is not None and begun["origin"] == self.origin:
            if shares and begun.get("shares") != shares:
                other = f"{begun['shares']} shares" if begun.get("shares") else "a whole run"
                raise ResourceError(
                    f"{self.folder} was begun as {other}: finish it so, or remove it with robench results prune"
                )
            return begun["started"]
        if begun is not None and begun.get("shares"):
            raise ResourceError(
                f"{self.folder} holds shares of a run: {_difference(begun['origin'], self.origin)}; go on as they were "
                "played, or start over with --fresh"
            )
        if begun is not None:
            self._say(_difference(begun["origin"], self.origin))
            self.drop()
        elif self.resumes:
            self.note(f"{place} is missing or damaged: it is written again, and the run goes on")
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            self._say("it holds nothing that this release can go on with")
            self.drop()
        facts = {"origin": self.origin, "started": moment} | ({"shares": shares} if shares else {})
        content = seal(json.dumps(facts).encode())
        write_whole(self.folder, {_ORIGIN: content})
        return moment

    def finished(self, shares: int, attacks: int) -> int:
        """Number of shares that have played all attacks, without a look at their images."""
        count = 0
        for index in range(shares):
            with suppress(Damaged):
                content = read_sealed(self.share(index, shares).folder / _STATE)
                state = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
                count += state["origin"] == self.origin and len(state["facts"]["costs"]) == attacks
        return count

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
            name = _shard(len(self.shards))
            write_whole(self.folder, {name: content})
            shard = Shard.of(self.folder / name, content)
            places = {sample: Place(shard, row) for row, sample in enumerate(ids)}
            self.shards.append(hashlib.sha256(content).hexdigest())
        state = {"origin": self.origin, "share": self._share_of, "facts": facts, "shards": self.shards}
        # Tensors may share memory while they live; on disk each stands for itself.
        plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        # Before the tensors, so that one digest is of everything.
        header = json.dumps(state).encode()
        content = len(header).to_bytes(8, "little") + header + save(plain)
        write_whole(self.folder, {_STATE: seal(content)})
        self._last = time.monotonic()
        self._cost = self._last - begun
        return places

    def load(self) -> Saved | None:
        """The last state saved by this run, or None; what is damaged or of another run is dropped with a note."""
        place = self.folder / _STATE
        if not place.exists():
            if (self.folder / _shard(0)).exists():
                self.forget(f"{place.name} is missing")
            return None
        try:
            content = read_sealed(place)
            end = 8 + int.from_bytes(content[:8], "little")
            state, tensors = json.loads(content[8:end]), load(content[end:])
            if state["origin"] != self.origin:
                raise Damaged(_difference(state["origin"], self.origin))
            if state["share"] != self._share_of:
                raise Damaged(f"{place.name} is of another share of the run")
            found = self._found(state["shards"])
        except Damaged as error:
            self.forget(str(error))
            return None
        self.shards = list(state["shards"])
        return Saved(tensors, state["facts"], found)

    def _found(self, shards: list[str]) -> dict[int, dict[int, Place]]:
        """Where the images are that belong to a state: attack -> sample -> place."""
        found: dict[int, dict[int, Place]] = {}
        for number, digest in enumerate(shards):
            path = self.folder / _shard(number)
            try:
                with path.open("rb") as opened:
                    if hashlib.file_digest(opened, "sha256").hexdigest() != digest:
                        raise Damaged(f"{path.name} is damaged: its sha256 is not the one that was noted")
                    opened.seek(0)
                    length = opened.read(8)
                    shard = Shard.of(path, length + opened.read(int.from_bytes(length, "little")))
                with safe_open(path, "pt") as file:
                    ids, attack = file.get_tensor("id"), int(file.get_tensor("attack"))
            except (OSError, SafetensorError) as error:
                raise Damaged(f"{path.name} is missing or cannot be read") from error
            places = {sample: Place(shard, row) for row, sample in enumerate(ids.tolist())}
            found.setdefault(attack, {}).update(places)
        return found

    def forget(self, reason: str) -> None:
        """Drop the state and say so: it is played again. What other shares saved stays."""
        self._say(reason)
        for place in (self.folder / _STATE, *self.folder.glob("found-*.safetensors")):
            place.unlink(missing_ok=True)
        if self._share_of:
            with suppress(OSError):
                self.folder.rmdir()
        self.shards = []

    def _say(self, reason: str) -> None:
        what = "this share" if self._share_of else "the run"
        self.note(f"{self.folder}: {reason}; {what} starts again")

    def drop(self) -> None:
        """Forget everything: the run is over, or starts again."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.shards = []


def _shard(number: int) -> str:
    return f"found-{number:04d}.safetensors"


def _difference(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs between the run that left a state and this one, in words."""
    names = [name for name in {**now, **then} if then.get(name) != now.get(name)]
    # A key of settings says nothing to a reader.
    changes = [
        f"{name} {then.get(name, '?')} (now {now.get(name, '?')})" for name in names if name != "settings"
    ]
    return "it was interrupted under " + " and ".join(changes or ["other settings"])
