"""Formatting of a record's figures, common to all tables, boards and pictures."""

from robench import catalog
from robench.core import specs
from robench.core.errors import RobenchError
from robench.defenses import loaders
from robench.records.record import Record


def by_draws(record: Record) -> str:
    """Robust accuracy of a randomised defense in the worst draw, on average, by vote and in a single draw; empty for
    other defenses."""
    figures = record.extra.get("stochastic")
    if not figures:
        return ""

    def figure(name: str) -> str:
        robust, clean = figures["robust"][name], figures["clean"][name]
        low, high = (100 * end for end in robust["interval"])
        return f"{100 * robust['value']:.2f} [{low:.1f}, {high:.1f}] (clean {100 * clean['value']:.2f})"

    draws = f"{figures['draws']} {'fresh draws' if figures.get('fresh') else 'draws'}"
    text = (
        f"robust %, {draws}: worst draw {figure('worst_draw')}, average {figure('average')}, "
        f"majority {figure('majority')}"
    )
    if "single_draw" not in figures["robust"]:
        return text
    return f"{text}, single draw {figure('single_draw')}; most published figures are for a single draw"


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
