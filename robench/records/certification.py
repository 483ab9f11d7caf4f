"""certification.json and bounds.parquet: lower bounds on robust accuracy for each image, and upper bounds by attacks.

They are in a separate folder beside the records of attacks: <results>/<protocol>/<defense>/<method>. Lower bounds are
not ranked.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from robench.core import strict_json
from robench.core.errors import ResourceError
from robench.core.io import Content, write_whole
from robench.records import json_files
from robench.records.reading import LeftOut, read_all
from robench.records.record import DatasetFacts, DefenseFacts, digest
from robench.records.store import is_current, supersede
from robench.statistics.accuracy import Accuracy

SCHEMA = 1
FILE = "certification.json"
ROWS = "bounds.parquet"
COLUMNS = ("id", "label", "prediction", "radius", "votes", "fooled_by", "attacked_prediction", "digest")
# Maximum number of radii of a curve.
_POINTS = 12


@dataclass(frozen=True)
class Attacked:
    """The upper bound: attacks on the classifier that the lower bound holds for, at the radius of the threat model.

    Attributes:
        suite: specs of the attacks, in order.
        draws: noise draws per step of the search; verdicts take as many draws as the method.
        accuracy: robust accuracy after the attacks.
        attacked: number of images that were attacked: neither certified at the radius nor misclassified.
    """

    suite: tuple[str, ...]
    draws: int
    accuracy: Accuracy
    attacked: int


@dataclass(frozen=True)
class Certification:
    """Lower and upper bounds on the robust accuracy of a defense, the content of certification.json.

    Attributes:
        method: canonical spec of the certifier, such as "smoothing(draws=10000)".
        norm: norm of the radii.
        alpha: probability that the bound of an image is wrong; 0 for a deterministic proof.
        facts: further parameters of the proof, such as {"sigma": 0.25}.
        of_vote: whether the bounds hold for the majority vote of a randomized defense.
        threat: norm and radius of `certified` and `attacked`, such as "L2:0.5".
        certified: certified accuracy at this radius, the lower bound: images with the true label and a larger radius.
        curve: radii, from 0 up, with the certified accuracy at each; of crown and ibp, only the radius of `threat`.
        average_radius: mean certified radius, where wrong and abstained predictions count as 0 (arXiv 2001.02378).
        abstained: number of images without a certified prediction.
        attacked: the upper bound; None without an attack.
        files: sha256 of the other files, by name.
        folder: folder of the certification; not in the file.
    """

    defense: DefenseFacts
    dataset: DatasetFacts
    protocol: str
    threat: str
    n: int
    batch_size: int
    seed: int
    method: str
    norm: str
    alpha: float
    of_vote: bool
    facts: Mapping[str, Any]
    certified: Accuracy
    curve: tuple[tuple[float, Accuracy], ...]
    average_radius: float
    abstained: int
    attacked: Attacked | None
    passes: Mapping[str, int]
    robench_version: str
    git: Mapping[str, Any] | None
    command: str
    device: str
    platform: Mapping[str, str]
    seconds: float
    started: str
    finished: str
    files: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """sha256 of all settings that affect the result."""
        return key_of(self, self.attacked.suite if self.attacked else ())

    def to_dict(self) -> dict[str, Any]:
        """The content of certification.json."""
        content = asdict(self)
        del content["folder"]
        content["curve"] = [{"radius": radius, **asdict(accuracy)} for radius, accuracy in self.curve]
        return json.loads(json.dumps({"schema": SCHEMA, "key": self.key, **content}))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], folder: Path | None = None) -> "Certification":
        """Create a certification from the content of its file.

        Raises:
            ResourceError: if it violates the schema; the message names the field.
        """
        json_files.validate(content, "certification")
        values = {item.name: content[item.name] for item in dataclasses.fields(cls) if item.name in content}
        values["defense"] = DefenseFacts(**content["defense"])
        values["dataset"] = DatasetFacts(**content["dataset"])
        values["certified"] = Accuracy.read(content["certified"])
        values["curve"] = tuple((point["radius"], Accuracy.read(point)) for point in content["curve"])
        if attacked := content["attacked"]:
            parsed = {"suite": tuple(attacked["suite"]), "accuracy": Accuracy.read(attacked["accuracy"])}
            values["attacked"] = Attacked(**{**attacked, **parsed})
        return cls(**values, folder=folder)


def key_of(about: Any, suite: Sequence[str]) -> str:
    """sha256 over what decides a certification.

    Args:
        about: has the fields of `Certification` that decide it.
        suite: specs of the attacks.
    """
    defense, dataset = about.defense, about.dataset
    decisive = {
        "schema": SCHEMA,
        "defense": [defense.name, defense.card_digest, defense.checkpoint_sha256, defense.state_sha256],
        "dataset": [dataset.name, dataset.split, dataset.digest],
        "n": about.n,
        "threat": about.threat,
        "method": about.method,
        "attacks": list(suite),
        "seed": about.seed,
        "batch_size": about.batch_size,
    }
    return digest(decisive)


@dataclass(frozen=True)
class Rows:
    """The rows of bounds.parquet as arrays, (N,) each, in the order of the dataset.

    Attributes:
        prediction: certified class, -1 for none.
        radius: certified radius of that prediction, at least 0.
        votes: draws for that prediction; zeros for a method that does not vote.
        fooled_by: "" where no attack changed the prediction, "clean" where it is wrong without one, else the attack.
        attacked_prediction: class that wins at the adversarial example, or on the clean image for "clean"; -1 else.
        digest: sha256 of the image.
    """

    id: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    radius: np.ndarray
    votes: np.ndarray
    fooled_by: np.ndarray
    attacked_prediction: np.ndarray
    digest: np.ndarray

    def holds(self, radius: float) -> np.ndarray:
        """Images that are certified with the true label at a radius, bool (N,); at 0, with a certified prediction.

        The ball of the radius must lie inside the certified one, whose edge is not certified.
        """
        return (self.prediction == self.label) & (self.radius > radius)

    def certified(self, radius: float) -> Accuracy:
        """The certified accuracy at a radius."""
        return Accuracy.of(int(self.holds(radius).sum()), len(self.id))

    @property
    def average_radius(self) -> float:
        """The mean radius, see `Certification`."""
        return float(np.where(self.prediction == self.label, self.radius, 0.0).mean())

    def curve(self, at: float) -> tuple[tuple[float, Accuracy], ...]:
        """Certified accuracy from radius 0 to the first at which nothing is left, with `at` among the radii."""
        largest = max(float(self.radius.max(initial=0.0)), at)
        step = next(step for step in _steps(largest / _POINTS))
        radii = {round(i * step, 10) for i in range(math.ceil(largest / step) + 1)} | {at}
        return tuple((radius, self.certified(radius)) for radius in sorted(radii))

    def encode(self) -> bytes:
        """The bytes of bounds.parquet."""
        import pyarrow as pa

        from robench.records import samples

        schema = _columns()
        return samples.encode_table(
            pa.table([samples.column(getattr(self, f.name), f.type) for f in schema], schema=schema)
        )


@cache
def _columns() -> Any:
    """The pyarrow schema of bounds.parquet; imported here because boards read only certification.json."""
    import pyarrow as pa

    kinds = {"radius": pa.float64(), "fooled_by": pa.string(), "digest": pa.string()}
    return pa.schema([(name, kinds.get(name, pa.int64())) for name in COLUMNS])


def _steps(least: float) -> Iterable[float]:
    """The numbers 1, 2.5 and 5 times a power of ten from `least`, in increasing order."""
    power = math.floor(math.log10(least)) if least > 0 else -2
    return (
        step
        for exponent in range(power, power + 3)
        for step in (f * 10.0**exponent for f in (1, 2.5, 5))
        if step >= least
    )


def write(folder: Path, new: Certification, rows: Rows, more: Mapping[str, Content]) -> Certification:
    """Write a certification atomically, certification.json last.

    Args:
        more: contents of further files by name: the adversarial examples.

    Raises:
        ResourceError: when the disk is full or the folder cannot be written.
    """

    def encode(digests: Mapping[str, str]) -> bytes:
        nonlocal new
        new = replace(new, files=dict(digests), folder=folder)
        content = new.to_dict()
        json_files.validate(content, "certification")
        return strict_json.dumps(content)

    write_whole(folder, {ROWS: rows.encode(), **more, FILE: encode})
    return new


def move_aside(folder: Path, key: str) -> None:
    """Move the certification in `folder`, unless it has this key, to `superseded/`, where boards do not look.

    Raises:
        ResourceError: when the folder cannot be written.
    """
    try:
        is_other = read(folder).key != key
    except ResourceError:
        is_other = True
    if is_other:
        supersede(folder, FILE, read, (ROWS,))


def read(folder: Path | str) -> Certification:
    """Read the certification in a folder.

    Raises:
        ResourceError: when it is missing, not JSON or breaks the schema.
    """
    file = Path(folder) / FILE
    with json_files.named(file, "robench certify"):
        content = json_files.parse(json_files.read_limited(file), file, "repeat robench certify with --fresh")
        return Certification.from_dict(content, file.parent)


def read_rows(folder: Path | str) -> Rows:
    """Read the rows of a certification.

    Raises:
        ResourceError: when the file is missing, damaged or has other columns.
    """
    from robench.records import samples

    table = samples.read_table(Path(folder) / ROWS, (_columns(),), "repeat robench certify with --fresh")
    return Rows(**{name: table[name].to_numpy() for name in table.schema.names})


def collect(roots: Iterable[Path]) -> tuple[list[Certification], list[LeftOut]]:
    """All certifications under some folders, and those that cannot be read."""
    return read_all(FILE, roots, lambda file: read(file.parent), is_current)
