"""Certify defenses, attack what is not certified, and save both bounds."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from robench.attacks._base import Attack
from robench.attacks.build import build_attacks
from robench.catalog import Protocol, find_suite
from robench.certification._base import ABSTAINED, Bounds, Case, Certifier, find_certifier
from robench.certification.run import bounds_of
from robench.core import registry
from robench.core.errors import ResourceError, UsageError
from robench.core.io import claim
from robench.core.torch_state import standard_state
from robench.engine.batched_model import frozen
from robench.engine.checkpoint import FolderStore
from robench.engine.device import choose_batch_size, choose_device
from robench.engine.setup import Setup
from robench.evaluation.attack_vote import SEARCH_DRAWS, UpperBound, attack_rest
from robench.evaluation.options import Options
from robench.evaluation.planning import load_all
from robench.evaluation.progress import Callback, shown
from robench.evaluation.protocol import choose_protocol
from robench.records import certification as files
from robench.records import provenance
from robench.records.certification import Attacked, Certification, Rows
from robench.records.record import DatasetFacts, DefenseFacts
from robench.records.remote import local_copy, synced
from robench.records.samples import input_digests
from robench.records.store import PARTIAL, iso, record_folder
from robench.statistics.accuracy import Accuracy

# The attack on what is not certified: SmoothAdv's objective with APGD's step sizes.
ATTACK = 'apgd(loss="ce", steps=40)'
# The threat of a certification in L2 that names none.
THREAT = "L2:0.5"


@standard_state()
def certify(
    defense: str,
    method: str = "smoothing",
    *,
    protocol: str | None = None,
    dataset: str | None = None,
    threat: str | None = None,
    samples: int | None = None,
    attack: str | None = ATTACK,
    progress: bool | Callback | None = None,
    **options: Any,
) -> Certification:
    """Certify a lower bound on robust accuracy, and attack for an upper bound; a repeated call resumes.

    Args:
        defense: name of a defense, as in `load_defense`.
        method: a certifier, such as "crown" or "smoothing(draws=10000)".
        protocol: as in `robench.run`.
        dataset: as in `robench.run`.
        samples: as in `robench.run`.
        threat: norm and radius of both bounds; None for the threat model of the protocol, or without a `protocol`
            "L2:0.5" if the method is "smoothing".
        attack: suite or attacks for the images that are not certified at this radius; None for no upper bound.
        progress: True for a progress bar on stderr; or a function, as in `robench.attack`.
        **options: the fields of `robench.evaluation.options.Options`.

    Returns:
        A `Certification`: the lower bound `certified`, the upper bound `attacked.accuracy` on the same classifier,
        certified accuracy at other radii (`curve`), the mean certified radius (`average_radius`) and more.

    Raises:
        RobenchError: for every error that a user can fix.
    """
    chosen = choose_protocol(protocol, dataset, threat or default_threat(method, protocol), samples)
    with shown(progress) as update:
        (result,) = certify_all([defense], method, chosen, Options(progress=update, **options), attack)
    return result


def default_threat(method: str, protocol: str | None) -> str | None:
    """The threat model if none is given; None for that of the protocol."""
    return None if protocol or not find_certifier(method).norm else THREAT


@standard_state()
def certify_all(
    names: Sequence[str], method: str, protocol: Protocol, options: Options, attacks: str | None = ATTACK
) -> Iterator[Certification]:
    """Certify defenses one after another, and attack them for an upper bound; saved results are reused.

    Args:
        method: spec of a certifier.
        protocol: images and threat model; both bounds are stated at its radius.
        attacks: suite or specs for the images that are not certified at that radius; None for no upper bound.

    Raises:
        RobenchError: for every error that a user can fix.
    """
    certifier, device = find_certifier(method), choose_device(options.device)
    method = str(registry.certifiers.canonical(method))
    threat = protocol.threat
    if threat is None or threat.name or certifier.norm not in ("", threat.norm):
        norm = certifier.norm or "Linf"
        raise UsageError(
            f"{method} certifies {norm} radii, but the threat is {threat or 'none'}: add --threat, such as {norm}:0.5"
        )
    built = build_attacks(find_suite(attacks).specs(threat.norm), threat) if attacks else []
    for loaded, images in load_all(names, protocol, options, device):
        # The rows of a call are pairs of image and draw, so that it is full even for a single image.
        size = choose_batch_size(options.batch_size, device, images.x.shape[-1], 1 << 20)
        setup = Setup(loaded.defense, options.seed, device, size, stochastic=loaded.defense.stochastic)
        case = Case(loaded, images, setup, threat)
        with frozen(loaded.defense):
            certifier.check(case)
            yield _Job(case, certifier, method, built, protocol.name, options).result()


@dataclass(frozen=True)
class _Job:
    """One certification, from its names to its files."""

    case: Case
    certifier: Certifier
    method: str
    attacks: list[tuple[str, Attack]]
    protocol: str
    options: Options

    def result(self) -> Certification:
        """The saved certification, or a new one."""
        about, options, device = self._about(), self.options, self.case.setup.device
        threat = self.case.threat
        assert threat is not None
        suite = tuple(spec for spec, _ in self.attacks)
        key = files.key_of(SimpleNamespace(**about), suite)
        folder = record_folder(
            local_copy(options.results), self.protocol, about["defense"].name, self.method, seed=options.seed
        )
        with claim(folder), synced(folder):
            if not options.fresh and (saved := _saved(folder, key)):
                return saved
            store = FolderStore(folder / PARTIAL, key, provenance.conditions(device), options.note)
            if options.fresh:
                store.drop()
            started = store.begin(datetime.now(UTC).isoformat())
            if store.resumes:
                options.note(f"resuming from {store.folder}")
            start_time = time.monotonic()
            bounds, seconds = bounds_of(
                self.case,
                self.certifier,
                self.method,
                options.workers,
                store=store,
                progress=options.progress,
                note=options.note,
            )
            upper = (
                attack_rest(self.case, self.certifier, self.attacks, bounds, folder, key, options)
                if suite
                else None
            )
            rows = self._rows(bounds, upper)
            new = Certification(
                **about,
                protocol=self.protocol,
                norm=self.certifier.norm or threat.norm,
                alpha=self.certifier.alpha,
                of_vote=self.certifier.of_vote,
                facts=dict(self.certifier.facts(self.case)),
                **self._figures(rows, upper, suite),
                passes=_passes(bounds, upper),
                robench_version=provenance.robench_version(),
                git=provenance.git_state(),
                command=options.command or "robench.certify",
                device=provenance.device_name(device),
                platform=provenance.platform_facts(),
                seconds=round(max(seconds, time.monotonic() - start_time), 3),
                started=iso(datetime.fromisoformat(started)),
                finished=iso(datetime.now(UTC)),
            )
            files.move_aside(folder, key)
            new = files.write(folder, new, rows, upper.files if upper else {})
            store.drop()
            return new

    def _about(self) -> dict[str, Any]:
        """What decides the result, as fields of `Certification`."""
        loaded, images = self.case.loaded, self.case.images
        return {
            "defense": DefenseFacts.of(loaded),
            "dataset": DatasetFacts(images.name, images.split, images.digest),
            "n": len(images),
            "threat": str(self.case.threat),
            "method": self.method,
            "seed": self.options.seed,
            "batch_size": self.case.setup.batch_size,
        }

    def _rows(self, bounds: Bounds, upper: UpperBound | None) -> Rows:
        images, n = self.case.images, len(self.case.images)
        return Rows(
            id=images.ids.numpy(),
            label=images.y.numpy(),
            prediction=bounds.prediction.numpy(),
            radius=bounds.radius.numpy(),
            votes=bounds.votes.numpy(),
            fooled_by=np.array(upper.fooled_by if upper else [""] * n, dtype=object),
            attacked_prediction=(upper.prediction if upper else torch.full((n,), ABSTAINED)).numpy(),
            digest=np.array(input_digests(images.x), dtype=object),
        )

    def _figures(self, rows: Rows, upper: UpperBound | None, suite: tuple[str, ...]) -> dict[str, Any]:
        """The fields of `Certification` that follow from its rows."""
        assert self.case.threat is not None
        eps, attacked = self.case.threat.eps, None
        if upper is not None:
            draws = SEARCH_DRAWS if self.certifier.of_vote else 1
            robust = Accuracy.of(upper.fooled_by.count(""), len(rows.id))
            attacked = Attacked(suite, draws, robust, upper.attacked)
        return {
            "certified": rows.certified(eps),
            # A certifier without a norm proves a single radius.
            "curve": rows.curve(eps) if self.certifier.norm else ((eps, rows.certified(eps)),),
            "average_radius": rows.average_radius,
            "abstained": int((rows.prediction == ABSTAINED).sum()),
            "attacked": attacked,
        }


def _saved(folder: Path, key: str) -> Certification | None:
    """The certification in a folder if it is of this key; anything else is moved aside by the next write."""
    if not (folder / files.FILE).is_file():
        return None
    try:
        saved = files.read(folder)
        return saved if saved.key == key and files.read_rows(folder) else None
    except ResourceError:
        return None


def _passes(bounds: Bounds, upper: UpperBound | None) -> dict[str, int]:
    search = upper.passes if upper else {"forward": 0, "backward": 0}
    return {"forward": int(bounds.forward.sum()) + search["forward"], "backward": search["backward"]}
