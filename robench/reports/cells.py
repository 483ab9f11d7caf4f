"""Cells of tables: which record fills a cell, and which command creates the record."""

import shlex
from collections.abc import Iterable, Sequence

from robench import catalog
from robench.catalog import Protocol
from robench.data import needs_files
from robench.records.record import Job, Record


def lowest(records: Iterable[Record]) -> Record | None:
    """The record with the lowest robust accuracy; None if there are no records."""
    return min(records, key=lambda record: record.robust_accuracy.value, default=None)


def run_command(
    defense: str, attack: str, images: Sequence[str], knowledge: str = "full", more: Sequence[str] = ()
) -> str:
    """The command that creates a record.

    Args:
        images: the arguments for images and threat, see `on_protocol` and `on_images`.
        more: further arguments.
    """
    words = ["robench", "run", "--defense", defense, "--attack", attack, *images]
    words += ["--knowledge", knowledge] if knowledge != "full" else []
    return shlex.join([*words, *more])


def on_protocol(name: str) -> list[str]:
    """The arguments for a protocol's images and threat."""
    return ["--protocol", name]


def on_images(job: Job) -> list[str]:
    """The arguments for the images and the threat of a record."""
    return ["--dataset", job.dataset.name, "--threat", job.threat, "--samples", str(job.n)]


def with_files(dataset: str) -> list[str]:
    """The arguments for the folder of a dataset that needs files."""
    return ["--data-dir", "DIR"] if needs_files(dataset) else []


def has_other_weights(record: Record) -> bool:
    """Whether the record has other weights than the card. Not known for purifiers, whose digest covers two files."""
    card = catalog.cards().get(record.job.defense.name)
    digest = record.job.defense.checkpoint_sha256
    return bool(card and not card.classifier and card.sha256 and digest and card.sha256 != digest)


def ordinary_protocols() -> list[Protocol]:
    """The shipped protocols with one dataset."""
    return [protocol for protocol in catalog.protocols().values() if protocol.dataset is not None]
