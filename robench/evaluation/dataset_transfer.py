"""Transfer across data sets: a purifier trained on one, before the classifier of another.

Each cell of the matrix (trained on) x (tested on) is the ladder of ordinary runs of one defense, PURIFIER+CLASSIFIER,
on the data set tested on: records that any other command finds and makes again. `robench.reports.dataset_transfer`
makes the table.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from robench.catalog import Card, End, Protocol
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.data import load_dataset
from robench.defenses import build_purifier, find_card, load, load_purifier
from robench.evaluation.protocol import choose_protocol, find_suites
from robench.evaluation.run import Options, run_all
from robench.records.record import Record

# How a purifier takes images of another size; "resize" is run only on request.
SIZE_MODES = ("tile", "interpolate")


@dataclass(frozen=True)
class Cell:
    """A purifier before a classifier of another data set, or its own.

    Attributes:
        purifier: its name, with how it takes images of another size: `maep-digits(size_mode="tile")`; or a card's path.
        subject: the defense that is run.
        end: the data set it is tested on.
    """

    purifier: str
    subject: str
    end: End


def plan(
    protocol: Protocol,
    defenses: Sequence[str],
    sources: Sequence[str],
    targets: Sequence[str],
    options: Options,
) -> list[Cell]:
    """Every cell: each purifier of each source in every size mode, before the classifier of each target.

    Cells that cannot be are left out with a note.

    Args:
        defenses: families of purifiers, or cards.

    Raises:
        UsageError: for an unknown name, a data set that the protocol has no classifier for, a purifier that is trained
            on another data set, or when no cell is left.
        ResourceError: when images or weights are missing.
    """
    if not protocol.ends:
        raise UsageError(f"--from and --to go with a protocol of transfer: {protocol.name} has one data set")
    if not sources or not targets:
        lacking = "--from" if targets else "--to" if sources else "--from and --to"
        raise UsageError(f"{protocol.name} goes from data sets to data sets: {lacking} is missing")
    for name in (*sources, *targets):
        registry.datasets.get(specs.parse(name).name.partition(":")[0])
    cards = [_trained_on(name, source) for name in defenses for source in sources]
    cells, reasons = [], []
    for end in [_end(protocol, target) for target in targets]:
        load_dataset(end.dataset, protocol.split, 1, options.data_dir)
        side = load(end.classifier, end.dataset).defense.image_size
        for name, card in cards:
            for purifier in _fitting(name, card, side, reasons.append):
                own = purifier == card.name and end.classifier == card.classifier
                cells.append(Cell(purifier, purifier if own else f"{purifier}+{end.classifier}", end))
    if not cells:
        raise UsageError(reasons[0])
    for reason in reasons:
        options.note(f"left out: {reason}")
    return cells


def play(
    cells: Sequence[Cell],
    protocol: Protocol,
    options: Options,
    suites: Sequence[str] | None = None,
    threat: str | None = None,
    samples: int | None = None,
) -> Iterator[tuple[Cell, Record]]:
    """Run the ladder on every cell; records in the order of the ends.

    Args:
        suites: ladders, in place of the protocol's.
        threat, samples: in place of every end's.
    """
    chosen = find_suites(suites or protocol.suites)
    if plain := [suite.name for suite in chosen if not suite.rungs]:
        raise UsageError(f"{protocol.name} plays a ladder, such as {protocol.suites[0]}: {plain[0]} is none")
    for end in dict.fromkeys(cell.end for cell in cells):
        here = choose_protocol(None, end.dataset, threat or end.threat, samples or end.samples)
        for cell in cells:
            if cell.end == end:
                for record in run_all([cell.subject], chosen, here, None, options):
                    yield cell, record


def _end(protocol: Protocol, target: str) -> End:
    for end in protocol.ends:
        if target == end.dataset:
            return replace(end, dataset=target)  # the name as it was typed
        if target == specs.parse(end.dataset).name:
            return end
    known = ", ".join(specs.parse(end.dataset).name for end in protocol.ends)
    raise UsageError(
        f"{protocol.name} names no classifier for {target}, only for {known}: write a protocol of your own with a "
        "table [[ends]] for it, and give its path with --protocol"
    )


def _trained_on(name: str, source: str) -> tuple[str, Card]:
    """The purifier's name for a command line, and its card."""
    if not name.endswith(".toml"):
        # A family has the name of its builder, which would come first where arguments are given.
        spec = specs.parse(name)
        found = find_card(spec.name, source)
        name = str(specs.Spec(found.name if found else spec.name, spec.arguments))
    card = find_card(name, source)
    if card is None or card.spec.name not in registry.purifiers:
        raise UsageError(f"{name} is no purifier's card or family: --from and --to are for purifiers")
    if card.dataset != specs.parse(source).name:
        raise UsageError(f"{card.name} is trained on {card.dataset}, not on {source}")
    load_purifier(name)  # are the weights at hand?
    return name, card


def _fitting(name: str, card: Card, side: int, leave: Callable[[str], None]) -> Iterator[str]:
    """`name` in every size mode that takes images of `side`; what does not is left with the reason."""
    built = card.spec
    known = specs.defaults(registry.purifiers.get(built.name))
    built = specs.renamed(built, known)
    free = "size_mode" in known and "size_mode" not in built.arguments
    free = free and not name.endswith(".toml") and build_purifier(built).image_size != side
    for size_mode in SIZE_MODES if free else [""]:
        own = specs.parse(name) if size_mode else specs.Spec(name)
        changed = {"size_mode": size_mode} if size_mode else {}
        try:
            build_purifier(specs.Spec(built.name, {**built.arguments, **changed})).check(side)
        except ValueError as error:
            leave(f"{card.name} before images of {side} px: {error}")
        else:
            yield str(specs.Spec(own.name, {**own.arguments, **changed}))
