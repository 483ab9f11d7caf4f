"""Which card, and which network, a checkpoint given by hand is of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from robench.catalog import Card
from robench.core import registry, specs
from robench.core.errors import ResourceError, UsageError, some
from robench.core.specs import Spec
from robench.defenses import _checkpoint_layouts
from robench.defenses.resolution import ResolvedDefense


@dataclass(frozen=True)
class Choice:
    """What is built for a checkpoint.

    Attributes:
        name: the card's; the spec where the network is no card's.
        card: None where the network is no card's.
        family: of the cards there were to choose from.
        spec: of the network.
        notes: what a user should know, a line each.
    """

    name: str
    card: Card | None
    family: str
    spec: Spec
    notes: tuple[str, ...] = ()


def choose(meant: ResolvedDefense, state: Mapping[str, Tensor], digest: str, path: Path) -> Choice:
    """The card whose network the checkpoint is of; the network by itself when it is no card's.

    Args:
        meant: what was asked for: a card, a family, or a builder's spec, whose arguments count before the shapes.
        state, digest: of the checkpoint at `path`.

    Raises:
        UsageError: when several cards have that network.
        ResourceError: when the card says another sha256, or the network is not recognised.
    """
    name, cards = meant.name, meant.cards
    hints = [card.spec for card in cards] or [meant.spec]
    if not any(_checkpoint_layouts.knows(hint.name) for hint in hints):
        return _by_name(name, cards, hints, digest, path)
    found = _checkpoint_layouts.recognise(_checkpoint_layouts.unwrapped(state), hints, path)
    if not cards:
        asked = hints[0]
        if found is None or found.name != asked.name:
            return Choice(name, None, "", asked)
        spec = _short(Spec(asked.name, {**found.arguments, **asked.arguments}))
        return Choice(name if spec == _short(asked) else str(spec), None, "", spec)
    if found is None:
        # It may be of a kind that is not recognised; if not, loading it into a network says what is wrong with it.
        others = [
            card for card, hint in zip(cards, hints, strict=True) if not _checkpoint_layouts.knows(hint.name)
        ]
        return _by_name(name, others or cards[:1], hints, digest, path)
    found = _short(found)
    fitting = [card for card, hint in zip(cards, hints, strict=True) if _short(hint) == found]
    if fitting:
        return _by_name(name, fitting, [found], digest, path)
    whose = (
        f"that of the card {cards[0].name}" if len(cards) == 1 else f"one of the {len(cards)} cards of {name}"
    )
    note = f"the network of {path} is not {whose}: it is recorded as {found}"
    return Choice(str(found), None, cards[0].family, found, (note,))


def _by_name(name: str, cards: Sequence[Card], hints: Sequence[Spec], digest: str, path: Path) -> Choice:
    if not cards:
        return Choice(name, None, "", hints[0])
    same = [card for card in cards if card.sha256 == digest]
    cards = same or [card for card in cards if not _another(card, digest)] or cards
    if len(cards) > 1:
        raise UsageError(
            f"checkpoint {path} has the network of {len(cards)} cards: name one of "
            + some(card.name for card in cards)
        )
    (card,) = cards
    if _another(card, digest):
        raise ResourceError(
            f"checkpoint {path} has sha256 {digest}: the card {card.name} says {card.sha256}; get the file from "
            f"{card.download_page} again, or name the network itself, --defense '{_short(hints[0])}'"
        )
    return Choice(card.name, card, card.family, card.spec, notes(card, digest, path))


def _another(card: Card, digest: str) -> bool:
    """Whether the card is of one released file, and this is another."""
    return bool(card.sha256) and not card.checkpoint and card.sha256 != digest


def notes(card: Card, digest: str, path: Path) -> tuple[str, ...]:
    """What a user should know of the file that gives a card its weights, a line each."""
    if not card.sha256:
        return (f"the card {card.name} knows no sha256 yet: {path} is taken on trust, {digest}",)
    if card.sha256 != digest:
        return (f"{path} is not the checkpoint of the card {card.name}: the record has its sha256, {digest}",)
    return ()


def _short(spec: Spec) -> Spec:
    return specs.canonical(spec, registry.defenses.get(spec.name))
