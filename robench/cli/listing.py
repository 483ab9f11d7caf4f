"""robench list: what can be named."""

import json
import sys
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from robench import catalog
from robench.cli import common, costs
from robench.cli.completion import names_among
from robench.core import registry
from robench.core.errors import unknown_name
from robench.core.index import Description
from robench.core.sanitize import plain

# A line of a list: text, numbers, numbers by name, and None for what is unknown.
Row = dict[str, Any]
KINDS = ("defenses", "attacks", "datasets", "protocols", "transformations", "certifiers")


def _defenses() -> list[Row]:
    cards = [
        {
            "name": card.name,
            "family": card.family,
            "dataset": card.dataset,
            "threat": card.threat or "none",
            "description": card.description,
        }
        for card in catalog.cards().values()
    ]
    outside = {
        name: kind.holder(name)
        for kind in (registry.defenses, registry.purifiers)
        for name in kind
        if not kind.holder(name).startswith("robench.")
    }
    return cards + [
        {
            "name": name,
            "family": "",
            "dataset": "",
            "threat": "",
            "description": holder,
        }
        for name, holder in outside.items()
    ]


def _attacks() -> list[Row]:
    suites = [
        {
            "name": suite.name,
            "kind": "suite",
            "passes": costs.passes(suite.name),
            "description": suite.description,
        }
        for suite in catalog.suites().values()
    ]
    return suites + [
        {
            "name": name,
            "kind": _kind(registry.attacks.describe(name)),
            "passes": costs.passes(name),
            "description": registry.attacks.describe(name).summary,
        }
        for name in registry.attacks
    ]


def _kind(attack: Description) -> str:
    """What an attack is, by the facts that its class states."""
    facts = [fact.replace("_", "-") for fact in ("minimum_norm", "gradient_free") if attack.facts.get(fact)]
    return f"{', '.join(facts)} attack".strip()


def _datasets() -> list[Row]:
    return [
        {
            "name": name,
            "description": registry.datasets.describe(name).summary,
            "layout": registry.datasets.describe(name).facts.get("layout", ""),
        }
        for name in registry.datasets
    ]


def _protocols() -> list[Row]:
    return [
        {
            "name": protocol.name,
            "dataset": str(protocol.dataset or "several"),
            "threat": "each its own" if protocol.ends else protocol.threat_name,
            "samples": protocol.samples or None,
            "description": protocol.description,
        }
        for protocol in catalog.protocols().values()
    ]


def _transformations() -> list[Row]:
    return [
        {
            "name": name,
            "description": registry.transformations.describe(name).summary,
        }
        for name in registry.transformations
    ]


def _certifiers() -> list[Row]:
    return [
        {
            "name": name,
            "norm": registry.certifiers.describe(name).facts.get("norm", ""),
            "description": registry.certifiers.describe(name).summary,
        }
        for name in registry.certifiers
    ]


def _brought() -> list[Row]:
    """The cards whose weights a user brings, with what their authors claim."""
    rows = []
    for card in catalog.cards().values():
        if card.download_page:
            said = [
                f"{claim['clean']:.2f} / {claim['robust']:.2f} {claim['attack']}" for claim in card.claims
            ]
            rows.append(
                {
                    "name": card.name,
                    "dataset": card.dataset,
                    "threat": card.threat or "none",
                    "claimed clean / robust, %": "; ".join(said),
                }
            )
    return rows


TABLES = {
    "defenses": _defenses,
    "attacks": _attacks,
    "datasets": _datasets,
    "protocols": _protocols,
    "transformations": _transformations,
    "certifiers": _certifiers,
}

RECIPES = "recipes without weights: robench train NAME makes them"
PURIFIERS = "purifiers, before any defense: robench run --defense maep-digits+pgd-at-digits"
SCHEMES = "anybody's, by scheme: robench run --defense timm:resnet50"
BROUGHT = "released defenses: get the file where robench show NAME says, run it with --checkpoint"


def _shown(found: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """`found` with the cards without weights, and the loaders, in tables of their own."""
    released = _brought()
    brought = {row["name"] for row in released}
    trained = {card.name for card in catalog.cards().values() if card.recipe and not card.checkpoint}
    trained -= brought
    shown = {}
    for name, rows in found.items():
        shown[name] = rows
        if name == "defenses":
            shown[name] = [row for row in rows if row["name"] not in brought | trained]
            short = ("name", "dataset", "threat", "description")
            shown[RECIPES] = [{key: row[key] for key in short} for row in rows if row["name"] in trained]
            shown[BROUGHT] = released
            shown[PURIFIERS] = [
                {"name": f"{name}+", "description": registry.purifiers.describe(name).summary}
                for name in registry.purifiers
            ]
            shown[SCHEMES] = [
                {"name": f"{scheme}:", "description": registry.loaders.describe(scheme).summary}
                for scheme in registry.loaders
            ]
    return shown


def _shown_value(value: Any) -> str:
    """The text of a cell: numbers with thousands separators, several of them joined by "+"."""
    if isinstance(value, dict):
        return " + ".join(map(_shown_value, value.values()))
    return f"{value:,}" if isinstance(value, int) else plain(value or "")


@click.command("list")
@click.argument(
    "kind",
    required=False,
    shell_complete=names_among(KINDS),
)
@common.as_json
def command(kind: str | None, as_json: bool) -> None:
    """List defenses, attacks, datasets, protocols or transformations; all of them when no KIND is given."""
    if kind is not None and kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    found = {name: TABLES[name]() for name in ([kind] if kind else KINDS)}
    if as_json:
        json.dump(found, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    console = common.console()
    for name, rows in _shown(found).items():
        console.print(name, style="bold")
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in rows[0] if rows else ("name",):
            # A name is there to be copied: what else there is gives way.
            table.add_column(column, no_wrap=column == "name", overflow="fold")
        for row in rows:
            table.add_row(*(Text(_shown_value(value)) for value in row.values()))
        console.print(table)
        console.print()
