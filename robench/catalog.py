"""The content folders: defense cards, suites, protocols, tables of papers and shipped results.

They are next to `robench/` in a checkout and inside the package in a wheel. Cards, suites and protocols can also be
given by path, without installation.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

from robench.core import registry, specs
from robench.core.errors import ResourceError, UsageError, is_path, unknown_name
from robench.core.fields import PERCENT, check_table
from robench.core.specs import Spec
from robench.core.trust import admit, like, written
from robench.corruption.suite import SPEC, corruptions
from robench.threats.knowledge import Knowledge
from robench.threats.threat import NO_THREAT, Threat

_PACKAGE = Path(__file__).parent
FOLDERS = {
    "defense": "defenses",
    "attack": "attacks",
    "protocol": "benchmark",
    "paper": "papers",
    "result": "results",
}


def folder(kind: str) -> Path:
    """The folder of one kind of content: "defense", "attack", "protocol", "paper" or, in a checkout, "result"."""
    installed = _PACKAGE / "_content"
    return (installed if installed.is_dir() else _PACKAGE.parent) / FOLDERS[kind]


@dataclass(frozen=True)
class Card:
    """The description of a defense that can be loaded.

    Attributes:
        name: name on the command line.
        builder: spec of a builder registered under `robench.defenses` or `robench.purifiers`.
        dataset: dataset it was trained on.
        classifier: for a purifier, the defense whose classifier follows it; empty otherwise.
        family: name that selects this card together with a dataset ("mimir"); empty for none.
        checkpoint: path relative to the card, absolute path, `hf://owner/name/file` or https URL; empty for none. If
            `download_page` is set, a path inside the folder ROBENCH_CHECKPOINTS.
        sha256: digest of the checkpoint file; empty if unknown.
        download_page: where to download the checkpoint by hand, if it cannot be fetched automatically.
        pretrained: where to download the pre-trained encoder of the same network and dataset.
        threat: threat it was trained against; empty if undefended.
        preprocessing: preprocessing of its images, a name of `robench.data.preprocessing`; empty if not specified.
        paper, license, description: for display.
        claims: published results, see `Claim`.
        recipe: how `robench train` trains the checkpoint; empty if it cannot.
        path: the file of the card.
        edited: whether a field differs from the file of the card.
    """

    name: str
    builder: str
    dataset: str
    family: str = ""
    classifier: str = ""
    checkpoint: str = ""
    sha256: str = ""
    download_page: str = ""
    pretrained: str = ""
    threat: str = ""
    preprocessing: str = ""
    paper: str = ""
    license: str = ""
    description: str = ""
    claims: list[dict[str, Any]] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    path: Path = Path()
    edited: bool = False

    @cached_property
    def spec(self) -> Spec:
        """The builder's spec."""
        return specs.parse(self.builder)


@dataclass(frozen=True)
class Claim:
    """A published result, an entry of `Card.claims`: accuracies in percent."""

    clean: Annotated[float, PERCENT]
    robust: Annotated[float, PERCENT]
    threat: str
    attack: str
    source: str
    note: str = ""


@dataclass(frozen=True)
class Rung:
    """One run of a suite that is a ladder of runs.

    Attributes:
        name: column in the table of results.
        attack: a suite, or specs joined by "+".
        knowledge: attacker knowledge.
        subject: "defense", or "classifier" for the classifier without its purifier.
        stochastic: "all" defenses, or only "randomized" (in earlier files "randomised") or "deterministic" ones.
        threats: threats that replace that of the protocol, by image side in pixels: {"32": "fog:0.4"}.
    """

    name: str
    attack: str
    knowledge: str = "full"
    subject: Literal["defense", "classifier"] = "defense"
    stochastic: Literal["all", "randomized", "randomised", "deterministic"] = "all"
    threats: dict[str, Threat] = field(default_factory=dict)
    path: Path = Path()

    def __post_init__(self) -> None:
        _read(self, "stochastic", self.stochastic.replace("randomised", "randomized"))
        _read(self, "threats", {side: Threat.parse(name, late=True) for side, name in self.threats.items()})

    def threat(self, side: int, otherwise: Threat | None) -> Threat:
        """The threat for images of `side` pixels: the one listed for the largest side that is at most `side`, else for
        the smallest side; `otherwise` if none is listed."""
        if not self.threats:
            assert otherwise is not None
            return otherwise
        sides = sorted(map(int, self.threats))
        return self.threats[str(max([listed for listed in sides if listed <= side], default=sides[0]))]

    @property
    def of_purifiers(self) -> bool:
        """Whether it only applies to defenses with a purifier."""
        return self.subject == "classifier" or Knowledge.of(self.knowledge).level.needs_purifier

    def suits(self, stochastic: bool) -> bool:
        """Whether it applies to a randomized or deterministic defense."""
        return self.stochastic in ("all", "randomized" if stochastic else "deterministic")


