"""Partial results of a run on disk: its state and its adversarial examples, each of which is saved once.

The folder contains `state`, a sealed file that every save replaces atomically, and `found-ATTEMPT-NNNN.safetensors`
files, which are written once. The state lists the names and the sha256 of the examples that belong to it, so a kill
between two writes loses only newer results, and files that are damaged, deleted or from another run are detected. Each
process that works on a run has its own ATTEMPT, so a process that is believed dead and its successor write different
files even where there are no locks. Damaged results, and those of
another release of robench or torch, another device or another run, are deleted and computed again: a resumed run gives
the same bytes as an uninterrupted one.

A run in several shares has one such folder per share. It resumes with the shares that it started with, regardless of
the requested number; shares of different splits are never combined.
"""

import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from robench.core.errors import ResourceError
from robench.core.io import Damaged, claim, is_claimed, read_sealed, refuse_link, seal, write_whole
from robench.engine.adversarial_examples import Place, Shard
from robench.engine.backing_off import out_of_memory
from robench.engine.saved_kinds import check_facts

_STATE = "state"
_ORIGIN = "origin"
_SHARD = re.compile(r"found-[0-9a-f]{8}-\d{4,}\.safetensors")

# What `FolderStore.begin` saves beside the origin.
_BEGUN = {"started": "", "shares": 0, "deal": [0]}
# Minimum seconds between two saves, and the minimum ratio of this time to the duration of a save.
_INTERVAL, _RATIO = 2.0, 20
# Maximum size of unsaved images in bytes.
_MAX_UNSAVED = 1 << 24
_UNREADABLE = "it contains nothing that this release can resume"
# The errors of reading a state whose content is not what a run writes.
_MALFORMED = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, SafetensorError,
)  # fmt: skip
# Seconds to wait for a share that another process runs: the processes of a killed run take a moment to end.
_PATIENCE = 10.0


