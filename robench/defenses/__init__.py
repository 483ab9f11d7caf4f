"""Defenses: by card, by family and data set, by a card's path, by a loader's scheme, or by a builder.

A card's settings can be changed, `de3-digits(sigma=70)`, and a purifier put in front of any defense,
`maep-digits+standard-digits`.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from robench import catalog
from robench.catalog import Card
from robench.core import registry, specs
from robench.core.errors import ResourceError, UsageError, unknown_name
from robench.core.torch_state import standard_state
from robench.core.trust import like
from robench.data.class_subset import Subset
from robench.defenses import (  # noqa: F401 - they register themselves
    _checkpoint_layouts,
    cait,
    cnn,
    convit,
    convnext,
    dbat,
    de3,
    diffusion,
    loaders,
    maep,
    swin,
    vit,
)
from robench.defenses._base import Defense, Purifier, behind, restricted
from robench.defenses._checkpoints import Fetched, fetch, load_into, read_weights, sha256_of
from robench.defenses._resolve_checkpoint import Choice, choose, notes
from robench.defenses._state import state_digest, state_sha256

__all__ = [
    "Defense",
    "Loaded",
    "Purifier",
    "build_purifier",
    "checkpoint_of",
    "counting",
    "find_card",
    "find_cards",
    "load",
    "load_defense",
    "load_purifier",
]

DEFAULT_DATASET = "digits"


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
        builder = specs.parse(self.card.builder) if self.card else None
        if builder is None or builder.name not in registry.purifiers:
            return state_sha256(self.defense)
        return state_sha256(self.defense, str(specs.canonical(builder, registry.purifiers.get(builder.name))))


def find_card(name: str, dataset: str | None = None) -> Card | None:
    """The card that `name` means; None when it is a builder's or a loader's spec.

    Of a family's cards for one data set, the one that comes with its checkpoint is meant.

    Args:
        name: a card, a family, a card's path (`.toml`), a spec with a loader's scheme such as
            `timm:resnet50(image_size=224)`, or a builder's such as `my_defense(width=3)`. A card or family with
            arguments has them in place of its builder's (a builder of that name comes first); PURIFIER+DEFENSE
            stands before that defense's classifier.
        dataset: picks among a family's cards, its arguments do not count; None for "digits".

    Raises:
        UsageError: when nobody has that name, or the family has no card, or several, for that data set.
        ResourceError: when the card's file cannot be read.
    """
    found = find_cards(name, dataset)
    ready = [card for card in found if card.checkpoint and not card.origin] if len(found) > 1 else found
    if found and len(ready) != 1:
        what = f"{len(found)} cards for {found[0].dataset}"
        offers = ", ".join(card.name for card in ready or found)
        raise UsageError(f"the family {name} has {what}: name one of {offers}, or give a --checkpoint")
    return ready[0] if ready else None


def find_cards(name: str, dataset: str | None = None) -> list[Card]:
    """Every card that `name` may mean, one or a family's for one data set; none when it is a builder's spec.

    Args, raises: as in `find_card`.
    """
    pieces = [name] if loaders.scheme_of(name) else specs.split(name, "+")
    if len(pieces) > 1:
        return _purified_cards(pieces[0], like(name, "+".join(pieces[1:])), dataset)
    if name.endswith(".toml"):
        return [catalog.read_named(Card, name)]
    cards = catalog.cards()
    if name in cards:
        return [cards[name]]
    family = [card for card in cards.values() if card.family == name]
    if family:
        # A defense is for a data set, however its images are prepared or corrupted.
        dataset = specs.parse(dataset or DEFAULT_DATASET).name
        if fitting := [card for card in family if card.dataset == dataset]:
            return fitting
        offers = ", ".join(f"{card.name} ({card.dataset})" for card in family)
        raise UsageError(f"the family {name} has no card for {dataset}: name one of {offers}")
    spec = specs.parse(name)
    if spec.name in registry.defenses or spec.name in registry.purifiers or loaders.scheme_of(spec.name):
        return []
    if spec.arguments and (spec.name in cards or spec.name in {card.family for card in cards.values()}):
        return [_changed(card, spec) for card in find_cards(spec.name, dataset)]
    if ":" in spec.name:
        raise unknown_name("scheme of a defense", spec.name.partition(":")[0], registry.loaders)
    families = {card.family for card in cards.values() if card.family}
    raise unknown_name("defense", name, {*cards, *families, *registry.defenses})


def _changed(card: Card, spec: specs.Spec) -> Card:
    """The card with some of its builder's arguments replaced, under a name that says so."""
    built = specs.parse(card.builder)
    builder = specs.Spec(built.name, {**built.arguments, **spec.arguments})
    return replace(card, name=str(specs.Spec(card.name, spec.arguments)), builder=str(builder))


