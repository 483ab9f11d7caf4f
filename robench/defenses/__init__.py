"""Defenses, named by a card, a family and dataset, a card's path, a loader's scheme, or a builder.

A name may override a card's settings, as in `de3-digits(sigma=70)`, or put a purifier in front of any defense, as in
`maep-digits+standard-digits`.
"""

from typing import TYPE_CHECKING

from robench._moved import old_names
from robench.core.lazy import lazily

if TYPE_CHECKING:
    from robench.defenses._base import Defense, Purifier
    from robench.defenses.loading import (
        Loaded,
        build_purifier,
        card_digest,
        checkpoint_of,
        load,
        load_defense,
        load_purifier,
        restrict_to_classes,
    )
    from robench.defenses.resolution import DEFAULT_DATASET, ResolvedDefense, find_card, find_cards, resolve

__all__ = [
    "DEFAULT_DATASET", "Defense", "Loaded", "Purifier", "ResolvedDefense", "build_purifier", "card_digest",
    "checkpoint_of", "find_card", "find_cards", "load", "load_defense", "load_purifier", "resolve",
    "restrict_to_classes",
]  # fmt: skip

_HOMES = {
    **dict.fromkeys(("Defense", "Purifier"), "_base"),
    **dict.fromkeys(
        ("DEFAULT_DATASET", "ResolvedDefense", "find_card", "find_cards", "resolve"), "resolution"
    ),
}
__getattr__ = lazily(__name__, dict.fromkeys(__all__, "loading") | _HOMES, old_names(__name__))
