"""robench show: one thing that has a name, or one record with a plot of its adversarial examples."""

import dataclasses
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from robench import catalog
from robench.catalog import Card, End, Protocol, Rung, Suite
from robench.cli import common, costs
from robench.cli.completion import names_of
from robench.core import index, registry, specs
from robench.core.errors import RobenchError, UsageError, unknown_name
from robench.core.grouping import grouped
from robench.core.sanitize import plain, plain_lines
from robench.defenses.loaders import scheme_of
from robench.defenses.resolution import family_card, find_card


@click.command("show")
@click.argument("name", shell_complete=names_of("anything"))
@click.option(
    "--picture", metavar="FILE", help="Write a record's adversarial examples, or its errors, as a PNG."
)
@common.data_dir
@click.option("--threat", help="Threat model for counting an attack's passes, such as L2:0.5.")
@click.option(
    "--classes",
    type=click.IntRange(min=2),
    default=costs.CLASSES,
    show_default=True,
    help="Number of classes for counting an attack's passes.",
)
@common.trust
def command(name: str, picture: str | None, data_dir: str | None, threat: str | None, classes: int) -> None:
    """Show a defense, suite, attack, transformation, dataset or protocol by NAME, or the record or certification in a
    folder.

    A defense is a card, its path, or a spec such as timm:resnet50; its inputs and outputs are shown, and no weights are
    downloaded. For an attack or a suite, the number of passes on an image that is never fooled is counted.
    """
    console = common.console()
    is_record = (Path(name) / "record.json").is_file() or name.endswith(".json")
    for option in ("threat", "classes"):
        if _is_given(option) and not (name in catalog.suites() or _is_attack(name)):
            raise UsageError(f"--{option} needs an attack or a suite, and {name} is neither")
    for option in ("picture", "data_dir"):
        if _is_given(option) and not is_record:
            raise UsageError(f"--{option.replace('_', '-')} needs the folder of a record, and {name} is none")
    if is_record:
        _record(console, Path(name), picture, data_dir)
        return
    if (Path(name) / "certification.json").is_file():
        _certification(Path(name))
        return
    for kind, names in _known().items():
        if name in names:
            console.print(Text(plain(f"{kind} {name}"), style="bold"))
            content = names[name]()
            console.print(Text(plain_lines(content)) if isinstance(content, str) else content)
            if kind == "attack" or (kind == "suite" and not catalog.suites()[name].rungs):
                _costs(console, name, threat, classes)
            return
    if _is_attack(name):
        attacks = catalog.find_suite(name).attacks
        from robench.attacks.build import canonical  # imports torch

        for attack in attacks:
            canonical(attack)  # refuses values that the attack does not take
        console.print(Text(plain(f"attack {name}"), style="bold"))
        _costs(console, name, threat, classes)
        return
    if name.endswith(".toml") or scheme_of(name) or "(" in name or "+" in name or name in registry.defenses:
        card = find_card(name)
        console.print(Text(plain(f"defense {card.name if card else name}"), style="bold"))
        console.print(_card(card) if card else _table(_network(name)))
        return
    if Path(name).is_dir():
        from robench.records.record import read_record

        read_record(name)  # says what is missing there
    raise unknown_name("name", name, set().union(*_known().values()), "robench list shows all")


def _is_given(option: str) -> bool:
    """Whether an option is on the command line."""
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


def _is_attack(text: str) -> bool:
    try:
        return all(specs.parse(piece).name in registry.attacks for piece in specs.split(text, "+"))
    except UsageError:
        return False


def _costs(console: Console, name: str, threat: str | None, classes: int) -> None:
    for line in costs.lines(name, threat, classes):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _record(console: Console, path: Path, picture: str | None, data_dir: str | None) -> None:
    from robench.core.errors import ResourceError
    from robench.records.collection import usable
    from robench.records.inputs import images_of
    from robench.records.record import Record
    from robench.reports.plots import corruption_heatmap
    from robench.reports.plots.adversarial_examples import picture as draw
    from robench.reports.run_summary import describe

    record = usable(path)
    if not isinstance(record, Record):
        raise ResourceError(str(record))
    console.print(describe(record))
    if picture is None:
        return
    if record.corrupted:
        file = corruption_heatmap.write(record, Path(picture))
    else:
        file = draw(record.folder or path, images_of(record, data_dir), Path(picture))
    common.say(f"plot: {file}")


def _certification(folder: Path) -> None:
    from robench.records import certification
    from robench.reports.certification import grid
    from robench.reports.table import render

    click.echo(render(grid(certification.read(folder)), "text", common.console().width), nl=False)


