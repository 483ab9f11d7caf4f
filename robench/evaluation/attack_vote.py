"""The attack beside a bound: an upper bound on the accuracy of the same classifier at the same radius."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robench.attacks._base import Attack
from robench.certification._base import ABSTAINED, Bounds, Case, Certifier
from robench.certification.run import verdicts_of
from robench.certification.votes import SoftVote
from robench.core.io import Content
from robench.data._lazy_images import lazily
from robench.engine.attack_context import Samples
from robench.engine.checkpoint import FolderStore
from robench.engine.outcome import Outcome
from robench.engine.run import Run
from robench.engine.workers import Processes, choose_workers
from robench.evaluation.options import Options
from robench.records import certificates
from robench.records.provenance import conditions
from robench.records.store import PARTIAL

# Noise draws of each step of a search on a majority vote. Fewer give a noisy gradient, more cost more passes.
SEARCH_DRAWS = 16


@dataclass(frozen=True)
class UpperBound:
    """The result of the attack on N images.

    Attributes:
        fooled_by: "" where the prediction is right, "clean" where it is wrong without an attack, else the attack.
        prediction: the wrong class that wins, int64 (N,); ABSTAINED elsewhere.
        attacked: number of images that were attacked.
        passes: {"forward": n, "backward": n}, of the search.
        files: contents of the adversarial examples' file by its name; empty if there are none.
    """

    fooled_by: list[str]
    prediction: Tensor
    attacked: int
    passes: dict[str, int]
    files: dict[str, Content]


def attack_rest(
    case: Case,
    certifier: Certifier,
    attacks: list[tuple[str, Attack]],
    bounds: Bounds,
    folder: Path,
    key: str,
    options: Options,
) -> UpperBound:
    """Attack the images that are not certified with their label at the radius of the threat.

    An image counts as fooled only if the classifier that the bounds are about assigns another class to the adversarial
    example; a vote that does not prove a winner does not count.

    Args:
        folder: folder of the certification, where an interrupted attack is saved.
        key: identifies the certification.
    """
    images, threat = case.images, case.threat
    assert threat is not None
    upper = UpperBound(
        [""] * len(images), torch.full((len(images),), ABSTAINED), 0, {"forward": 0, "backward": 0}, {}
    )
    proven = (bounds.prediction == images.y) & (bounds.radius > threat.eps)
    rows = (~proven).nonzero().flatten().tolist()
    _judge(case, certifier, images.x[rows], rows, "clean", upper, options)
    rows = [row for row in rows if not upper.fooled_by[row]]
    if not rows:
        return upper
    outcome = _search(case, certifier, attacks, rows, folder, key, options)
    suite = "+".join(spec for spec, _ in attacks)
    _judge(case, certifier, outcome.x_adv, rows, suite, upper, options)
    fooled = [place for place, row in enumerate(rows) if upper.fooled_by[row]]
    # Only what fools the vote is kept, whatever the search's own draws said.
    kept = replace(
        outcome, fooled_by=[suite if place in fooled else "" for place in range(len(rows))], of_draws=1
    )
    subset = replace(images, x=images.x[rows], y=images.y[rows], ids=images.ids[rows])
    return replace(
        upper,
        attacked=len(rows),
        passes={name: count * _draws(certifier) for name, count in outcome.passes.items()},
        files={certificates.FILE: certificates.encode(kept, subset, threat)} if fooled else {},
    )


def _draws(certifier: Certifier) -> int:
    return SEARCH_DRAWS if certifier.of_vote else 1


def _judge(
    case: Case, certifier: Certifier, x: Any, rows: list[int], name: str, upper: UpperBound, options: Options
) -> None:
    """Enter the rows whose images `x` (M, C, H, W) are misclassified into the result, as fooled by `name`."""
    classes = verdicts_of(case, certifier, x, rows, options.workers)
    for row, predicted in zip(rows, classes, strict=True):
        if predicted not in (ABSTAINED, int(case.images.y[row])):
            upper.fooled_by[row], upper.prediction[row] = name, predicted


def _search(
    case: Case,
    certifier: Certifier,
    attacks: list[tuple[str, Attack]],
    rows: list[int],
    folder: Path,
    key: str,
    options: Options,
) -> Outcome:
    """Run the attacks on the classifier that the bounds are about, on some images."""
    setup, images = case.setup, case.images
    if certifier.of_vote:
        model = SoftVote(case.loaded.defense, SEARCH_DRAWS)
        setup = replace(setup, model=model, batch_size=max(1, setup.batch_size // SEARCH_DRAWS))
    store = FolderStore(folder / f"attack{PARTIAL}", key, conditions(setup.device), options.note)
    store.begin(datetime.now(UTC).isoformat())
    workers = choose_workers(options.workers, setup.device, len(rows), setup.model, options.note)
    assert case.threat is not None
    run = Run(
        setup,
        attacks,
        Samples(lazily(images.x[rows]), images.y[rows], images.ids[rows]),
        case.threat,
        executor=Processes(workers),
        store=store,
        progress=options.progress,
        note=options.note,
    )
    outcome = run.outcome()
    # The examples may lie in the files of the store.
    outcome = replace(outcome, x_adv=torch.stack([outcome.x_adv[[row]][0] for row in range(len(rows))]))
    store.drop()
    return outcome