def _purified_cards(purifier: str, defense: str, dataset: str | None) -> list[Card]:
    """The cards of `purifier`, each in front of `defense`."""
    cards = find_cards(purifier, dataset)
    for builder in [card.builder for card in cards] or [purifier]:
        if specs.parse(builder).name not in registry.purifiers:
            raise UsageError(f"{purifier} is no purifier: only one can stand before {defense}")
    if not cards:
        cards = [Card(purifier, purifier, dataset or DEFAULT_DATASET)]
    # A record is named by cards, not by where somebody keeps them.
    behind = catalog.read_named(Card, defense).name if defense.endswith(".toml") else defense
    return [replace(card, name=f"{card.name}+{behind}", classifier=defense) for card in cards]


@standard_state()
def load(
    name: str,
    dataset: str | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    among: Subset | None = None,
) -> Loaded:
    """Build a defense and give it its weights.

    Args:
        name, dataset: see `find_card`.
        checkpoint: weights to use in place of the card's: a path, `hf://owner/name/file` or an https URL, with
            `#NAME` behind it for one of several sets of weights; see `fetch`. A network of MIMIR's kinds is recognised
            by its shapes, and decides which of a family's cards is meant; where it is no card's, it is built all the
            same, under its spec's name.
        device: where it runs.
        among: classes that alone count of a network that knows more, as `Images.among`; None for all.

    Raises:
        UsageError: for an unknown name, a builder's wrong arguments, a network without weights, or a checkpoint
            whose network several cards have.
        ResourceError: when the checkpoint is missing, damaged, another one than the card names, or of another
            network.
    """
    found = _load(name, dataset, checkpoint, device)
    card, defense = found.card, found.defense
    if card and card.preprocessing:
        defense.preprocessing = card.preprocessing
    return counting(found, among)


def counting(loaded: Loaded, among: Subset | None) -> Loaded:
    """The same, of whose classes only those count; unchanged where it was made for these alone, or all count."""
    if among is None or loaded.defense.num_classes != among.of:
        return loaded
    count = len(among.indices)
    note = f"{loaded.name} tells {among.of} classes apart: only the {count} of this data set count"
    defense = restricted(loaded.defense, among.indices).eval()
    return replace(loaded, defense=defense, notes=(*loaded.notes, note), knows=among.of)


