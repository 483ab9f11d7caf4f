"""robench list: the names of defenses, attacks, datasets, protocols, transformations, certifiers and tables."""

from typing import Any

import click
from rich.table import Table
from rich.text import Text

from robench import catalog
from robench.cli import common, costs
from robench.cli.completion import names_among
from robench.core import registry
from robench.core.errors import UsageError, shortened
from robench.core.index import Description
from robench.core.sanitize import plain

# A line of a list: text, numbers, numbers by name, and None for what is unknown.
Row = dict[str, Any]
# The least width of a description beside other columns.
_ROOM = 48
KINDS = ("defenses", "attacks", "datasets", "protocols", "transformations", "certifiers", "tables")


def _defenses() -> list[Row]:
    rows = [
        (card.name, card.family, card.dataset, card.threat or "none", card.description)
        for card in catalog.cards().values()
    ]
    rows += [
        (name, "", "", "", kind.holder(name))
        for kind in (registry.defenses, registry.purifiers)
        for name in kind
        if not kind.holder(name).startswith("robench.")
    ]
    names = ("name", "family", "dataset", "threat", "description")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _attacks() -> list[Row]:
    rows = [(suite.name, "suite", suite.description) for suite in catalog.suites().values()]
    described = ((name, registry.attacks.describe(name)) for name in registry.attacks)
    rows += [(name, _kind(attack), attack.summary) for name, attack in described]
    return [
        {"name": name, "kind": kind, "passes": costs.passes(name), "description": description}
        for name, kind, description in rows
    ]


def _kind(attack: Description) -> str:
    """What an attack is, by the facts that its class states."""
    facts = [fact.replace("_", "-") for fact in ("minimum_norm", "gradient_free") if attack.facts.get(fact)]
    return f"{', '.join(facts)} attack".strip()


def _builders(kind: registry.Registry, suffix: str = "") -> list[Row]:
    """The builders of a registry with the first line of their documentation."""
    return [{"name": f"{name}{suffix}", "description": kind.describe(name).summary} for name in kind]


def _datasets() -> list[Row]:
    rows = _builders(registry.datasets)
    return [row | {"layout": registry.datasets.describe(row["name"]).facts.get("layout", "")} for row in rows]


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


def _certifiers() -> list[Row]:
    rows = _builders(registry.certifiers)
    norms = [registry.certifiers.describe(row["name"]).facts.get("norm", "") for row in rows]
    return [
        {"name": row["name"], "norm": norm or "any", "description": row["description"]}
        for row, norm in zip(rows, norms, strict=True)
    ]


def _tables() -> list[Row]:
    """What `robench table` prints."""
    files = sorted(catalog.folder("paper").glob("*.toml"))
    return [{"name": file.stem, "description": catalog.read_toml(file)["title"]} for file in files]


def _brought() -> list[Row]:
    """The cards whose weights must be downloaded by hand, with their authors' figures."""
    rows = []
    for card in catalog.cards().values():
        if card.download_page:
            claims = [f"{c['clean']:.2f} / {c['robust']:.2f} {c['attack']}" for c in card.claims]
            row = {"name": card.name, "dataset": card.dataset, "threat": card.threat or "none"}
            rows.append(row | {"claimed clean / robust, %": "; ".join(claims)})
    return rows


TABLES = {
    "defenses": _defenses,
    "attacks": _attacks,
    "datasets": _datasets,
    "protocols": _protocols,
    "transformations": lambda: _builders(registry.transformations),
    "certifiers": _certifiers,
    "tables": _tables,
}

RECIPES = "recipes without weights: robench train NAME trains one"
PURIFIERS = "purifiers, in front of any defense: robench run --defense maep-digits+pgd-at-digits"
SCHEMES = "models from other libraries and files, by scheme: robench run --defense timm:resnet50"
BROUGHT = "published weights: robench show NAME says where to download them; then --checkpoint FILE"


def _shown(tables: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The tables, with the cards without weights, the purifiers and the loaders in separate tables."""
    released = _brought()
    brought = {row["name"] for row in released}
    trained = {card.name for card in catalog.cards().values() if card.recipe and not card.checkpoint}
    trained -= brought
    shown = {}
    for name, rows in tables.items():
        shown[name] = rows
        if name == "defenses":
            shown[name] = [row for row in rows if row["name"] not in brought | trained]
            short = ("name", "dataset", "threat", "description")
            shown[RECIPES] = [{key: row[key] for key in short} for row in rows if row["name"] in trained]
            shown[BROUGHT] = released
            shown[PURIFIERS] = _builders(registry.purifiers, "+")
            shown[SCHEMES] = _builders(registry.loaders, ":")
    return shown


def _shown_value(value: Any) -> str:
    """The text of a cell: numbers with thousands separators, several of them joined by "+"."""
    if isinstance(value, dict):
        return " + ".join(map(_shown_value, value.values()))
    return f"{value:,}" if isinstance(value, int) else plain(value or "")


def _table(rows: list[Row], width: int) -> Table:
    """The rows as a table. Where the terminal leaves a description too little room, the other columns go below it."""
    shown = [{column: _shown_value(value) for column, value in row.items()} for row in rows]
    columns = list(rows[0]) if rows else ["name"]
    others = [column for column in columns if column != "description"]
    taken = sum(2 + max(map(len, [column, *(row[column] for row in shown)])) for column in others)
    if len(others) < len(columns) and width - taken < _ROOM:
        columns = ["name", "description"]
        for row in shown:
            facts = "; ".join(f"{column} {row[column]}" for column in others[1:] if row[column])
            row["description"] += f"\n{facts}" if facts else ""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        # A name stays whole, so that it can be copied.
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for row in shown:
        table.add_row(*(Text(row[column]) for column in columns))
    return table


@click.command("list")
@click.argument("kind", required=False, shell_complete=names_among(KINDS))
@common.as_json
def command(kind: str | None, as_json: bool) -> None:
    """List defenses, attacks, datasets, protocols, transformations, certifiers or tables; without KIND, all of them."""
    if kind is not None and kind not in KINDS:
        raise UsageError(f'unknown kind "{shortened(kind)}": expected one of {", ".join(KINDS)}')
    tables = {name: TABLES[name]() for name in ([kind] if kind else KINDS)}
    if as_json:
        common.print_json(tables)
        return
    console = common.console()
    for name, rows in _shown(tables).items():
        console.print(name, style="bold")
        console.print(_table(rows, console.width))
        console.print()
