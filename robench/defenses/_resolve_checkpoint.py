"""Choose the card and network for a checkpoint that the user gives."""

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
    """The network to build for a checkpoint.

    Attributes:
        name: of the card; the spec if no card has that network.
        card: None if no card has that network.
        family: of the candidate cards.
        spec: of the network.
        notes: messages for the user, one line each.
    """

    name: str
    card: Card | None
    family: str
    spec: Spec
    notes: tuple[str, ...] = ()


def choose(
    requested: ResolvedDefense, state: Mapping[str, Tensor], digest: str, path: Path, network: str = ""
) -> Choice:
    """Choose the card whose network fits the checkpoint, or the network alone if no card or several have it.

    Args:
        requested: the card, family or builder's spec; a spec's arguments take precedence over the shapes.
        state, digest: of the checkpoint at `path`.
        network: name of the network in the options stored beside the weights; empty if unknown.

    Raises:
        UsageError: if several cards of networks that are not recognised remain.
        ResourceError: if the card has another sha256, or the network is not recognised.
    """
    name, cards = requested.name, requested.cards
    hints = [card.spec for card in cards] or [requested.spec]
    if not any(_checkpoint_layouts.knows(hint.name) for hint in hints):
        return _by_name(name, cards, hints, digest, path)
    named = _checkpoint_layouts.named(network)
    recognised = _checkpoint_layouts.recognise(_checkpoint_layouts.unwrapped(state), [*named, *hints], path)
    if not cards:
        requested_spec = hints[0]
        if recognised is None or recognised.name != requested_spec.name:
            return Choice(name, None, "", requested_spec)
        spec = _short(Spec(requested_spec.name, {**recognised.arguments, **requested_spec.arguments}))
        return Choice(name if spec == _short(requested_spec) else str(spec), None, "", spec)
    if recognised is None:
        # Its kind may be one that is not recognised; otherwise loading it into a network reports what is wrong.
        others = [card for card in cards if not _checkpoint_layouts.knows(card.spec.name)]
        return _by_name(name, others or cards[:1], hints, digest, path)
    recognised = _short(recognised)
    if fitting := [card for card in cards if _short(card.spec) == recognised]:
        return _by_name(name, fitting, [recognised], digest, path)
    several = f"any of the {len(cards)} cards of {name}"
    candidates = f"the card {cards[0].name}" if len(cards) == 1 else several
    note = f"the network of {path} is not that of {candidates}: it is recorded as {recognised}"
    return Choice(str(recognised), None, cards[0].family, recognised, (note,))


def _by_name(name: str, cards: Sequence[Card], hints: Sequence[Spec], digest: str, path: Path) -> Choice:
    if not cards:
        return Choice(name, None, "", hints[0])
    matching = [card for card in cards if card.sha256 == digest]
    cards = matching or [card for card in cards if not _is_other_file(card, digest)] or cards
    if len(cards) > 1:
        networks = {str(_short(card.spec)) for card in cards}
        if len(networks) > 1:
            raise UsageError(
                f"checkpoint {path} may be of {len(cards)} cards: name one of "
                + some(card.name for card in cards)
            )
        note = (
            f"{path} has the network of {len(cards)} cards, {some(card.name for card in cards)}: name one of them to "
            "record it under that name"
        )
        spec = _short(cards[0].spec)
        return Choice(str(spec), None, cards[0].family, spec, (note,))
    (card,) = cards
    if _is_other_file(card, digest):
        raise ResourceError(
            f"checkpoint {path} has sha256 {digest}: the card {card.name} has {card.sha256}; get the file from "
            f"{card.download_page} again, or name the network itself, --defense '{_short(hints[0])}'"
        )
    return Choice(card.name, card, card.family, card.spec, notes(card, digest, path))


def _is_other_file(card: Card, digest: str) -> bool:
    """Whether the card describes one released file, and this is a different one."""
    return bool(card.sha256) and not card.checkpoint and card.sha256 != digest


def notes(card: Card, digest: str, path: Path) -> tuple[str, ...]:
    """Messages about the file that gives a card its weights, one line each."""
    if not card.sha256:
        return (f"the card {card.name} has no sha256 yet: {path} is not verified, its sha256 is {digest}",)
    if card.sha256 != digest:
        return (f"{path} is not the checkpoint of the card {card.name}: the record has its sha256, {digest}",)
    return ()


def _short(spec: Spec) -> Spec:
    return specs.canonical(spec, registry.defenses.get(spec.name))
