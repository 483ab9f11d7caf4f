"""The record of a run: its fields, its key, and how to read it. `record.schema.json` documents each field."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench.core import registry, specs, strict_json
from robench.core.errors import ResourceError, UsageError
from robench.core.trust import like
from robench.corruption.suite import SPEC as CORRUPTION
from robench.corruption.suite import Corruption
from robench.engine.outcome import AttackCost, ResultWarning
from robench.records import json_files
from robench.statistics.accuracy import Accuracy, interval, percent
from robench.threats.threat import Threat

if TYPE_CHECKING:
    from robench.defenses import Loaded

SCHEMA = 1
# Version of the key. A new file layout does not change it, so that old records still match.
_KEY = 1
# schema -> what makes a record.json of the next one out of one of that schema.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
FILE = "record.json"
# Fields that may differ between two runs of one job. All others are the same, byte for byte.
VOLATILE = ("command", "seconds", "rows", "started", "finished", "device", "platform", "git")


@dataclass(frozen=True)
class DefenseFacts:
    """The defense of a run. Digests are sha256, and empty without a card or checkpoint.

    `classifier` is the defense whose classifier follows a purifier. `state_sha256` is the digest of the loaded weights,
    independent of their names and file format; empty in older records.
    """

    name: str
    family: str = ""
    card_digest: str = ""
    checkpoint_sha256: str = ""
    parameters: int | None = None
    classifier: str = ""
    state_sha256: str = ""

    @classmethod
    def of(cls, loaded: "Loaded") -> "DefenseFacts":
        """The facts of a loaded defense."""
        return cls(
            loaded.name,
            loaded.family,
            loaded.card_digest,
            loaded.checkpoint_sha256,
            sum(p.numel() for p in loaded.defense.parameters()),
            loaded.classifier,
            loaded.state_sha256,
        )


@dataclass(frozen=True)
class SuiteFacts:
    """The attacks of a run: canonical specs, in order."""

    name: str
    attacks: tuple[str, ...]


@dataclass(frozen=True)
class DatasetFacts:
    """The images of a run; `digest` is `Images.digest`."""

    name: str
    split: str
    digest: str


@dataclass(frozen=True)
class Job:
    """The configuration of a run.

    Attributes:
        protocol: name of the protocol; without one, a name made from the dataset, the threat model and `n`.
        threat: canonical threat model, such as "Linf:8/255"; "none" for a run under corruptions.
        knowledge: "full", "bpda", "oblivious", "known-noise", "transfer:NAME" or "surrogate:NAME".
        precision: precision of the search, "fp32" or "bf16".
        batch_size: number of images per network call.
        n: number of images.
        half_width: for an estimate, the requested half width of the 95 % interval, in percentage points; otherwise 0.
    """

    defense: DefenseFacts
    suite: SuiteFacts
    dataset: DatasetFacts
    protocol: str
    threat: str
    n: int
    batch_size: int
    knowledge: str = "full"
    seed: int = 0
    precision: str = "fp32"
    half_width: float = 0.0

    @cached_property
    def threat_model(self) -> Threat:
        """The threat model as a `Threat`.

        Raises:
            UsageError: if there is none, as under corruptions, or the text is malformed.
        """
        return Threat.parse(self.threat, late=True)

    @property
    def key(self) -> str:
        """sha256 of all settings that affect the outcome; the names of the suite and the protocol do not."""
        decisive = {
            "schema": _KEY,
            "defense": [self.defense.name, self.defense.card_digest, self.defense.checkpoint_sha256],
            "attacks": list(self.suite.attacks),
            "dataset": [self.dataset.name, self.dataset.split, self.dataset.digest],
            "n": self.n,
            "threat": self.threat,
            "knowledge": self.knowledge,
            "seed": self.seed,
            "precision": self.precision,
            "batch_size": self.batch_size,
        }
        if self.half_width:
            decisive["half_width"] = self.half_width
        return digest(decisive)


@dataclass(frozen=True)
class Record:
    """The record of a run, the content of record.json.

    Attributes:
        job: the configuration; in the file, its fields are at the top level.
        key: key of the job; a run with the same key reuses the record.
        attacks: cost of each attack, in order.
        passes: {"forward": n, "backward": n}, over all images and attacks.
        health: the warnings.
        files: sha256 of samples.parquet and adversarials.safetensors, by file name.
        started, finished: times in UTC, ISO 8601.
        extra: further top-level fields, such as those of a randomized defense or of corruptions.
        folder: folder of the record; not in the file.
    """

    job: Job
    key: str
    robench_version: str
    git: Mapping[str, Any] | None
    command: str
    clean_accuracy: Accuracy
    robust_accuracy: Accuracy
    attacks: tuple[AttackCost, ...]
    passes: Mapping[str, int]
    seconds: float
    health: tuple[ResultWarning, ...]
    device: str
    platform: Mapping[str, str]
    started: str
    finished: str
    files: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        job = self.job
        clean, robust = (f"{percent(a)} % {interval(a)}" for a in (self.clean_accuracy, self.robust_accuracy))
        run = f"{job.defense.name}, {job.suite.name}, {job.threat}, n={job.n}"
        return f"Record({run}: clean {clean}, robust {robust})"

    @property
    def warnings(self) -> tuple[ResultWarning, ...]:
        """Reasons why the evaluation may have failed; empty if there are none. In record.json: `health`."""
        return self.health

    @property
    def corrupted(self) -> bool:
        """Whether this is a run under corruptions, without attacks."""
        return "corruptions" in self.extra

    @property
    def is_estimate(self) -> bool:
        """Whether the suite attacked a random sample of the images only (`robench.records.estimate`)."""
        return "estimate" in self.extra or self.job.half_width > 0

    def to_dict(self) -> dict[str, Any]:
        """The content of record.json, with its fields in the order of the file."""
        fields = as_json(self)
        job = fields.pop("job")
        extra = fields.pop("extra")
        del fields["folder"]
        if not self.job.defense.state_sha256:
            del job["defense"]["state_sha256"]
        if not self.job.half_width:
            del job["half_width"]
        merged = {"schema": SCHEMA, **fields, **job, **extra}
        known = json_files.schema("record")["required"]
        return {name: merged[name] for name in [*known, *sorted(set(merged) - set(known))]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], folder: Path | None = None) -> "Record":
        """Create a record from the content of a record.json.

        Raises:
            ResourceError: if it violates the schema; the message names the first such field.
        """
        json_files.validate(content, "record")
        rest = {name: value for name, value in content.items() if name != "schema"}
        job = {f.name: rest.pop(f.name) for f in dataclasses.fields(Job) if f.name in rest}
        job["defense"] = DefenseFacts(**job["defense"])
        attacks = tuple(job["suite"]["attacks"])
        job["suite"] = SuiteFacts(suite_name(job["suite"]["name"], attacks), attacks)
        job["dataset"] = DatasetFacts(**job["dataset"])
        fields = {f.name: rest.pop(f.name) for f in dataclasses.fields(cls) if f.name in rest}
        for name in ("clean_accuracy", "robust_accuracy"):
            fields[name] = Accuracy.read(fields[name])
        fields["attacks"] = tuple(AttackCost(**entry) for entry in fields["attacks"])
        fields["health"] = tuple(ResultWarning(**entry) for entry in fields["health"])
        return cls(job=Job(**job), extra=rest, folder=folder, **fields)

    def encode(self) -> bytes:
        """The bytes of record.json.

        Raises:
            ResourceError: if it violates the schema.
        """
        content = self.to_dict()
        json_files.validate(content, "record")
        return strict_json.dumps(content)


def suite_name(name: str, attacks: Sequence[str]) -> str:
    """The canonical name of a record's suite. If the name consists of specs, these become canonical.

    Records of older releases have the specs as the user typed them. A name that does not match `attacks` is unchanged.
    """
    canonical = "+".join(attacks)
    if name == canonical or len(name) > 100 * len(canonical) + 1000:
        return name
    try:
        pieces = specs.split(name, "+")
        same = len(pieces) == len(attacks) and all(map(_means, pieces, attacks))
    except UsageError:
        return name
    return like(name, canonical) if same else name


def _means(written: str, canonical: str) -> bool:
    """Whether a spec as written means `canonical`. Defaults of attacks from other packages are ignored, because reading
    them would import the packages."""
    spec = specs.parse(written)
    if spec.name == CORRUPTION:
        return str(specs.build(spec, Corruption)) == canonical
    if not registry.attacks.holder(spec.name).startswith("robench."):
        return str(spec) == canonical
    return str(registry.attacks.canonical(spec)) == canonical


def read_record(path: Path | str) -> Record:
    """Read a record from its folder, or from the path of its record.json.

    Raises:
        ResourceError: if it is missing, truncated, not JSON or violates the schema; the message names the field.
    """
    path = Path(path)
    with json_files.named(path, "robench run"):
        file = path if path.is_file() else path / FILE
    with json_files.named(file, "robench run"):
        return decode(json_files.read_limited(file), file.parent)


def decode(encoded: bytes, folder: Path | None = None) -> Record:
    """Decode a record.json of this or an older schema. Its strings are `Written`.

    Raises:
        ResourceError: if it is truncated, not JSON, of a newer schema or violates it; the message names the field.
    """
    file = folder / FILE if folder else FILE
    content = json_files.parse(encoded, file, "repeat the run with --fresh")
    return Record.from_dict(migrate(content), folder)


def migrate(content: Any) -> Any:
    """Convert the content of a record.json to the current schema.

    Raises:
        ResourceError: when its schema is newer.
    """
    version = content.get("schema") if isinstance(content, Mapping) else None
    if isinstance(version, int) and version > SCHEMA:
        raise ResourceError(
            f"record schema {version} is newer than this robench reads ({SCHEMA}): pip install --upgrade robench"
        )
    while version in MIGRATIONS and version != SCHEMA:
        content = {**MIGRATIONS[version](dict(content)), "schema": version + 1}
        version += 1
    return content


def stable(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a record.json without the fields that may differ between two runs of one job."""
    kept = {name: value for name, value in content.items() if name not in VOLATILE}
    kept["attacks"] = [{k: v for k, v in entry.items() if k != "seconds"} for entry in content["attacks"]]
    return kept


def stable_digest(content: Mapping[str, Any]) -> str:
    """sha256 over `stable(content)`, equal for two runs with bit-identical results."""
    return digest(stable(content))


def digest(content: Any) -> str:
    """sha256 over JSON content, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def as_json(value: Any) -> Any:
    """`value` with data classes and mappings as dicts, and tuples as lists."""
    if dataclasses.is_dataclass(value):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: as_json(item) for name, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value
