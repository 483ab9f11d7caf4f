"""Descriptions of runs from which other processes and machines build them.

A worker builds a run from names, and checks by the job's key that its files are the same.
"""

import os
import socket
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from robench.catalog import Protocol, Suite
from robench.core.errors import UsageError
from robench.core.trust import is_trusting, trusting
from robench.engine.device import choose_device
from robench.engine.work import Work
from robench.evaluation.jobs import job_of, work_of
from robench.evaluation.options import Options
from robench.evaluation.planning import PlannedRun, Sources, plan
from robench.records.record import Job

# Defenses and images of the last orders, which several records may use.
_sources = Sources()


@dataclass(frozen=True)
class Order:
    """The description of a run (`robench.engine.run_queue.Recipe`).

    Attributes:
        defense: name by which the defense was requested.
        suite, protocol, knowledge: suite, protocol and attacker knowledge of the run.
        key: key of the run's job.
        options: options without callbacks.
        folder: folder to which relative paths refer.
        trust: whether names in files are trusted.
        proven: images that are not attacked, bool (n,); None for none.
    """

    defense: str
    suite: Suite
    protocol: Protocol
    knowledge: str
    key: str
    options: Options
    folder: str
    trust: bool
    proven: torch.Tensor | None = None

    def build(self, device: str | None = None) -> Work:
        """Build the run.

        Raises:
            UsageError: if the defense or the images differ from those of the run's job.
        """
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        options = replace(self.options, device=device or self.options.device)
        chosen = choose_device(options.device)
        with trusting() if self.trust else nullcontext():
            planned = plan([self.defense], [self.suite], self.protocol, [self.knowledge], options, _sources)
            for candidate in planned:
                job = job_of(candidate, options, chosen)
                if job.key == self.key:
                    return work_of(candidate, job, chosen, options, self.proven)
        raise UsageError(
            f"{self.defense} or the images differ between {socket.gethostname()} and the machine that started the run: "
            "install the same release, checkpoint and data on both"
        )


def order_of(
    planned: PlannedRun,
    job: Job,
    device: torch.device,
    options: Options,
    proven: torch.Tensor | None = None,
) -> Order:
    """The order of a planned run."""
    plain = replace(
        options,
        batch_size=job.batch_size,
        precision=job.precision,
        device=device.type,
        progress=None,
        note=_ignore,
        command="",
    )
    return Order(
        planned.name,
        planned.suite,
        planned.protocol,
        planned.knowledge,
        job.key,
        plain,
        str(Path.cwd()),
        is_trusting(),
        proven,
    )


def _ignore(text: str) -> None:
    pass
