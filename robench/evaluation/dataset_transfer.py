"""Transfer between datasets: a purifier trained on one dataset in front of the classifier of another.

Each cell of the matrix (trained on) x (tested on) is a ladder of ordinary runs of the defense PURIFIER+CLASSIFIER on
the second dataset, so every other command can read and reproduce its records. `robench.reports.dataset_transfer` makes
the table.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from robench.catalog import Card, End, Protocol
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.data import load_dataset
from robench.defenses import build_purifier, find_card, load, load_purifier
from robench.evaluation.protocol import choose_protocol, find_suites
from robench.evaluation.run import Options, Request, run_grid
from robench.records.record import Record

# Ways to apply a purifier to images of another size; "resize" is used only on request.
SIZE_MODES = ("tile", "interpolate")


@dataclass(frozen=True)
class Cell:
    """A purifier in front of a classifier of the same or another dataset.

    Attributes:
        purifier: name of the purifier with its size mode, such as `maep-digits(size_mode="tile")`, or path of a card.
        subject: name of the evaluated defense.
        end: the dataset on which it is evaluated, with classifier and threat model.
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
    """All cells: each purifier of each source, in every size mode, in front of the classifier of each target.

    Unsupported cells are skipped with a note.

    Args:
        defenses: families of purifiers, or cards.

    Raises:
        UsageError: if a name is unknown, the protocol has no classifier for a dataset, a purifier is trained on
            another dataset, or no cell is supported.
        ResourceError: if images or weights are missing.
    """
    if not protocol.ends:
        raise UsageError(f"--from and --to need a transfer protocol: {protocol.name} has one dataset")
    if not sources or not targets:
        missing = "--from" if targets else "--to" if sources else "--from and --to"
        raise UsageError(f"{protocol.name} is a transfer protocol: {missing} is missing")
    for name in (*sources, *targets):
        registry.datasets.get(specs.parse(name).name.partition(":")[0])
    cards = [_purifier_card(name, source) for name in defenses for source in sources]
    cells, reasons = [], []
    for end in [_end(protocol, target) for target in targets]:
        load_dataset(end.dataset, protocol.split, 1, options.data_dir)
        side = load(end.classifier, end.dataset).defense.image_size
        for name, card in cards:
            for purifier in _size_modes(name, card, side, reasons.append):
                is_default = purifier == card.name and end.classifier == card.classifier
                cells.append(Cell(purifier, purifier if is_default else f"{purifier}+{end.classifier}", end))
    if not cells:
        raise UsageError(reasons[0])
    for reason in reasons:
        options.note(f"skipped: {reason}")
    return cells


def run_cells(
    cells: Sequence[Cell],
    protocol: Protocol,
    options: Options,
    suites: Sequence[str] | None = None,
    threat: str | None = None,
    samples: int | None = None,
) -> Iterator[tuple[Cell, Record]]:
    """Run the ladders on every cell and yield the records, target by target.

    Args:
        suites: ladders to use instead of the protocol's.
        threat, samples: threat model and number of images to use for all targets.
    """
    ladders = find_suites(suites or protocol.suites)
    if others := [suite.name for suite in ladders if not suite.rungs]:
        raise UsageError(
            f"{protocol.name} needs a ladder of runs, such as {protocol.suites[0]}: {others[0]} is not one"
        )
    ordered, requests = [], []
    for end in dict.fromkeys(cell.end for cell in cells):
        end_protocol = choose_protocol(None, end.dataset, threat or end.threat, samples or end.samples)
        for cell in cells:
            if cell.end == end:
                ordered.append(cell)
                requests.append(Request([cell.subject], ladders, end_protocol))
    for index, record in run_grid(requests, options):
        yield ordered[index], record


def _end(protocol: Protocol, target: str) -> End:
    for end in protocol.ends:
        if target == end.dataset:
            return replace(end, dataset=target)  # as the user wrote it
        if target == specs.parse(end.dataset).name:
            return end
    available = ", ".join(specs.parse(end.dataset).name for end in protocol.ends)
    raise UsageError(
        f"{protocol.name} has no classifier for {target}, only for {available}: write your own protocol with a table "
        "[[ends]] for it, and give its path with --protocol"
    )


def _purifier_card(name: str, source: str) -> tuple[str, Card]:
    """The name of a purifier as a spec, and its card."""
    if not name.endswith(".toml"):
        # A family has the same name as its builder, which would be used for a name with arguments.
        spec = specs.parse(name)
        family_card = find_card(spec.name, source)
        name = str(specs.Spec(family_card.name if family_card else spec.name, spec.arguments))
    card = find_card(name, source)
    if card is None or card.spec.name not in registry.purifiers:
        raise UsageError(f"{name} is not a card or family of purifiers: --from and --to need purifiers")
    if card.dataset != specs.parse(source).name:
        raise UsageError(f"{card.name} is trained on {card.dataset}, not on {source}")
    load_purifier(name)  # check that the weights are available
    return name, card


def _size_modes(name: str, card: Card, side: int, skip: Callable[[str], None]) -> Iterator[str]:
    """`name` with every size mode that supports images of `side`; `skip` receives the reason for each other mode."""
    builder = card.spec
    parameters = specs.defaults(registry.purifiers.get(builder.name))
    builder = specs.renamed(builder, parameters)
    is_free = "size_mode" in parameters and "size_mode" not in builder.arguments
    is_free = is_free and not name.endswith(".toml") and build_purifier(builder).image_size != side
    for size_mode in SIZE_MODES if is_free else [""]:
        spec = specs.parse(name) if size_mode else specs.Spec(name)
        argument = {"size_mode": size_mode} if size_mode else {}
        try:
            build_purifier(specs.Spec(builder.name, {**builder.arguments, **argument})).check(side)
        except ValueError as error:
            skip(f"{card.name} on images of {side} px: {error}")
        else:
            yield str(specs.Spec(spec.name, {**spec.arguments, **argument}))
