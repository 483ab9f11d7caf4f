"""A run from plain values, for tests."""

import torch

from robench.engine.attack_context import Samples
from robench.engine.knowledge import Attacker
from robench.engine.run import Run
from robench.engine.setup import Setup
from robench.engine.workers import Processes

CPU = torch.device("cpu")


def run_of(
    model,
    attacks,
    x,
    y,
    ids,
    threat,
    seed=0,
    *,
    batch_size,
    attacker=None,
    stochastic=False,
    precision="fp32",
    workers=1,
    shares=0,
    **options,
):
    setup = Setup(model, seed, CPU, batch_size, attacker or Attacker(), stochastic, precision)
    return Run(setup, attacks, Samples(x, y, ids), threat, executor=Processes(workers, shares), **options)
