"""What shells complete on TAB: names by kind, and paths.

click writes the script of each shell: `_ROBENCH_COMPLETE=bash_source robench`.
"""

from collections.abc import Callable, Iterable
from itertools import chain

import click
from click.shell_completion import CompletionItem

from robench import catalog
from robench.core import registry
from robench.threats.knowledge import LEVELS

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _defenses() -> Iterable[str]:
    cards = catalog.cards().values()
    schemes = (f"{scheme}:" for scheme in registry.loaders)
    return [*(card.name for card in cards), *(card.family for card in cards), *registry.defenses, *schemes]


def _levels() -> Iterable[str]:
    families = {card.family for card in catalog.cards().values()}
    named = [f"{name}:{family}" for name, level in LEVELS.items() if level.needs_name for family in families]
    return [*(name for name, level in LEVELS.items() if not level.needs_name), *named]


def _listed() -> Iterable[str]:
    kinds = (
        registry.attacks,
        registry.transformations,
        registry.datasets,
        registry.purifiers,
        registry.loaders,
    )
    return [*_defenses(), *chain(catalog.suites(), catalog.protocols(), *kinds)]


_NAMES: dict[str, Callable[[], Iterable[str]]] = {
    "defense": _defenses,
    "attack": lambda: [*catalog.suites(), *registry.attacks],
    "dataset": lambda: registry.datasets,
    "protocol": catalog.protocols,
    "knowledge": _levels,
    "threat": lambda: [f"{kind}:" for kind in ("Linf", "L2", "L1", "L0", "patch", *registry.transformations)],
    "recipe": lambda: [card.name for card in catalog.cards().values() if card.recipe],
    "paper": lambda: [path.stem for path in catalog.folder("paper").glob("*.toml")],
    "certifier": lambda: registry.certifiers,
    "anything": _listed,
}


def names_of(kind: str) -> Completer:
    """Completes the last of several names, which commas separate, or "+" in front of a defense or an attack."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        cut = max(incomplete.rfind(","), incomplete.rfind("+")) + 1
        before, start = incomplete[:cut], incomplete[cut:]
        names = sorted({name for name in _NAMES[kind]() if name and name.startswith(start)})
        return [CompletionItem(before + name) for name in names] or files(context, parameter, incomplete)

    return complete


def names_among(names: Iterable[str]) -> Completer:
    """Completes one of a few names."""
    return lambda context, parameter, start: [CompletionItem(n) for n in names if n.startswith(start)]


def files(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Leaves the path of a file to the shell."""
    return [CompletionItem(incomplete, type="file")]


def folders(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Leaves the path of a folder to the shell."""
    return [CompletionItem(incomplete, type="dir")]
