"""Defenses: by card, by family and data set, by a card's path, or by an outsider's builder."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from robench import content, registry, specs
from robench.content import Card
from robench.defenses import convnext, vit  # noqa: F401 - they register themselves
from robench.defenses._base import Defense
from robench.defenses._checkpoints import fetch, load_into, read_state, sha256_of
from robench.errors import ResourceError, UsageError, unknown_name

__all__ = ["Defense", "Loaded", "find_card", "load", "load_defense"]

DEFAULT_DATASET = "digits"


@dataclass(frozen=True)
class Loaded:
    """A defense ready for use, with what a record says of where it came from.

    Attributes:
        name: the card's name, or the builder's spec.
        defense: in evaluation mode, its parameters frozen, on its device.
        card: None for a builder without one.
        card_digest: sha256 of the card's file; of the canonical spec where there is no card.
        checkpoint: the file that was read; None where the builder brings its own weights.
        checkpoint_sha256: of that file; empty where there is none.
    """

    name: str
    defense: Defense
    card: Card | None
    card_digest: str
    checkpoint: Path | None
    checkpoint_sha256: str


def find_card(name: str, dataset: str | None = None) -> Card | None:
    """The card that `name` means; None when it is a builder's spec.

    Args:
        name: a card, a family, a card's path (`.toml`) or a builder's spec such as `my_defense(width=3)`.
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
    if specs.parse(name).name in registry.defenses:
        return None
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
        if card and not checkpoint and digest != card.sha256:
            wanted = card.sha256 or "none"
            raise ResourceError(
                f"checkpoint {path} has sha256 {digest}: the card {card.name} says {wanted}; get "
                "the file again, or use it as it is with --checkpoint"
            )
        load_into(defense, read_state(path), path)
    elif card:
        made = f", such as robench train {name} makes" if card.recipe else ""
        raise ResourceError(f"{name} comes without trained weights: give a file{made} with --checkpoint")
    elif registry.defenses.holder(spec.name).startswith("robench."):
        raise UsageError(f"{name} comes without trained weights: give a file with --checkpoint")
    else:
        digest = ""
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


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
