"""Resolve the name of a defense: cards, a builder's spec, and the defense behind a purifier.

A name is resolved once, into a `ResolvedDefense`; nothing is built or fetched here.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from robench import catalog
from robench.catalog import Card
from robench.core import registry, specs
from robench.core.errors import MOST, UsageError, is_path, some, unknown_name
from robench.core.specs import Spec
from robench.core.trust import like
from robench.defenses import loaders

DEFAULT_DATASET = "digits"


@dataclass(frozen=True)
class ResolvedDefense:
    """A resolved name of a defense.

    Attributes:
        name: the name; its canonical form if requested.
        dataset: dataset that selects among the cards of a family.
        cards: the cards that the name may refer to: one, or those of a family for one dataset; empty for the spec of
            a builder or a loader.
        written: the spec in the name; None if the name refers to cards.
        behind: the defense after the "+" in the name; None without a "+".
    """

    name: str
    dataset: Spec
    cards: tuple[Card, ...]
    written: Spec | None = None
    behind: "ResolvedDefense | None" = None

    @cached_property
    def card(self) -> Card | None:
        """The card; None for a builder's or a loader's spec.

        Of a family's cards for one dataset, this is the one that comes with its checkpoint.

        Raises:
            UsageError: if the family has several cards for that dataset.
        """
        if len(self.cards) < 2:
            return self.cards[0] if self.cards else None
        ready = _ready(self.cards)
        if len(ready) == 1:
            return ready[0]
        what = f"{len(self.cards)} cards for {self.cards[0].dataset}"
        offers = some(card.name for card in ready or self.cards)
        raise UsageError(f"the family {self.name} has {what}: name one of {offers}, or pass --checkpoint")

    @property
    def spec(self) -> Spec:
        """Spec of the builder or the loader; of the first card if there are several."""
        if self.cards:
            return self.cards[0].spec
        assert self.written is not None
        return self.written

    @cached_property
    def classifier(self) -> "ResolvedDefense | None":
        """The defense whose classifier follows this purifier; None if neither the name nor a card has one."""
        if self.behind is not None:
            return self.behind
        return resolve(self.card.classifier, self.dataset) if self.card and self.card.classifier else None


def resolve(
    name: str | ResolvedDefense, dataset: str | Spec | None = None, canonical: bool = False
) -> ResolvedDefense:
    """Resolve the name of a defense.

    Args:
        name: a card, a family, the path of a card (`.toml`), a loader's spec such as `timm:resnet50(image_size=224)`,
            or a builder's spec such as `my_defense(width=3)`. Arguments after a card or family override those of its
            builder (a builder of that name takes precedence); PURIFIER+DEFENSE puts the purifier in front of the
            classifier of that defense. A resolved defense is returned unchanged.
        dataset: dataset that selects among the cards of a family, without its arguments; None for "digits".
        canonical: resolve the canonical name, see `canonical_name`.

    Raises:
        UsageError: if nothing has that name, or the family has no card for that dataset.
        ResourceError: if the card's file cannot be read.
    """
    if isinstance(name, ResolvedDefense):
        return name
    base = specs.parse(dataset or DEFAULT_DATASET)
    pieces = _canonical(name, base) if canonical else None
    if pieces is None:
        text = name.strip() if canonical else name
        split = _split(text)
        pieces = [(piece, None) for piece in (split if len(split) > 1 else [text])]
    return _resolved(pieces, name, base)


def find_card(name: str, dataset: str | Spec | None = None) -> Card | None:
    """The card that `name` refers to; None for a builder's or a loader's spec. See `resolve`."""
    return resolve(name, dataset).card


def find_cards(name: str, dataset: str | Spec | None = None) -> list[Card]:
    """Every card that `name` may refer to; empty for a builder's or a loader's spec. See `resolve`."""
    return list(resolve(name, dataset).cards)


def canonical_name(text: str, dataset: str | Spec | None = None) -> str:
    """A defense's canonical name: a family's card for the dataset, without settings equal to the card's own.

    Paths and unknown names are returned unchanged. No file is read.
    """
    pieces = _canonical(text, specs.parse(dataset or DEFAULT_DATASET))
    if pieces is None:
        return like(text, text.strip())
    return like(text, "+".join(piece for piece, _ in pieces))


def builder_defaults(builder: str) -> dict[str, Any]:
    """The defaults of a built-in builder of defenses or purifiers."""
    for kind in (registry.defenses, registry.purifiers):
        if kind.holder(builder).startswith("robench."):
            return kind.describe(builder).defaults
    return {}


def changed_arguments(spec: Spec, known: dict[str, Any]) -> dict[str, Any]:
    """The arguments that differ from `known`, with integral floats as integers: 70 for 70.0."""
    given = {key: _plain(value) for key, value in spec.arguments.items()}
    return {k: v for k, v in given.items() if v != _plain(known.get(k, inspect.Parameter.empty))}


def is_family(name: str) -> bool:
    """Whether `name` is the family of one or more cards."""
    return bool(name) and any(card.family == name for card in catalog.cards().values())


def family_card(name: str, dataset: Spec) -> Card | None:
    """The card of a family for a dataset; None if there is no such family, or if several cards fit."""
    place = (name, dataset.name)
    cards = [card for card in catalog.cards().values() if (card.family, card.dataset) == place]
    ready = _ready(cards) if len(cards) > 1 else cards
    return ready[0] if name and len(ready) == 1 else None


def _ready(cards: Sequence[Card]) -> list[Card]:
    """The cards that come with their checkpoint; of several, the one that is named FAMILY-DATASET, if there is one."""
    ready = [card for card in cards if card.checkpoint and not card.download_page]
    return [card for card in ready if card.name.partition("(")[0] == f"{card.family}-{card.dataset}"] or ready


def _split(text: str) -> list[str]:
    return [text] if loaders.scheme_of(text) else specs.split(text, "+")


def _canonical(text: str, dataset: Spec) -> list[tuple[str, Spec | None]] | None:
    """The canonical name of each piece of PURIFIER+DEFENSE, with its spec; None if the text is malformed."""
    try:
        return [_canonical_piece(like(text, piece), dataset) for piece in _split(text.strip())]
    except UsageError:
        return None


def _canonical_piece(text: str, dataset: Spec) -> tuple[str, Spec | None]:
    if text.endswith(".toml"):
        return text, None
    spec = specs.parse(text)
    if not loaders.scheme_of(text):
        card = catalog.cards().get(spec.name) or family_card(spec.name, dataset)
        built = card.spec if card else Spec(spec.name)
        defaults = builder_defaults(built.name)
        known = {**defaults, **specs.renamed(built, defaults).arguments}
        spec = specs.renamed(spec, known)
        spec = Spec(like(text, card.name if card else spec.name), changed_arguments(spec, known))
    return str(spec), spec


def _resolved(pieces: Sequence[tuple[str, Spec | None]], name: str, dataset: Spec) -> ResolvedDefense:
    (text, spec), *rest = pieces
    text = like(name, text)
    if not rest:
        cards, spec = _meaning(text, spec, dataset)
        return ResolvedDefense(text, dataset, tuple(cards), spec)
    behind = _resolved(rest, name, dataset)
    cards, _ = _meaning(text, spec, dataset)
    for built in [card.spec for card in cards] or [spec or specs.parse(text)]:
        if built.name not in registry.purifiers:
            raise UsageError(
                f"{text} is not a purifier: only a purifier can be put in front of {behind.name}"
            )
    if not cards:
        cards = [Card(text, text, str(dataset))]
    # Records use the names of cards, not the paths of their files.
    last = behind.cards[0].name if behind.name.endswith(".toml") else behind.name
    cards = [replace(card, name=f"{card.name}+{last}", classifier=behind.name, edited=True) for card in cards]
    return ResolvedDefense(like(name, f"{text}+{behind.name}"), dataset, tuple(cards), behind=behind)


def _meaning(name: str, spec: Spec | None, dataset: Spec) -> tuple[list[Card], Spec | None]:
    """The cards that one piece of a name may refer to, or the spec of a builder or a loader."""
    if name.endswith(".toml"):
        return [catalog.read_named(Card, name)], None
    cards = catalog.cards()
    if name in cards:
        return [cards[name]], None
    family = [card for card in cards.values() if card.family == name]
    if family:
        # A defense belongs to a dataset, whatever the preprocessing or corruption of its images.
        if fitting := [card for card in family if card.dataset == dataset.name]:
            return fitting, None
        datasets = some({card.dataset: None for card in family}, dataset.name)
        offers = some((card.name for card in family), f"{name}-{dataset.name}")
        more = f" (robench show {name} lists them)" if len(family) > MOST else ""
        raise UsageError(
            f"the family {name} has no card for {dataset.name}, only for {datasets}: name one of {offers}{more}"
        )
    if is_path(name):
        raise unknown_name("defense", name, ())
    spec = spec or specs.parse(name)
    if spec.name in registry.defenses or spec.name in registry.purifiers or loaders.scheme_of(spec.name):
        return [], spec
    families = {card.family for card in cards.values() if card.family}
    if spec.arguments and (spec.name in cards or spec.name in families):
        originals, _ = _meaning(spec.name, None, dataset)
        return [_changed(card, spec) for card in originals], None
    if ":" in spec.name:
        raise unknown_name("scheme of a defense", spec.name.partition(":")[0], registry.loaders)
    raise unknown_name("defense", name, {*cards, *families, *registry.defenses})


def _changed(card: Card, spec: Spec) -> Card:
    """The card with some of its builder's arguments replaced, which its name states."""
    known = builder_defaults(card.spec.name)
    builder = specs.renamed(card.spec, known).replaced(**specs.renamed(spec, known).arguments)
    return replace(card, name=str(Spec(card.name, spec.arguments)), builder=str(builder), edited=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
