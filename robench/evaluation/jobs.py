"""The job of a planned run, which its record contains, and its run by the engine."""

from dataclasses import replace
from typing import Any

import torch

from robench.corruption.cache import Cache
from robench.corruption.suite import cells
from robench.data._lazy_images import lazily
from robench.engine.attack_context import Samples
from robench.engine.corruption_run import CorruptionRun
from robench.engine.device import choose_batch_size, choose_precision
from robench.engine.knowledge import Attacker
from robench.engine.run import Run
from robench.engine.setup import Setup
from robench.engine.shares import Deal
from robench.engine.work import Work
from robench.evaluation.options import Options
from robench.evaluation.planning import PlannedRun
from robench.records.record import DatasetFacts, DefenseFacts, Job, SuiteFacts


def job_of(planned: PlannedRun, options: Options, device: torch.device) -> Job:
    """The job of a planned run."""
    loaded, images, protocol = planned.loaded, planned.images, planned.protocol
    corruptions = tuple(map(str, planned.corruptions))
    attacks = corruptions or tuple(spec for spec, _ in planned.attacks)
    return Job(
        defense=DefenseFacts.of(loaded),
        suite=SuiteFacts(planned.suite.name, attacks),
        dataset=DatasetFacts(images.name, images.split, images.digest),
        protocol=protocol.name,
        threat=protocol.threat_name,
        n=len(images),
        batch_size=choose_batch_size(options.batch_size, device, images.x.shape[-1], len(images)),
        knowledge=planned.knowledge,
        seed=options.seed,
        precision="fp32" if corruptions else choose_precision(options.precision, device),
    )


def work_of(
    planned: PlannedRun,
    job: Job,
    device: torch.device,
    options: Options,
    proven: torch.Tensor | None = None,
    **settings: Any,
) -> Work:
    """The engine's run of a job: of attacks, or of corruptions.

    Args:
        proven: images that are not attacked, bool (n,); None for none.
        **settings: further arguments of `Run` and `CorruptionRun`.
    """
    if planned.attacker:
        run = run_of(planned, job, device, options, **settings)
        if proven is not None:
            run.proven = proven
        return run
    return CorruptionRun(
        Setup.of(planned.loaded.defense, Attacker(), job, device),
        planned.images,
        cells(planned.corruptions),
        workers=options.workers,
        cache=Cache(),
        note=options.note,
        **settings,
    )


def with_deal(work: Work, deal: tuple[int, ...] | None) -> Work:
    """A run whose samples are split as `deal` says: the share of each sample; None to choose it later."""
    if deal is not None and isinstance(work, Run) and len(deal) == work.count:
        work.deal = Deal(deal)
    return work


def run_of(planned: PlannedRun, job: Job, device: torch.device, options: Options, **settings: Any) -> Run:
    """The engine's run of a job.

    Args:
        **settings: further arguments of `Run`.
    """
    loaded, images, threat = planned.loaded, planned.images, planned.protocol.threat
    assert threat is not None and planned.attacker is not None
    setup = Setup.of(loaded.defense, planned.attacker, job, device)
    return Run(
        replace(setup, compiles=options.compile, deterministic=options.deterministic),
        planned.attacks,
        Samples(lazily(images.x), images.y, images.ids),
        threat,
        progress=options.progress,
        note=options.note,
        **settings,
    )
