"""The record of a run: its fields, its key, reading it back. `record.schema.json` documents each field."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from robench.core import registry, specs, strict_json
from robench.core.errors import ResourceError, UsageError
from robench.core.io import read_ordinary
from robench.core.trust import like, written
from robench.corruption.suite import SPEC as CORRUPTION
from robench.corruption.suite import Corruption
from robench.engine.outcome import AttackCost, ResultWarning
from robench.statistics.accuracy import Accuracy, interval, percent
from robench.threats.threat import Threat

SCHEMA = 1
# What a key is made of; another layout of the file alone does not raise it, so that old records answer still.
_KEY = 1
# schema -> what makes a record.json of the next one out of one of that schema.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
FILE = "record.json"
# What may differ between two runs with one outcome; all else in record.json is the same, byte for byte.
VOLATILE = ("command", "seconds", "started", "finished", "device", "platform", "git")


@dataclass(frozen=True)
class DefenseFacts:
    """Which defense: digests are sha256, empty where there is no card or checkpoint.

    `classifier` is the defense whose classifier stands behind a purifier. `state_sha256` is that of the loaded weights,
    the same however they are named and kept; empty in records older than it, which leave it out of the file.
    """

    name: str
    family: str = ""
    card_digest: str = ""
    checkpoint_sha256: str = ""
    parameters: int | None = None
    classifier: str = ""
    state_sha256: str = ""


@dataclass(frozen=True)
class SuiteFacts:
    """Which attacks: canonical specs, in order."""

    name: str
    attacks: tuple[str, ...]


@dataclass(frozen=True)
class DatasetFacts:
    """Which images: `digest` is `Images.digest`."""

    name: str
    split: str
    digest: str


@dataclass(frozen=True)
class Job:
    """What was asked, known before the run starts; most of it decides the outcome.

    Attributes:
        protocol: its name, or any short name for an ad hoc choice of images and threat.
        threat: canonical, "Linf:8/255".
        knowledge: "full", "bpda", "oblivious", "transfer:NAME" or "surrogate:NAME".
        precision: "fp32" or "bf16", resolved ("auto" decides nothing).
        batch_size: lanes, resolved.
        n: images.
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

    @cached_property
    def threat_model(self) -> Threat:
        """The threat as a value.

        Raises:
            UsageError: when there is none, as under corruptions, or its text is malformed.
        """
        return Threat.parse(self.threat)

    @property
    def key(self) -> str:
        """sha256 over what decides the outcome; names of suite and protocol, say, do not."""
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
        return _digest(decisive)


@dataclass(frozen=True)
class Record:
    """What a run leaves behind, as in record.json.

    Attributes:
        job: what was asked; in the file its fields stand beside the others.
        key: of the job; a record answers for a job with the same key.
        attacks: one entry an attack, in order.
        passes: {"forward": images, "backward": images}.
        files: sha256 of samples.parquet and adversarials.safetensors, by file name.
        started, finished: ISO 8601, UTC.
        extra: top-level fields of other kinds of run, kept as they were read.
        folder: where it was read from or written to; not in the file.
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
        figures = ", ".join(
            f"{name} {percent(share)} % {interval(share)}"
            for name, share in (("clean", self.clean_accuracy), ("robust", self.robust_accuracy))
        )
        return f"Record({job.defense.name}, {job.suite.name}, {job.threat}, n={job.n}: {figures})"

    @property
    def corrupted(self) -> bool:
        """Whether it is of a run under corruptions, which never stands beside attacks."""
        return "corruptions" in self.extra

    def to_dict(self) -> dict[str, Any]:
        """The content of record.json, in its order."""
        fields = _plain(self)
        job = fields.pop("job")
        extra = fields.pop("extra")
        del fields["folder"]
        if not self.job.defense.state_sha256:
            del job["defense"]["state_sha256"]
        merged = {"schema": SCHEMA, **fields, **job, **extra}
        known = _schema()["required"]
        return {name: merged[name] for name in [*known, *sorted(set(merged) - set(known))]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], folder: Path | None = None) -> "Record":
        """The record in the content of a record.json.

        Raises:
            ResourceError: when it breaks the schema, naming the first field that does.
        """
        validate(content)
        rest = {name: value for name, value in content.items() if name != "schema"}
        job = {f.name: rest.pop(f.name) for f in dataclasses.fields(Job)}
        job["defense"] = DefenseFacts(**job["defense"])
        attacks = tuple(job["suite"]["attacks"])
        job["suite"] = SuiteFacts(suite_name(job["suite"]["name"], attacks), attacks)
        job["dataset"] = DatasetFacts(**job["dataset"])
        own = {f.name: rest.pop(f.name) for f in dataclasses.fields(cls) if f.name in rest}
        for name in ("clean_accuracy", "robust_accuracy"):
            own[name] = Accuracy(**own[name] | {"interval": tuple(own[name]["interval"])})
        own["attacks"] = tuple(AttackCost(**entry) for entry in own["attacks"])
        own["health"] = tuple(ResultWarning(**entry) for entry in own["health"])
        return cls(job=Job(**job), extra=rest, folder=folder, **own)

    def encode(self) -> bytes:
        """record.json, ending in a newline.

        Raises:
            ResourceError: when it breaks the schema.
        """
        content = self.to_dict()
        validate(content)
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        # A command line may hold bytes that are no UTF-8, as lone surrogates: JSON writes those as escapes.
        return text.encode(errors="backslashreplace")


def suite_name(name: str, attacks: Sequence[str]) -> str:
    """The canonical name of a record's suite: of one that was written as specs, its canonical specs.

    Records of older releases hold the specs as they were typed. A name that says something else than `attacks`
    stays as it is.
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
    """Whether a spec as it was written is `canonical`. The defaults of attacks of other packages are not looked up:
    that would load them."""
    spec = specs.parse(written)
    if spec.name == CORRUPTION:
        return str(specs.build(spec, Corruption)) == canonical
    if not registry.attacks.holder(spec.name).startswith("robench."):
        return str(spec) == canonical
    return str(specs.canonical(spec, registry.attacks.get(spec.name))) == canonical


