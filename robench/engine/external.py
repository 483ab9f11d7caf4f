"""Attacks of other libraries, which call the model themselves; their images are judged and their passes are counted."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from robench.attacks._external import Counted, ForeignAttack
from robench.core.errors import UsageError
from robench.engine.attack_context import SampleResults, Samples
from robench.engine.batched_model import Judge, Network
from robench.engine.setup import Setup
from robench.threats.threat import Threat


def run_external(
    attack: ForeignAttack,
    setup: Setup,
    judge: Judge,
    samples: Samples,
    threat: Threat,
    attacked: list[int],
    results: SampleResults,
) -> None:
    """Attack some samples at once and write their results."""
    device, size = setup.device, setup.batch_size
    counted = Counted(Network(setup.searched, size))
    x, y, ids = (part[attacked].to(device) for part in (samples.x, samples.y, samples.ids))
    with seeded(setup.seed, device):
        candidates = attack.perturb(counted, x.clone(), y, threat, setup.seed, size)
    if not isinstance(candidates, Tensor) or candidates.shape != x.shape:
        output = tuple(candidates.shape) if isinstance(candidates, Tensor) else type(candidates).__name__
        raise UsageError(f"{type(attack).__name__} returned {output}: expected images {tuple(x.shape)}")
    images = threat.as_recorded(x, candidates.detach().to(x))
    draws = judge.fooled(images, y, ids) * threat.contains(x, images)
    for i, sample in enumerate(attacked):
        # The passes of each sample are not known, so the total is divided evenly.
        results.forward[sample, 0] = _share(counted.forward_passes, i, len(attacked))
        results.backward[sample, 0] = _share(counted.backward_passes, i, len(attacked))
        if int(draws[i]):
            results.draws[sample], results.rank[sample] = int(draws[i]), 0
            results.examples[sample] = images[i].cpu()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators that other libraries draw from inside the block, and restore them after it."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _share(total: int, i: int, n: int) -> int:
    """The i-th of n integer shares of `total`, which are as equal as possible."""
    return total * (i + 1) // n - total * i // n
