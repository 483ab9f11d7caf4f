"""Defenses: by card, by family and data set, by a card's path, by a loader's scheme, or by a builder."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from robench import content, registry, specs
from robench.content import Card
from robench.defenses import loaders, vit  # noqa: F401 - they register themselves
from robench.defenses._base import Defense
from robench.defenses._checkpoints import fetch, load_into, read_state, sha256_of
from robench.errors import ResourceError, UsageError, unknown_name

__all__ = ["Defense", "Loaded", "find_card", "load", "load_defense"]

DEFAULT_DATASET = "digits"


@dataclass(frozen=True)
class Loaded:
    """A defense ready for use, with what a record says of where it came from.

    Attributes:
        name: the card's name, or the spec as it was given.
        defense: in evaluation mode, its parameters frozen, on its device.
        card: None for a builder without one.
        card_digest: sha256 of the card's file; of the canonical spec where there is no card.
        checkpoint: the file that was read; None where the builder brings its own weights.
        checkpoint_sha256: of that file; of the loaded state where there is none, see `loaders.state_digest`.
    """

    name: str
    defense: Defense
    card: Card | None
    card_digest: str
    checkpoint: Path | None
    checkpoint_sha256: str


def find_card(name: str, dataset: str | None = None) -> Card | None:
    """The card that `name` means; None when it is a builder's or a loader's spec.

    Args:
        name: a card, a family, a card's path (`.toml`), a spec with a loader's scheme such as
            `timm:resnet50(image_size=224)`, or a builder's such as `my_defense(width=3)`.
        dataset: picks among a family's cards; None for "digits".

    Raises:
        UsageError: when nobody has that name, or the family has no card, or several, for that data set.
        ResourceError: when the card's file cannot be read.
    """
    if name.endswith(".toml"):
        return content.read(Card, Path(name))
    cards = content.cards()
    if name in cards:
        return cards[name]
    family = [card for card in cards.values() if card.family == name]
    if family:
        dataset = dataset or DEFAULT_DATASET
        fitting = [card for card in family if card.dataset == dataset]
        if len(fitting) == 1:
            return fitting[0]
        offers = ", ".join(f"{card.name} ({card.dataset})" for card in family)
        found = "no card" if not fitting else f"{len(fitting)} cards"
        raise UsageError(f"the family {name} has {found} for {dataset}: name one of {offers}")
    spec = specs.parse(name)
    if spec.name in registry.defenses or loaders.scheme_of(spec.name):
        return None
    if ":" in spec.name:
        raise unknown_name("scheme of a defense", spec.name.partition(":")[0], registry.loaders)
    families = {card.family for card in cards.values() if card.family}
    raise unknown_name("defense", name, {*cards, *families, *registry.defenses})


def load(
    name: str,
    dataset: str | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> Loaded:
    """Build a defense and give it its weights.

    Args:
        name, dataset: see `find_card`.
        checkpoint: weights to use in place of the card's, whose sha256 is then not asked for: a path,
            `hf://owner/name/file` or an https URL.
        device: where it runs.

    Raises:
        UsageError: for an unknown name, a builder's wrong arguments, or a network without weights.
        ResourceError: when the checkpoint is missing, damaged, another one than the card names, or of another
            network.
    """
    card = find_card(name, dataset)
    spec = specs.parse(card.builder if card else name)
    if loaders.scheme_of(spec.name):
        return _load_by_scheme(name, spec, card, checkpoint, device)
    builder = registry.defenses.get(spec.name)
    defense = specs.build(spec, builder)
    if not isinstance(defense, Defense):
        found = type(defense).__name__
        raise UsageError(f"{spec.name} gives a {found}: expected a robench.defenses.Defense")
    location = str(checkpoint or (card.checkpoint if card else ""))
    path = None
    if location:
        path = fetch(location, card.path.parent if card and not checkpoint else Path())
        digest = sha256_of(path)
        if card and not checkpoint:
            _check_digest(card, f"checkpoint {path}", digest)
        load_into(defense, read_state(path), path)
    elif card:
        made = f", such as robench train {name} makes" if card.recipe else ""
        raise ResourceError(f"{name} comes without trained weights: give a file{made} with --checkpoint")
    elif registry.defenses.holder(spec.name).startswith("robench."):
        raise UsageError(f"{name} comes without trained weights: give a file with --checkpoint")
    else:
        digest = loaders.state_digest(defense)
    digest_of_card = _digest(card.path.read_bytes() if card else str(specs.canonical(spec, builder)).encode())
    defense = defense.eval().requires_grad_(False).to(device)
    return Loaded(card.name if card else name, defense, card, digest_of_card, path, digest)


def load_defense(
    name: str,
    dataset: str | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> Defense:
    """A defense: images (N, 3, H, W), float32 in [0, 1], to logits (N, K). See `load`.

    >>> defense = load_defense("mimir", dataset="digits")
    """
    return load(name, dataset, checkpoint, device).defense


def _load_by_scheme(
    name: str, spec: specs.Spec, card: Card | None, checkpoint: str | Path | None, device: str | torch.device
) -> Loaded:
    location = str(checkpoint or (card.checkpoint if card else ""))
    folder = card.path.parent if card and not checkpoint else Path()
    found, canonical = loaders.open_spec(spec, fetch(location, folder) if location else None)
    digest = sha256_of(found.file) if found.file else loaders.state_digest(found.defense)
    # A card that names no file may still say the digest of the state that the loader finds.
    if card and not checkpoint and (card.checkpoint or card.sha256):
        what = f"checkpoint {found.file}" if found.file else f"the state of {spec.name}"
        _check_digest(card, what, digest)
    defense = found.defense.eval().requires_grad_(False).to(device)
    own = _digest(card.path.read_bytes() if card else canonical.encode())
    return Loaded(card.name if card else name, defense, card, own, found.file, digest)


def _check_digest(card: Card, what: str, digest: str) -> None:
    if digest != card.sha256:
        raise ResourceError(
            f"{what} has sha256 {digest}: the card {card.name} says {card.sha256 or 'none'}; get "
            "the file again, or use it as it is with --checkpoint"
        )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
