"""One name for one thing, however it was written: data sets, defenses and what an attacker knows.

Suites have theirs from `robench.catalog.find_suite`, threats from `robench.threats.threat.Threat.parse`. Nothing is
loaded here: a name that is not that of a shipped card or of something built in only has its arguments put in order. A
name that was read from a file stays one (see `robench.core.trust`).
"""

import inspect
from typing import Any

import robench.data
import robench.defenses
from robench import catalog
from robench.catalog import Card
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.core.trust import like
from robench.defenses.loaders import scheme_of

# Knowledge levels that name a defense.
_NAMING = ("transfer", "surrogate")
# The preprocessing of images that are of one size already.
_NONE = "none"


def dataset_name(text: str) -> str:
    """A data set's canonical name; `text` where it is no name of one."""
    try:
        spec = specs.parse(text)
    except UsageError:
        return like(text, text.strip())
    base = spec.name.partition(":")[0]
    if not registry.datasets.holder(base).startswith("robench."):
        return like(text, str(spec))
    known = specs.defaults(registry.datasets.get(base))
    if known.get("preprocessing", _NONE) != _NONE:
        # How pictures are prepared is always said.
        spec = specs.Spec(spec.name, {"preprocessing": known.pop("preprocessing"), **spec.arguments})
    return like(text, str(specs.Spec(spec.name, _changed(spec, known))))


def defense_name(text: str, dataset: str | None = None) -> str:
    """A defense's canonical name: a family's card for the data set, without settings that the card has anyway.

    A path stays as it is, and so does a name that means nothing.
    """
    try:
        pieces = [text.strip()] if scheme_of(text.strip()) else specs.split(text, "+")
        return like(text, "+".join(_piece(piece, dataset) for piece in pieces))
    except UsageError:
        return like(text, text.strip())


def knowledge_name(text: str, dataset: str | None = None) -> str:
    """A knowledge level's canonical name. Of a defense that it names, the family where that is enough on this data
    set: "transfer:standard"."""
    level, colon, name = (part.strip() for part in text.partition(":"))
    if not colon or level not in _NAMING:
        return like(text, text.strip())
    name = defense_name(name, dataset)
    card = catalog.cards().get(name)
    if card and card.family and _of_family(card.family, dataset) == card:
        name = card.family
    return like(text, f"{level}:{name}")


def _piece(text: str, dataset: str | None) -> str:
    """The name of one defense or purifier."""
    if text.endswith(".toml") or scheme_of(text):
        return text if text.endswith(".toml") else str(specs.parse(text))
    spec = specs.parse(text)
    card = catalog.cards().get(spec.name) or _of_family(spec.name, dataset)
    if card:
        built = specs.parse(card.builder)
        return str(specs.Spec(card.name, _changed(spec, {**builder_defaults(built.name), **built.arguments})))
    return str(specs.Spec(spec.name, _changed(spec, builder_defaults(spec.name))))


def _of_family(name: str, dataset: str | None) -> Card | None:
    """The card that a family's name means; None where that is no family, or of several cards for the data set."""
    base = specs.parse(dataset).name if dataset else robench.defenses.DEFAULT_DATASET
    cards = [card for card in catalog.cards().values() if card.family == name and card.dataset == base]
    ready = [card for card in cards if card.checkpoint and not card.origin] if len(cards) > 1 else cards
    return ready[0] if name and len(ready) == 1 else None


def builder_defaults(builder: str) -> dict[str, Any]:
    """What a built-in builder of defenses or purifiers takes for granted."""
    for kind in (registry.defenses, registry.purifiers):
        if kind.holder(builder).startswith("robench."):
            return specs.defaults(kind.get(builder))
    return {}


def _changed(spec: specs.Spec, known: dict[str, Any]) -> dict[str, Any]:
    """The arguments that differ from those that are known, with whole numbers as such: 70 for 70.0."""
    given = {key: _plain(value) for key, value in spec.arguments.items()}
    return {k: v for k, v in given.items() if v != _plain(known.get(k, inspect.Parameter.empty))}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
