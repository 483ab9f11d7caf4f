"""A record with everything that is needed to verify it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from robench.attacks._base import Attack
from robench.attacks.build import build_attacks
from robench.core.errors import RobenchError
from robench.data._base import Images
from robench.engine.knowledge import asks_judge
from robench.records import estimate
from robench.records import randomized as draws
from robench.records.certificates import Certificates, certified
from robench.records.record import Record
from robench.threats.threat import Threat


@dataclass(frozen=True)
class Evidence:
    """A record of attacks with its files and the images of its dataset.

    Attributes:
        rows: the columns of samples.parquet.
    """

    record: Record
    rows: dict[str, list[Any]]
    certificates: Certificates
    images: Images

    @cached_property
    def threat(self) -> Threat:
        return self.record.job.threat_model

    @property
    def draws(self) -> int:
        """Number of the judge's noise draws; 1 for a deterministic defense."""
        return self.record.extra.get(draws.FIELD, {}).get("draws", 1)

    @property
    def is_estimate(self) -> bool:
        """Whether the suite was run on a sample of the images."""
        return estimate.FIELD in self.record.extra

    @property
    def asks(self) -> bool:
        """Whether the attacker learned each verdict."""
        return asks_judge(self.record.job.knowledge)

    @cached_property
    def attacked(self) -> list[int]:
        """The rows that have a certificate."""
        return certified(self.rows["fooled_by"], self.rows["distance"], self.draws > 1)

    @cached_property
    def proven(self) -> list[int]:
        """The rows that a certifier proves, which are not attacked."""
        return [row for row, by in enumerate(self.rows.get("proven_by", ())) if by]

    @cached_property
    def attacks(self) -> list[Attack[Any] | None]:
        """The attacks of the record's specs; None for an attack that cannot be built here."""
        return [_built(spec, self.threat) for spec in self.record.job.suite.attacks]


def _built(spec: str, threat: Threat) -> Attack[Any] | None:
    try:
        return build_attacks([spec], threat)[0][1]
    except RobenchError:
        return None