@dataclass(frozen=True)
class Saved:
    """A saved state.

    Attributes:
        tensors, facts: the arguments of `Store.save`.
        found: location of each adversarial example: attack -> sample -> place.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    found: dict[int, dict[int, Place]]


class Store(Protocol):
    """Interface of stores for the partial results of a run."""

    note: Callable[[str], None]

    def load(self, check: Callable[[Saved], object] = ...) -> Saved | None: ...

    def save(
        self,
        tensors: dict[str, Tensor],
        facts: dict[str, Any],
        attack: int = 0,
        found: Mapping[int, Tensor] | None = None,
    ) -> dict[int, Place]: ...

    def add(self, attack: int, found: Mapping[int, Tensor]) -> dict[int, Place]: ...

    def due(self, held: int = 0) -> bool: ...

    def shares(self) -> int: ...

    def agree(self, deal: tuple[int, ...]) -> tuple[int, ...]: ...

    def share(self, index: int, of: int) -> "Store": ...

    def claimed(self) -> AbstractContextManager[None]: ...

    def forget(self, reason: str) -> None: ...


class FolderStore:
    """A store in a folder.

    Args:
        folder: created on the first save.
        key: identifies the run; the state of another run is not resumed.
        made_by: other conditions that must be the same, such as the release: name -> value.
        note: called with one line that explains why results are deleted.
        share: the share of the run that is stored; empty for the whole run.
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
        # The name and the sha256 of each file of examples that belongs to the state.
        self.shards: list[tuple[str, str]] = []
        # Chosen at the first file, because a forked process copies this store.
        self._attempt = ""
        self._last = time.monotonic()
        self._cost = 0.0

    @property
    def resumes(self) -> bool:
        """Whether there is a state of this run to resume."""
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
        """Lock the share inside the block; a whole run is locked by the folder of its record.

        Raises:
            ResourceError: if another process runs the share.
        """
        return claim(self.folder, _PATIENCE) if self._share_of else nullcontext()

    def wait_for_shares(self) -> None:
        """Wait until no other process runs a share.

        Raises:
            ResourceError: if one is still running after several seconds.
        """
        deadline = time.monotonic() + _PATIENCE
        while busy := [share.name for share in sorted(self.folder.glob("share-*")) if is_claimed(share)]:
            if time.monotonic() >= deadline:
                raise ResourceError(f"{self.folder}: {busy[0]} is running: wait until it has finished")
            time.sleep(0.05)

    def _parts(self) -> list[tuple["FolderStore", int]]:
        """The stores of all saved shares, each with the number of shares of its run."""
        numbers = (folder.name.split("-") for folder in sorted(self.folder.glob("share-*-of-*")))
        pairs = [(int(n[1]), int(n[3])) for n in numbers if len(n) == 4 and n[1].isdigit() and n[3].isdigit()]
        return [(self.share(index, of), of) for index, of in pairs]

    def _begun(self) -> dict[str, Any] | None:
        """What `begin` saved; None if there is nothing readable."""
        with suppress(Damaged, *_MALFORMED):
            begun = json.loads(read_sealed(self.folder / _ORIGIN))
            check_facts(begun, {"origin": dict.fromkeys(begun["origin"], ""), **_BEGUN})
            return begun if "started" in begun else None
        return None

    def deal(self) -> tuple[int, ...] | None:
        """The share of each sample, if `begin` saved a split for this run; None if it did not."""
        saved = self._begun()
        shares = saved.get("deal") if saved and saved["origin"] == self.origin else None
        return tuple(shares) if shares else None

    def agree(self, deal: tuple[int, ...]) -> tuple[int, ...]:
        """The share of each sample of a run whose shares run separately: those of the first process that asks.

        Args:
            deal: the share of each sample if this is the first process.
        """
        with claim(self.folder, _PATIENCE):
            begun, agreed = self._begun(), self.deal()
            if begun is not None and agreed is None:
                write_whole(self.folder, {_ORIGIN: seal(json.dumps(begun | {"deal": deal}).encode())})
        # A folder that was copied here may be of other samples.
        return agreed if agreed and len(agreed) == len(deal) else deal

    def begin(self, moment: str, shares: int = 0, deal: Sequence[int] = ()) -> str:
        """Save the time when the run started and return it; a resumed run returns the time when it first started.

        Results of another run, release or device are deleted, except for shares that were run separately.

        Args:
            shares: number of shares that are run separately (`Run.attack_share`); 0 for a whole run.
            deal: the share of each sample, if the split was chosen for this run.

        Raises:
            ResourceError: if the folder cannot be written, or contains results of other shares or of a whole run.
        """
        refuse_link(self.folder)
        file = self.folder / _ORIGIN
        saved = self._begun()
        if saved is not None and saved["origin"] == self.origin:
            if shares and saved.get("shares") != shares:
                split = f"{saved['shares']} shares" if saved.get("shares") else "a whole run"
                raise ResourceError(
                    f"{self.folder} was started as {split}: finish it in the same way, or remove it with robench "
                    "results prune"
                )
            return saved["started"]
        if saved is not None and saved.get("shares"):
            raise ResourceError(
                f"{self.folder} contains shares of a run: {_difference(saved['origin'], self.origin)}; continue with "
                "the same settings, or start over with --fresh"
            )
        if saved is not None:
            self._note_restart(_difference(saved["origin"], self.origin))
            self.drop()
        elif self.resumes:
            self.note(f"{file} is missing or damaged: it is written again, and the run is resumed")
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            self._note_restart(_UNREADABLE)
            self.drop()
        facts = {"origin": self.origin, "started": moment} | ({"shares": shares} if shares else {})
        facts |= {"deal": list(deal)} if deal else {}
        content = seal(json.dumps(facts).encode())
        write_whole(self.folder, {_ORIGIN: content})
        return moment

    def finished(self, shares: int, attacks: int) -> int:
        """Number of shares that have finished all attacks; their images are not read."""
        count = 0
        for index in range(shares):
            with suppress(Damaged, *_MALFORMED):
                content = read_sealed(self.share(index, shares).folder / _STATE)
                state = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
                count += state["origin"] == self.origin and len(state["facts"]["costs"]) == attacks
        return count

    def due(self, held: int = 0) -> bool:
        """Whether it is time to save again, with `held` bytes of unsaved images."""
        return held >= _MAX_UNSAVED or time.monotonic() - self._last >= max(_INTERVAL, _RATIO * self._cost)

    def save(
        self,
        tensors: dict[str, Tensor],
        facts: dict[str, Any],
        attack: int = 0,
        found: Mapping[int, Tensor] | None = None,
    ) -> dict[int, Place]:
        """Save the state and the examples that an attack has found since the last save.

        Returns:
            The location of each example.

        Raises:
            ResourceError: if the folder cannot be written.
        """
        start_time = time.monotonic()
        places = self.add(attack, found or {})
        state = {"origin": self.origin, "share": self._share_of, "facts": facts, "shards": self.shards}
        # Cloned, because safetensors does not save tensors that share memory.
        clones = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        # In one file with the tensors, so that one digest covers both.
        header = json.dumps(state).encode()
        content = len(header).to_bytes(8, "little") + header + save(clones)
        write_whole(self.folder, {_STATE: seal(content)})
        self._last = time.monotonic()
        self._cost = self._last - start_time
        return places

    def add(self, attack: int, found: Mapping[int, Tensor]) -> dict[int, Place]:
        """Save examples that an attack has found, without the state that refers to them.

        Returns:
            The location of each example.
        """
        if not found:
            return {}
        ids = sorted(found)
        images = torch.stack([found[i].cpu() for i in ids])
        content = save(
            {"id": torch.tensor(ids), "image": images.contiguous(), "attack": torch.tensor(attack)}
        )
        self._attempt = self._attempt or new_attempt()
        name = f"found-{self._attempt}-{len(self.shards):04d}.safetensors"
        write_whole(self.folder, {name: content})
        self.shards.append((name, hashlib.sha256(content).hexdigest()))
        shard = Shard.of(self.folder / name, content)
        return {sample: Place(shard, row) for row, sample in enumerate(ids)}

    def load(self, check: Callable[[Saved], object] = lambda saved: None) -> Saved | None:
        """The last state of this run, or None. A state that is damaged or of another run is deleted with a note.

        Args:
            check: raises an error for a state that is malformed, which is deleted as well.
        """
        # What is damaged is deleted, and must not lie elsewhere.
        refuse_link(self.folder)
        file = self.folder / _STATE
        if not file.exists():
            if any(self.folder.glob("found-*.safetensors")):
                self.forget(f"{file.name} is missing")
            return None
        try:
            content = read_sealed(file)
            end = 8 + int.from_bytes(content[:8], "little")
            state, tensors = json.loads(content[8:end]), load(content[end:])
            if state["origin"] != self.origin:
                raise Damaged(_difference(state["origin"], self.origin))
            if state["share"] != self._share_of:
                raise Damaged(f"{file.name} belongs to another share of the run")
            saved = Saved(tensors, state["facts"], self._found(state["shards"]))
            check(saved)
        except Damaged as error:
            self.forget(str(error))
            return None
        except _MALFORMED as error:
            # Memory that runs out while a state is read says nothing about the state.
            if out_of_memory(error):
                raise
            self.forget(_UNREADABLE)
            return None
        self.shards = [(name, digest) for name, digest in state["shards"]]
        return saved

    def _found(self, shards: list[list[str]]) -> dict[int, dict[int, Place]]:
        """The locations of the examples of a state: attack -> sample -> place."""
        found: dict[int, dict[int, Place]] = {}
        for name, digest in shards:
            if not _SHARD.fullmatch(name):
                raise Damaged(f"{_STATE} names a file that it cannot have written")
            path = self.folder / name
            try:
                with path.open("rb") as opened:
                    if hashlib.file_digest(opened, "sha256").hexdigest() != digest:
                        raise Damaged(f"{path.name} is damaged: its sha256 does not match the recorded one")
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
        """Delete the state with a note, so that the share starts again; other shares are kept."""
        self._note_restart(reason)
        for file in (self.folder / _STATE, *self.folder.glob("found-*.safetensors")):
            file.unlink(missing_ok=True)
        if self._share_of:
            with suppress(OSError):
                self.folder.rmdir()
        self.shards = []

    def _note_restart(self, reason: str) -> None:
        subject = "this share" if self._share_of else "the run"
        self.note(f"{self.folder}: {reason}; {subject} starts again")

    def drop(self) -> None:
        """Delete the folder, after the end of the run or to start again."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.shards = []


def new_attempt() -> str:
    """A random name for the files of one process."""
    return secrets.token_hex(4)


def _difference(saved: Mapping[str, str], current: Mapping[str, str]) -> str:
    """Describe the differences between the run that saved a state and this one."""
    names = [name for name in {**current, **saved} if saved.get(name) != current.get(name)]
    # The key of the settings is a digest, which means nothing to a user.
    changes = [
        f"{name} {saved.get(name, '?')} (now {current.get(name, '?')})"
        for name in names
        if name != "settings"
    ]
    return "it was interrupted under " + " and ".join(changes or ["other settings"])
