"""Write `robench/core/index.json`: what is built in, so that it can be listed and shown without importing it.

    python perf/write_index.py [--networks]

Run it after a change of a builder's name, documentation or arguments, or of `robench/engine/passes.json`; with
--networks, which takes a minute, after a change of a network or a card's builder.
"""

import json
import pkgutil
import sys
from dataclasses import asdict
from importlib import import_module
from typing import Any

from robench import catalog
from robench.core import index, registry
from robench.core.errors import RobenchError
from robench.defenses import describe
from robench.engine.counts import built_in, shipped_cost

PACKAGES = (
    "robench.attacks",
    "robench.certification",
    "robench.data",
    "robench.defenses",
    "robench.defenses.loaders",
    "robench.threats.transformations",
)
KINDS = (
    registry.certifiers,
    registry.attacks,
    registry.datasets,
    registry.defenses,
    registry.loaders,
    registry.purifiers,
    registry.transformations,
)


def builders() -> dict[str, dict[str, Any]]:
    """Kind -> name -> description of every builder that robench's own modules register."""
    for package in PACKAGES:
        for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
            import_module(module.name)
    return {
        kind.kind: {
            name: asdict(index.describe(builder))
            for name, builder in sorted(kind.registered.items())
            if builder.__module__.startswith("robench.")
        }
        for kind in KINDS
    }


def network(card: catalog.Card) -> dict[str, str] | None:
    """What a card's network takes and gives; None where it cannot be built here."""
    try:
        return describe.of_card(card)
    except RobenchError:
        return None


def networks() -> dict[str, dict[str, str]]:
    """Card -> what its network takes and gives, of every card whose network can be built here."""
    facts = {name: network(card) for name, card in catalog.cards().items()}
    return {name: table for name, table in facts.items() if table}


def costs() -> dict[str, dict[str, Any]]:
    """Suite or attack -> the norm or transformation, and [spec, forward passes, backward passes] of each attack."""
    counts = {suite.name: shipped_cost(suite) for suite in [*built_in(), *catalog.suites().values()]}
    return {
        name: {"kind": count[0], "passes": [[each.spec, each.forward, each.backward] for each in count[1]]}
        for name, count in counts.items()
        if count and count[1]
    }


def main() -> None:
    networks_too = "--networks" in sys.argv
    content = builders() | {
        "network": networks() if networks_too else index.section("network"),
        "cost": costs(),
    }
    index.FILE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
