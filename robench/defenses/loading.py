"""Defenses with their weights: see `load`."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from robench._moved import old_arguments
from robench.catalog import Card
from robench.core import registry, specs
from robench.core.errors import ResourceError, UsageError
from robench.core.specs import Spec
from robench.core.torch_state import standard_state
from robench.data.class_subset import Subset
from robench.defenses import _checkpoint_layouts, loaders
from robench.defenses._base import Defense, Purifier, restricted, with_purifier
from robench.defenses._checkpoints import Fetched, fetch, load_into, read_weights, sha256_of
from robench.defenses._resolve_checkpoint import Choice, choose, notes
from robench.defenses._state import state_digest, state_sha256
from robench.defenses.resolution import DEFAULT_DATASET, ResolvedDefense, find_card, resolve


@dataclass(frozen=True)
class Loaded:
    """A defense ready for use, with what a record says of where it came from.

    Attributes:
        name: the card's name, or the spec as it was given.
        defense: in evaluation mode, its parameters frozen, on its device.
        card: None for a builder without one, and for a checkpoint whose network is no card's.
        card_digest: sha256 of the card's file, with what was changed; of the canonical spec without a card.
        checkpoint: the file that was read; None where the builder brings its own weights.
        checkpoint_sha256: of that file, and of the name of a set of weights in it that had to be named; of the loaded
            state where there is no file, see `state_digest`.
            For a purifier in front of a classifier: sha256 of both digests.
        family: the card's, or that of the cards the checkpoint was given for.
        notes: what a user should know of it, a line each.
        classifier: the defense whose classifier stands behind a purifier; empty for others.
        knows: how many classes its network tells apart, where only some of them count; else 0.
    """

    name: str
    defense: Defense
    card: Card | None
    card_digest: str
    checkpoint: Path | None
    checkpoint_sha256: str
    family: str = ""
    notes: tuple[str, ...] = ()
    classifier: str = ""
    knows: int = 0

    @cached_property
    def state_sha256(self) -> str:
        """sha256 of the weights as they are loaded: the same for one set of weights however it is named and kept."""
        builder = self.card.spec if self.card else None
        if builder is None or builder.name not in registry.purifiers:
            return state_sha256(self.defense)
        return state_sha256(self.defense, str(specs.canonical(builder, registry.purifiers.get(builder.name))))


@standard_state()
@old_arguments(among="class_subset")
def load(
    name: str | ResolvedDefense,
    dataset: str | Spec | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    class_subset: Subset | None = None,
    image_size: int | None = None,
) -> Loaded:
    """Build a defense and give it its weights.

    Args:
        name, dataset: see `resolve`.
        checkpoint: weights to use in place of the card's: a path, `hf://owner/name/file` or an https URL, with
            `#NAME` behind it for one of several sets of weights; see `fetch`. A network of MIMIR's kinds is recognised
            by its shapes, and decides which of a family's cards is meant; where it is no card's, it is built all the
            same, under its spec's name.
        device: where it runs.
        class_subset: classes that alone count of a network that knows more, as `Images.class_subset`; None for all.
        image_size: of the images it will be given, for your own network that does not say which it takes.

    Raises:
        UsageError: for an unknown name, a builder's wrong arguments, a network without weights, or a checkpoint
            whose network several cards have.
        ResourceError: when the checkpoint is missing, damaged, another one than the card names, or of another
            network.
    """
    found = _load(resolve(name, dataset), checkpoint, device, image_size)
    card, defense = found.card, found.defense
    if card and card.preprocessing:
        defense.preprocessing = card.preprocessing
    return restrict_to_classes(found, class_subset)


def restrict_to_classes(loaded: Loaded, class_subset: Subset | None) -> Loaded:
    """The same, of whose classes only those count; unchanged where it was made for these alone, or all count."""
    if class_subset is None or loaded.defense.num_classes != class_subset.of:
        return loaded
    count = len(class_subset.indices)
    note = f"{loaded.name} has {class_subset.of} classes: only the {count} of this data set count"
    defense = restricted(loaded.defense, class_subset.indices).eval()
    return replace(loaded, defense=defense, notes=(*loaded.notes, note), knows=class_subset.of)


def _load(
    meant: ResolvedDefense, checkpoint: str | Path | None, device: str | torch.device, image_size: int | None
) -> Loaded:
    name, spec = meant.name, meant.spec
    if loaders.scheme_of(spec.name):
        return _load_by_scheme(meant, checkpoint, device, image_size)
    if spec.name in registry.purifiers:
        return _load_purified(meant, checkpoint, device, image_size)
    path, state, digest, told = None, {}, "", ()
    if checkpoint:
        file = fetch(checkpoint, Path())
        path, weights = file.path, read_weights(file.path, file.weights)
        digest, state, told = weights.digest(sha256_of(path)), weights.state, (*file.notes, *weights.notes)
        choice = choose(meant, state, digest, path)
    else:
        card = meant.card
        choice = Choice(
            card.name if card else name, card, card.family if card else "", card.spec if card else spec
        )
    card, spec = choice.card, choice.spec
    builder = registry.defenses.get(spec.name)
    defense = specs.build(spec, builder)
    if not isinstance(defense, Defense):
        found = type(defense).__name__
        raise UsageError(f"{spec.name} gives a {found}: expected a robench.defenses.Defense")
    if not path and card and card.checkpoint:
        file = _own_file(card)
        path, digest = file.path, sha256_of(file.path)
        _check_digest(card, f"checkpoint {path}", digest)
        weights = read_weights(path, file.weights)
        digest, state, told = weights.digest(digest), weights.state, (*file.notes, *weights.notes)
    if path:
        if _checkpoint_layouts.knows(spec.name):
            state = _checkpoint_layouts.fitted(
                _checkpoint_layouts.unwrapped(state), spec.name, defense.classifier, path
            )
        load_into(defense, state, path)
    elif card and card.download_page:
        raise ResourceError(
            f"{card.name} comes without its weights: get them from {card.download_page} "
            "and give the file with --checkpoint"
        )
    elif card:
        made = f" (robench train {name} makes one)" if card.recipe else ""
        raise ResourceError(f"{name} comes without trained weights: give a file{made} with --checkpoint")
    elif registry.defenses.holder(spec.name).startswith("robench."):
        raise UsageError(f"{name} comes without trained weights: give a file with --checkpoint")
    else:
        digest = state_digest(defense)
    defense = defense.eval().requires_grad_(False).to(device)
    own = card_digest(card) if card else _digest(str(specs.canonical(spec, builder)).encode())
    return Loaded(choice.name, defense, card, own, path, digest, choice.family, (*choice.notes, *told))


@old_arguments(among="class_subset")
def load_defense(
    name: str | ResolvedDefense,
    dataset: str | Spec | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    class_subset: Subset | None = None,
    image_size: int | None = None,
) -> Defense:
    """A defense: images (N, 3, H, W), float32 in [0, 1], to logits (N, K). See `load`.

    >>> defense = load_defense("mimir", dataset="digits")
    """
    return load(name, dataset, checkpoint, device, class_subset, image_size).defense


def _load_by_scheme(
    meant: ResolvedDefense, checkpoint: str | Path | None, device: str | torch.device, image_size: int | None
) -> Loaded:
    card = meant.card
    name, spec = (card.name, card.spec) if card else (meant.name, meant.spec)
    file = fetch(checkpoint, Path()) if checkpoint else None
    if card and card.checkpoint and not checkpoint:
        file = _own_file(card)
    found, canonical = loaders.open_spec(
        spec, file.path if file else None, weights=file.weights if file else "", image_size=image_size
    )
    digest = sha256_of(found.file) if found.file else state_digest(found.defense)
    # A card that names no file may still say the digest of the state that the loader finds.
    if card and not checkpoint and (card.checkpoint or card.sha256):
        what = f"checkpoint {found.file}" if found.file else f"the state of {spec.name}"
        _check_digest(card, what, digest)
    defense = found.defense.eval().requires_grad_(False).to(device)
    own = card_digest(card) if card else _digest(canonical.encode())
    family = card.family if card else ""
    digest = found.weights.digest(digest) if found.weights else digest
    told = (*(file.notes if file else ()), *(found.weights.notes if found.weights else ()))
    return Loaded(name, defense, card, own, found.file, digest, family, told)


def _load_purified(
    meant: ResolvedDefense, checkpoint: str | Path | None, device: str | torch.device, image_size: int | None
) -> Loaded:
    """A purifier with its weights, in front of the classifier of another defense."""
    name, card = meant.name, meant.card
    if card is None or meant.classifier is None:
        raise UsageError(
            f"{name} is a purifier: name the defense behind it, such as {name}+timm:resnet50, or "
            f"{name}+standard-digits"
        )
    inner = load(meant.classifier, device=device, image_size=image_size)
    purifier, path, digest, told = _weighted(card, checkpoint)
    try:
        purifier.check(inner.defense.image_size)
        ours = registry.purifiers.holder(card.spec.name).startswith("robench.")
        if ours and inner.defense.channels != 3:
            raise ValueError(f"it purifies images of 3 channels, not of {inner.defense.channels}")
        if not ours:  # ours keep the range by how they are made
            purifier.eval().try_out(inner.defense.image_size, inner.defense.channels)
    except ValueError as error:
        raise UsageError(f"{card.name} does not suit {card.classifier}: {error}") from error
    defense = with_purifier(purifier, inner.defense).eval().requires_grad_(False).to(device)
    own = _digest(f"{card_digest(card)} {inner.card_digest}".encode())
    both = _digest(f"{digest} {inner.checkpoint_sha256}".encode())
    known = notes(card, digest, path) if path and card.path.is_file() else ()
    lines = (*known, *told, *inner.notes)
    return Loaded(card.name, defense, card, own, path, both, card.family, lines, classifier=inner.name)


def load_purifier(
    name: str, checkpoint: str | Path | None = None, device: str | torch.device = "cpu"
) -> Purifier:
    """The purifier of a card alone, its weights frozen, in evaluation mode: images to images.

    The classifier that the card names need not be there yet.

    Raises:
        UsageError: for an unknown name, one that is no purifier's, or a builder's wrong arguments.
        ResourceError: when the checkpoint is missing, damaged, or another one than the card names.
    """
    card = find_card(name) or Card(name, name, DEFAULT_DATASET)
    if card.spec.name not in registry.purifiers:
        raise UsageError(f"{name} is no purifier")
    purifier = _weighted(card, checkpoint)[0]
    return purifier.eval().requires_grad_(False).to(device)


def _weighted(
    card: Card, checkpoint: str | Path | None
) -> tuple[Purifier, Path | None, str, tuple[str, ...]]:
    """A card's purifier with its weights, the file they are from, its digest, and what a user should know of it."""
    if checkpoint or card.checkpoint:
        file = fetch(checkpoint, Path()) if checkpoint else _own_file(card)
        digest = sha256_of(file.path)
        if not checkpoint:
            _check_digest(card, f"checkpoint {file.path}", digest)
        weights = read_weights(
            file.path, file.weights
        )  # before the network, which may take its time to build
        purifier = build_purifier(card.spec)
        load_into(purifier, purifier.fitted(weights.state), file.path)
        return purifier, file.path, weights.digest(digest), (*file.notes, *weights.notes)
    purifier = build_purifier(card.spec)
    if any(True for _ in purifier.parameters()):
        made = f" (robench train {card.name} makes one)" if card.recipe else ""
        where = f": get them from {card.download_page} and" if card.download_page else f":{made}"
        raise ResourceError(f"{card.name} comes without its weights{where} give the file with --checkpoint")
    return purifier, None, state_digest(purifier), ()


