"""Images that a certifier proves before a run, on which no attack is spent."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robench.attacks._external import ForeignAttack
from robench.certification import Case, Certifier
from robench.certification._base import find_certifier
from robench.certification.run import bounds_of
from robench.core import registry
from robench.core.errors import UsageError
from robench.engine.batched_model import frozen
from robench.engine.checkpoint import FolderStore
from robench.engine.counts import shipped
from robench.engine.knowledge import Attacker
from robench.engine.setup import Setup
from robench.evaluation.options import Options
from robench.evaluation.planning import PlannedRun
from robench.records.provenance import conditions
from robench.records.record import Job
from robench.records.store import PARTIAL
from robench.threats.threat import Threat


@dataclass(frozen=True)
class Proven:
    """The images of a run that a certifier proves.

    Attributes:
        method: canonical spec of the certifier.
        rows: the proven images, bool (n,).
        forward: passes that the certifier spent on all images.
        saved: forward and backward passes that the attacks would have spent on the proven images; empty if unknown.
    """

    method: str
    rows: Tensor
    forward: int
    saved: dict[str, int]

    @property
    def extra(self) -> dict[str, Any]:
        """The field `proven` of the record."""
        fact = {"by": self.method, "images": int(self.rows.sum()), "forward": self.forward}
        return {"proven": fact | ({"saved": self.saved} if self.saved else {})}

    @property
    def names(self) -> list[str]:
        """For each image, the certifier that proves it, or an empty text."""
        return [self.method if proven else "" for proven in self.rows.tolist()]


def check_method(method: str, threat: Threat | None = None) -> tuple[str, Certifier]:
    """The canonical spec of a certifier whose proofs replace attacks, and the certifier.

    Raises:
        UsageError: if it is unknown, its bounds are no proofs of what a run judges, or it has none for the threat.
    """
    certifier = find_certifier(method)
    if certifier.of_vote or certifier.alpha:
        raise UsageError(
            f"--certify-first {method} bounds a majority vote, or may be wrong, and a run judges every draw: choose "
            "crown, or use robench certify"
        )
    if threat and (threat.name or certifier.norm not in ("", threat.norm)):
        raise UsageError(f"no bound known by {method} for {threat}: remove --certify-first")
    return str(registry.certifiers.canonical(method)), certifier


def prove(planned: PlannedRun, job: Job, folder: Path, device: torch.device, options: Options) -> Proven:
    """Prove the images of a planned run by `options.certify_first`; an interrupted proof is resumed.

    Raises:
        UsageError: if the certifier does not suit the defense or the threat.
    """
    assert options.certify_first
    threat = planned.protocol.threat
    if threat is None or planned.attacker is None:
        raise UsageError(f"{planned.suite.name} has no attacker: remove --certify-first")
    if any(isinstance(attack, ForeignAttack) for _, attack in planned.attacks):
        raise UsageError("attacks of other libraries take all images: remove --certify-first")
    method, certifier = check_method(options.certify_first, threat)
    loaded, images = planned.loaded, planned.images
    case = Case(loaded, images, Setup.of(loaded.defense, Attacker(), job, device), threat)
    store = FolderStore(folder / f"proof{PARTIAL}", f"{job.key} {method}", conditions(device), options.note)
    with frozen(loaded.defense):
        certifier.check(case)
        store.begin(datetime.now(UTC).isoformat())
        bounds, _ = bounds_of(
            case,
            certifier,
            method,
            options.workers,
            store=store,
            progress=options.progress,
            note=options.note,
        )
    rows = (bounds.prediction == images.y.cpu()) & (bounds.radius > threat.eps)
    costs = shipped(job.suite.attacks, threat, len(images.classes)) or ()
    saved = {
        name: int(rows.sum()) * sum(getattr(cost, name) for cost in costs) for name in ("forward", "backward")
    }
    return Proven(method, rows, int(bounds.forward.sum()), saved if costs else {})


def drop(folder: Path) -> None:
    """Delete what `prove` saved, after the record is written."""
    FolderStore(folder / f"proof{PARTIAL}", "").drop()
