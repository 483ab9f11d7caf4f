"""Formatting of a record's figures, common to all tables, boards and pictures."""

from robench import catalog
from robench.core import specs
from robench.core.errors import RobenchError
from robench.defenses import loaders
from robench.records.record import Record
from robench.statistics.accuracy import Accuracy, interval, percent, span

EMPTY = "–"


def figure(accuracy: Accuracy) -> str:
    """An accuracy in percent with its interval: "71.40 [67.3, 75.2]"."""
    return f"{percent(accuracy)} {interval(accuracy)}"


def cell(accuracy: Accuracy | None, warned: bool = False) -> str:
    """An accuracy in percent, marked if its record has a warning, and its interval in a second line."""
    return EMPTY if accuracy is None else f"{percent(accuracy)}{' !' * warned}\n{span(accuracy)}"


def robust_cell(record: Record | None) -> str:
    """The robust accuracy of a record as a `cell`."""
    return cell(record.robust_accuracy, bool(record.health)) if record else EMPTY


def suite_label(record: Record) -> str:
    """The suite, with knowledge and seed if they are not the defaults: "autoattack@oblivious+seed1"."""
    job = record.job
    knowledge = "" if job.knowledge == "full" else f"@{job.knowledge}"
    return job.suite.name + knowledge + (f"+seed{job.seed}" if job.seed else "")


def kinds(record: Record) -> tuple[str, str]:
    """Family and architecture (the card's builder, or the loader of a spec), or empty strings."""
    name = record.job.defense.name
    card = catalog.cards().get(name)
    family = record.job.defense.family or (card.family if card else "")
    try:
        builder = (card.spec if card else specs.parse(name)).name
    except RobenchError:
        return family, ""
    scheme = loaders.scheme_of(builder)
    return family, scheme or (builder if card else "")