def build_purifier(spec: specs.Spec) -> Purifier:
    """The purifier of a spec, its weights as they start.

    Raises:
        UsageError: for an unknown name, a refused argument, or a builder that gives something else.
    """
    purifier = specs.build(spec, registry.purifiers.get(spec.name))
    if not isinstance(purifier, Purifier):
        found = type(purifier).__name__
        raise UsageError(f"{spec.name} gives a {found}: expected a robench.defenses.Purifier")
    return purifier


def card_digest(card: Card) -> str:
    """sha256 of a card's file, and of what was changed in it on the way."""
    changes = f"{specs.old_text(card.builder)}\n{card.classifier}".encode()
    if not card.path.is_file():
        return _digest(changes)
    return _digest(card.path.read_bytes() + (changes if card.edited else b""))


def checkpoint_of(name: str) -> Path:
    """The checkpoint file of a card, its digest checked.

    Raises:
        UsageError: for an unknown name.
        ResourceError: when the card has no checkpoint, or it is missing or another one than the card says.
    """
    card = find_card(name)
    if card is None or not card.checkpoint:
        raise ResourceError(f"{name} has no checkpoint to start from: name a card that comes with one")
    path = _own_file(card).path
    _check_digest(card, f"checkpoint {path}", sha256_of(path))
    return path


def _own_file(card: Card) -> Fetched:
    """The checkpoint that a card names.

    Raises:
        ResourceError: when it is missing, saying where a person gets it.
    """
    try:
        return fetch(card.checkpoint, card.path.parent, card.sha256)
    except ResourceError as error:
        if not card.download_page:
            raise
        raise ResourceError(
            f"{card.name} comes without its weights: get them from {card.download_page} and put them, "
            f"as {card.checkpoint}, into a folder that the variable ROBENCH_CHECKPOINTS names, "
            "or give the file with --checkpoint"
        ) from error


def _check_digest(card: Card, what: str, digest: str) -> None:
    # Of a file that somebody brings the digest may be unknown.
    if digest != card.sha256 and (card.sha256 or not card.download_page):
        raise ResourceError(
            f"{what} has sha256 {digest}: the card {card.name} says {card.sha256 or 'none'}; get "
            "the file again, or use it as it is with --checkpoint"
        )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