@dataclass(frozen=True)
class Suite:
    """An ordered list of attacks, each run on the survivors of the previous ones, or a ladder of runs.

    Attributes:
        attacks: attacks for every norm without an entry in `norms`; strings are parsed.
        norms: attacks for specific norms, as in {"L1": [...]}.
        rungs: runs of a ladder, in place of attacks; each makes a separate record.
    """

    name: str
    attacks: list[Spec] = field(default_factory=list)
    norms: dict[str, list[Spec]] = field(default_factory=dict)
    rungs: list[Any] = field(default_factory=list)
    paper: str = ""
    description: str = ""
    path: Path = Path()

    def __post_init__(self) -> None:
        _read(self, "attacks", list(map(specs.parse, self.attacks)))
        _read(self, "norms", {norm: list(map(specs.parse, listed)) for norm, listed in self.norms.items()})

    def specs(self, norm: str) -> list[Spec]:
        """The attacks for threats in `norm`."""
        return self.norms.get(norm, self.attacks)


@dataclass(frozen=True)
class End:
    """One dataset of a transfer protocol, and the classifier that is attacked behind purifiers of other datasets.

    Attributes:
        classifier: the defense whose classifier follows every purifier.
        threat, samples: as in `Protocol`.
    """

    dataset: str
    classifier: str
    threat: Threat
    samples: int
    path: Path = Path()

    def __post_init__(self) -> None:
        _read(self, "threat", Threat.parse(self.threat))


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol: dataset, images, threat, suites and levels of attacker knowledge.

    Attributes:
        dataset: dataset, None for several; strings are parsed.
        threat: threat model, None without an adversary; strings are parsed.
        samples: number of images: the first of the split in canonical order.
        columns: columns of its board; empty for all.
        ends: datasets of a transfer protocol, in place of `dataset`, `threat` and `samples`; see
            `robench.evaluation.dataset_transfer`.
    """

    name: str
    dataset: Spec | None = None
    threat: Threat | None = None
    samples: int = 0
    split: str = "test"
    suites: list[str] = field(default_factory=lambda: ["autoattack"])
    knowledge: list[str] = field(default_factory=lambda: ["full"])
    columns: list[str] = field(default_factory=list)
    ends: list[Any] = field(default_factory=list)
    description: str = ""
    path: Path = Path()

    def __post_init__(self) -> None:
        _read(self, "dataset", specs.parse(self.dataset) if self.dataset else None)
        none = self.threat in (None, "", NO_THREAT)
        _read(self, "threat", None if none else Threat.parse(self.threat or "", late=True))

    @property
    def threat_name(self) -> str:
        """The name of the threat in records: "none" without an adversary."""
        return str(self.threat or NO_THREAT)


def _read(item: Any, name: str, value: Any) -> None:
    """Set a field of a frozen data class to its parsed value."""
    object.__setattr__(item, name, value)


Item = TypeVar("Item", Card, Suite, Protocol)
Table = TypeVar("Table")


def cards() -> dict[str, Card]:
    """Every shipped card, by name."""
    return _all(Card, "defense")


def suites() -> dict[str, Suite]:
    """Every shipped suite, by name."""
    return _all(Suite, "attack")


def protocols() -> dict[str, Protocol]:
    """Every shipped protocol, by name."""
    return _all(Protocol, "protocol")


def find_suite(text: str) -> Suite:
    """Find a suite by name, by the path of a TOML file, or from specs joined by "+".

    Specs make a suite named by their canonical form; values of arguments are checked when the attacks are built.

    Raises:
        UsageError: if it is neither a suite nor attacks, with the closest names, or an argument is unknown.
    """
    known, text = suites(), like(text, text.strip())
    if text in known:
        return known[text]
    if text.endswith(".toml"):
        return read_named(Suite, text)
    if is_path(text):
        raise unknown_name("attack", text, known)
    pieces = list(map(specs.parse, specs.split(text, "+")))
    for piece in pieces:
        if piece.name in known.keys() - registry.attacks:
            raise UsageError(f'"{piece.name}" is a suite: join its attacks, see robench show {piece.name}')
        if piece.name not in registry.attacks and piece.name != SPEC:
            raise unknown_name("attack", piece.name, {*known, *registry.attacks, SPEC})
    attacks = [corruption.spec for corruption in corruptions(pieces)] or [
        registry.attacks.canonical(piece) for piece in pieces
    ]
    return Suite(name=like(text, "+".join(map(str, attacks))), attacks=attacks)


def find_protocol(name: str) -> Protocol:
    """Find a protocol by name, or by the path of a TOML file.

    Raises:
        UsageError: if there is none of that name, with the closest names.
    """
    if name.endswith(".toml"):
        return read_named(Protocol, name)
    if name not in protocols():
        raise unknown_name("protocol", name, protocols())
    return protocols()[name]


def own_name(dataset: str, threat: str, samples: int) -> str:
    """The name of a protocol that is not shipped, made from a dataset, a threat and a number of images."""
    kind = "c" if threat == NO_THREAT else threat.replace("/", "over").replace(":", "-")
    return f"{dataset}-{kind}-n{samples}"


def protocol_name(dataset: str, threat: str, samples: int) -> str:
    """The shipped protocol with this dataset, threat and number of images, or a name made of the three."""
    shipped = {(str(p.dataset), p.threat_name, p.samples): p.name for p in reversed(protocols().values())}
    return shipped.get((dataset, threat, samples)) or own_name(dataset, threat, samples)


@cache
def _all(kind: type[Item], noun: str) -> dict[str, Item]:
    items: dict[str, Item] = {}
    for path in sorted(folder(noun).glob("*.toml"), key=lambda path: path.stem):
        item = read(kind, path)
        if item.name in items:
            raise UsageError(f'{noun} "{item.name}" of {path.name} is taken by {items[item.name].path.name}')
        items[item.name] = item
    return items


def read_named(kind: type[Item], name: str) -> Item:
    """Read the TOML file at a path, see `read`.

    Raises:
        Untrusted: if the path was read from another file.
    """
    admit(name, "is another file")
    return read(kind, Path(name))


def read(kind: type[Item], path: Path) -> Item:
    """Read one TOML file as a Card, Suite or Protocol; its name defaults to that of the file.

    Raises:
        ResourceError: if the file cannot be read.
        UsageError: if it is not TOML, or a field is unknown, missing or of the wrong type.
    """
    table = read_toml(path)
    # Older cards call this field `origin`.
    named = {"download_page" if kind is Card and key == "origin" else key: table[key] for key in table}
    item = make(kind, {"name": path.stem, **named}, path)
    if isinstance(item, Protocol):
        item = replace(item, ends=_tables(End, "ends", item.ends, path))
        missing = [key for key in ("dataset", "threat", "samples") if key not in table]
        if item.ends and len(missing) < 3:
            raise UsageError(f"{path}: expected either dataset, threat and samples or tables [[ends]]")
        if missing and not item.ends:
            raise UsageError(f"{path}: the field {missing[0]} is missing")
        for key in ("suites", "knowledge"):
            names = getattr(item, key)
            if not names or not all(map(str.strip, names)):
                raise UsageError(f"{path}: {key} = {names}: expected at least one name and no empty names")
        for part in item.ends or [item]:
            if part.samples < 1:
                raise UsageError(f"{path}: samples = {part.samples}: expected at least 1")
    elif isinstance(item, Suite):
        if bool(item.attacks) == bool(item.rungs):
            raise UsageError(f"{path}: expected either attacks = [...] or tables [[rungs]]")
        item = replace(item, rungs=_tables(Rung, "rungs", item.rungs, path))
        if invalid := [side for rung in item.rungs for side in rung.threats if not side.isdecimal()]:
            raise UsageError(f"{path}: a rung has threats for {invalid[0]!r}: expected pixels")
        if empty := [norm for norm, listed in item.norms.items() if not listed]:
            raise UsageError(f"{path}: norms.{empty[0]} = []: expected at least one attack")
    elif isinstance(item, Card):
        assert item.spec  # raises if the builder is not a spec
        for claim in item.claims:
            check_table(claim, Claim, f"{path}: a claim")
            Threat.parse(claim["threat"])
    return item


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; its strings are marked as `Written` unless it lies in a content folder.

    Raises:
        ResourceError: if it cannot be read.
        UsageError: if it is not TOML.
    """
    try:
        text = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ResourceError(f"{path}: {reason}: expected the path of a readable TOML file") from error
    try:
        table = tomllib.loads(text.decode())
        shipped = path.resolve().parent in {folder(kind).resolve() for kind in FOLDERS}
        return table if shipped else written(table, str(path))
    # Besides TOMLDecodeError: a number may have too many digits, an array too many nested brackets.
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error


def _tables(kind: type[Table], key: str, tables: list[Any], path: Path) -> list[Table]:
    """Read the items of a list of tables `[[key]]`."""
    for table in tables:
        if not isinstance(table, Mapping):
            raise UsageError(f"{path}: {key} holds {table!r}: expected tables [[{key}]]")
    return [make(kind, table, path) for table in tables]


def make(kind: type[Table], table: Any, path: Path) -> Table:
    """Make a data class from a table of a TOML file; its field `path` is the path of the file.

    Raises:
        UsageError: if it is not a table, or a field is unknown, missing or of the wrong type.
    """
    check_table(table, kind, str(path), without=("path", "edited"))
    return cast(Any, kind)(**table, path=path)