def _known() -> dict[str, dict[str, Any]]:
    """Kind -> name -> what shows it; the first kind that knows a name has it."""
    families = grouped(catalog.cards().values(), lambda card: card.family)
    builders = {
        "attack": registry.attacks,
        "builder of defenses": registry.defenses,
        "builder of purifiers": registry.purifiers,
        "loader of defenses": registry.loaders,
        "transformation": registry.transformations,
        "certifier": registry.certifiers,
        "dataset": registry.datasets,
    }
    return {
        "defense": {name: partial(_card, card) for name, card in catalog.cards().items()},
        "family of defenses": {
            name: partial(_family, name, cards) for name, cards in families.items() if name
        },
        "suite": {name: partial(_fields, suite) for name, suite in catalog.suites().items()},
        "protocol": {name: partial(_fields, protocol) for name, protocol in catalog.protocols().items()},
        **{word: {name: partial(_builder, kind, name) for name in kind} for word, kind in builders.items()},
    }


def _family(name: str, cards: Sequence[Card]) -> str:
    """The cards of a family, one per line, and which of them its name selects."""
    lines = []
    for card in cards:
        selected = family_card(name, specs.Spec(card.dataset)) == card
        lines.append(f"{card.name}  ({card.dataset}{f': --defense {name} selects it' if selected else ''})")
    return "\n".join(lines)


def _card(card: Card) -> RenderableType:
    """A card's fields, and what its network takes and gives, where it can be built here."""
    shipped = catalog.cards().get(card.name) == card
    facts = index.section("network").get(card.name) if shipped else None
    try:
        facts = facts or _network(card)
    except RobenchError as error:
        facts = {"network": f"cannot be built here: {error}"}
    return Group(_fields(card), _table(facts))


def _network(defense: Card | str) -> dict[str, str]:
    """What the network of a card or a spec takes and gives, which is built for that."""
    from robench.defenses import describe

    return describe.of_card(defense) if isinstance(defense, Card) else describe.of_spec(defense)


def _fields(item: Card | Suite | Protocol) -> RenderableType:
    fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    if isinstance(item, Protocol) and not item.ends:
        fields["threat"] = item.threat_name
    shown = {name for name, value in fields.items() if value not in ("", None, [], {}, 0)} - {
        "name",
        "edited",
    }
    return _table({name: _text(value) for name, value in fields.items() if name in shown})


def _table(rows: dict[str, str]) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True, min_width=14)
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(Text(plain(name)), Text(plain_lines(text)))
    return table


def _text(value: Any) -> str:
    if isinstance(value, Rung):
        return _rung(value)
    if isinstance(value, End):
        return f"{value.dataset}: {value.classifier}, {value.threat}, {value.samples} images"
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    if isinstance(value, dict):
        return "\n".join(
            f"[{key}]\n" + textwrap.indent(_text(item), "  ")
            if isinstance(item, dict)
            else f"{key} = {', '.join(map(str, item)) if isinstance(item, list) else item}"
            for key, item in value.items()
        )
    return str(value)


def _rung(rung: Rung) -> str:
    """One line for the run, and one for its threats by the side of the images."""
    text = rung.attack if rung.knowledge == "full" else f"{rung.attack} @{rung.knowledge}"
    text += " on the classifier alone" if rung.subject == "classifier" else ""
    text += f" ({rung.stochastic} defenses)" if rung.stochastic != "all" else ""
    threats = ", ".join(f"{threat} at {side} px" for side, threat in rung.threats.items())
    return f"{rung.name}: {text}" + (f"\n  {threats}" if threats else "")


def _builder(kind: registry.Registry, name: str) -> RenderableType:
    builder = kind.describe(name)
    lines = [f"from {kind.holder(name)}", "", *_reflowed(builder.documentation, common.console().width), ""]
    lines += [f"{key} = {default}" for key, default in builder.arguments.items() if key != "source"]
    return Text("\n".join(lines))


def _reflowed(docstring: str, width: int) -> list[str]:
    """The lines of a docstring, wrapped again for a terminal with `width` columns."""
    joined: list[str] = []
    for line in docstring.splitlines():
        indent = len(line) - len(line.lstrip())
        above = joined[-1] if joined else ""
        deeper = indent >= 8
        goes_on = deeper or (indent == 0 and not above.startswith(" ") and not above.endswith(":"))
        if line.strip() and above.strip() and goes_on:
            joined[-1] += f" {line.strip()}"
        else:
            joined.append(line.rstrip())
    lines: list[str] = []
    for line in joined:
        indent = line[: len(line) - len(line.lstrip())]
        wrapped = textwrap.wrap(
            line, width, subsequent_indent=indent * 2, break_long_words=False, break_on_hyphens=False
        )
        lines += wrapped or [""]
    return lines
