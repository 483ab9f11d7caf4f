"""Attacks of other libraries, which call the model themselves; their images are judged and their passes are counted."""

from robench.attacks._external import Counted, ForeignAttack
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
    candidates = attack.perturb(counted, x, y, threat, setup.seed, size).detach()
    images = threat.as_recorded(x, candidates)
    draws = judge.fooled(images, y, ids) * threat.contains(x, images)
    for i, sample in enumerate(attacked):
        # The passes of each sample are not known, so the total is divided evenly.
        results.forward[sample, 0] = _share(counted.forward_passes, i, len(attacked))
        results.backward[sample, 0] = _share(counted.backward_passes, i, len(attacked))
        if int(draws[i]):
            results.draws[sample], results.rank[sample] = int(draws[i]), 0
            results.examples[sample] = images[i].cpu()


def _share(total: int, i: int, n: int) -> int:
    """The i-th of n integer shares of `total`, which are as equal as possible."""
    return total * (i + 1) // n - total * i // n