def _load(
    name: str, dataset: str | None, checkpoint: str | Path | None, device: str | torch.device
) -> Loaded:
    cards = find_cards(name, dataset)
    spec = specs.parse(cards[0].builder if cards else name)
    if loaders.scheme_of(spec.name):
        return _load_by_scheme(name, spec, find_card(name, dataset), checkpoint, device)
    if spec.name in registry.purifiers:
        return _load_purified(name, find_card(name, dataset), dataset, checkpoint, device)
    path, state, digest, told = None, {}, "", ()
    if checkpoint:
        file = fetch(checkpoint, Path())
        path, weights = file.path, read_weights(file.path, file.weights)
        digest, state, told = weights.digest(sha256_of(path)), weights.state, (*file.notes, *weights.notes)
        choice = choose(name, cards, state, digest, path)
    else:
        card = find_card(name, dataset)
        spec = specs.parse(card.builder if card else name)
        choice = Choice(card.name if card else name, card, card.family if card else "", spec)
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
    elif card and card.origin:
        raise ResourceError(
            f"{card.name} comes without its weights: get them from {card.origin} and give the file with --checkpoint"
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


def load_defense(
    name: str,
    dataset: str | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    among: Subset | None = None,
) -> Defense:
    """A defense: images (N, 3, H, W), float32 in [0, 1], to logits (N, K). See `load`.

    >>> defense = load_defense("mimir", dataset="digits")
    """
    return load(name, dataset, checkpoint, device, among).defense


def _load_by_scheme(
    name: str, spec: specs.Spec, card: Card | None, checkpoint: str | Path | None, device: str | torch.device
) -> Loaded:
    file = fetch(checkpoint, Path()) if checkpoint else None
    if card and card.checkpoint and not checkpoint:
        file = _own_file(card)
    found, canonical = loaders.open_spec(
        spec, file.path if file else None, weights=file.weights if file else ""
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
    return Loaded(card.name if card else name, defense, card, own, found.file, digest, family, told)


def _load_purified(
    name: str,
    card: Card | None,
    dataset: str | None,
    checkpoint: str | Path | None,
    device: str | torch.device,
) -> Loaded:
    """A purifier with its weights, in front of the classifier of another defense."""
    if card is None or not card.classifier:
        raise UsageError(
            f"{name} is a purifier: name the defense behind it, such as {name}+timm:resnet50, or "
            f"{name}+standard-digits"
        )
    inner = load(card.classifier, dataset, device=device)
    purifier, path, digest, told = _weighted(card, checkpoint)
    try:
        purifier.check(inner.defense.image_size)
        ours = registry.purifiers.holder(specs.parse(card.builder).name).startswith("robench.")
        if ours and inner.defense.channels != 3:
            raise ValueError(f"it purifies images of 3 channels, not of {inner.defense.channels}")
        if not ours:  # ours keep the range by how they are made
            purifier.eval().try_out(inner.defense.image_size, inner.defense.channels)
    except ValueError as error:
        raise UsageError(f"{card.name} does not suit {card.classifier}: {error}") from error
    defense = behind(purifier, inner.defense).eval().requires_grad_(False).to(device)
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
    card = find_card(name)
    builder = card.builder if card else name
    if specs.parse(builder).name not in registry.purifiers:
        raise UsageError(f"{name} is no purifier")
    purifier = _weighted(card or Card(name, name, DEFAULT_DATASET), checkpoint)[0]
    return purifier.eval().requires_grad_(False).to(device)


def _weighted(
    card: Card, checkpoint: str | Path | None
) -> tuple[Purifier, Path | None, str, tuple[str, ...]]:
    """A card's purifier with its weights, the file they are from, its digest, and what a user should know of it."""
    spec = specs.parse(card.builder)
    if checkpoint or card.checkpoint:
        file = fetch(checkpoint, Path()) if checkpoint else _own_file(card)
        digest = sha256_of(file.path)
        if not checkpoint:
            _check_digest(card, f"checkpoint {file.path}", digest)
        weights = read_weights(
            file.path, file.weights
        )  # before the network, which may take its time to build
        purifier = build_purifier(spec)
        load_into(purifier, purifier.fitted(weights.state), file.path)
        return purifier, file.path, weights.digest(digest), (*file.notes, *weights.notes)
    purifier = build_purifier(spec)
    if any(True for _ in purifier.parameters()):
        made = f" (robench train {card.name} makes one)" if card.recipe else ""
        where = f": get them from {card.origin} and" if card.origin else f":{made}"
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
    changes = f"{card.builder}\n{card.classifier}".encode()
    if not card.path.is_file():
        return _digest(changes)
    plain = card is catalog.cards().get(card.name) or card == catalog.read(Card, card.path)
    return _digest(card.path.read_bytes() + (b"" if plain else changes))


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
        if not card.origin:
            raise
        raise ResourceError(
            f"{card.name} comes without its weights: get them from {card.origin} and put them, as {card.checkpoint}, "
            "into a folder that the variable ROBENCH_CHECKPOINTS names, or give the file with --checkpoint"
        ) from error


def _check_digest(card: Card, what: str, digest: str) -> None:
    # Of a file that somebody brings the digest may be unknown.
    if digest != card.sha256 and (card.sha256 or not card.origin):
        raise ResourceError(
            f"{what} has sha256 {digest}: the card {card.name} says {card.sha256 or 'none'}; get "
            "the file again, or use it as it is with --checkpoint"
        )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