def read_record(path: Path | str) -> Record:
    """Read a record from its folder, or from the path of its record.json.

    Raises:
        ResourceError: when it is missing, truncated, not JSON or breaks the schema, naming the field.
    """
    path = Path(path)
    file = path if path.is_file() else path / FILE
    try:
        encoded = read_ordinary(file, strict_json.LONGEST + 1)
    except OSError as error:
        raise ResourceError(
            f"{file}: {error.strerror or error}: give a folder that robench run has written"
        ) from error
    try:
        return decode(encoded, file.parent)
    except ResourceError as error:
        raise ResourceError(f"{file}: {error}") from None


def decode(encoded: bytes, folder: Path | None = None) -> Record:
    """The record in the bytes of a record.json, of this schema or an older one; its strings are `Written`.

    Raises:
        ResourceError: when it is truncated, not JSON, of a newer schema or breaks it, naming the field.
    """
    try:
        content = strict_json.loads(encoded)
        content = written(content, f"{folder / FILE}" if folder else FILE)
    except ValueError as error:
        raise ResourceError(f"truncated or not JSON ({error}): repeat the run with --fresh") from error
    return Record.from_dict(migrate(content), folder)


def migrate(content: Any) -> Any:
    """The content of a record.json in the schema of today.

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


def validate(content: Any) -> None:
    """Hold the content of a record.json against the schema.

    Raises:
        ResourceError: naming the first field that is missing or wrong.
    """
    errors = sorted(_validator().iter_errors(content), key=lambda e: [str(p) for p in e.absolute_path])
    if not errors:
        return
    place = ".".join(str(part)[:40] for part in errors[0].absolute_path) or "the record"
    message = errors[0].message if len(errors[0].message) <= 160 else errors[0].message[:157] + "..."
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    raise ResourceError(f"{place} breaks record schema {SCHEMA}: {message}{more}")


def stable(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a record.json without the fields that may differ between two runs of one job."""
    kept = {name: value for name, value in content.items() if name not in VOLATILE}
    kept["attacks"] = [{k: v for k, v in entry.items() if k != "seconds"} for entry in content["attacks"]]
    return kept


def stable_digest(content: Mapping[str, Any]) -> str:
    """sha256 over `stable(content)`: equal for two runs that found the same, bit for bit."""
    return _digest(stable(content))


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@cache
def _schema() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("record.schema.json").read_bytes())


@cache
def _validator() -> Any:
    # Imported here: only reading and writing a record need it, and it takes a tenth of a second.
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    # JSON Schema takes 30.0 for an integer; what counts images here is an int.
    types = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    return extend(Draft202012Validator, type_checker=types)(_schema())
