"""Attack any model: what someone with their own training script reaches for."""

from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from robench.attacks.build import build_attacks
from robench.catalog import find_suite
from robench.core.errors import UsageError
from robench.core.torch_state import standard_state
from robench.corruption.suite import corruptions
from robench.engine.attack_context import Samples
from robench.engine.device import choose_batch_size, choose_device, choose_precision
from robench.engine.refusals import Model, check_model
from robench.engine.run import Run
from robench.engine.setup import Setup
from robench.engine.workers import Processes, choose_workers
from robench.evaluation.inputs import prepare
from robench.evaluation.progress import Callback, shown
from robench.evaluation.result import Attacked, Result
from robench.threats.threat import Threat


@standard_state()
def attack(
    attack: str,
    model: Model,
    x: Any,
    y: Any,
    *,
    threat: str | Threat,
    seed: int = 0,
    batch_size: int | str = "auto",
    device: str | None = None,
    precision: str = "fp32",
    stochastic: bool = False,
    workers: int | None = 1,
    progress: bool | Callback | None = None,
) -> Result:
    """Attack `model` on images `x` with labels `y`.

    The model is put into evaluation mode and its weights are frozen while it is attacked, and both are restored
    afterwards. Images and labels are not changed, even by a model that works in place. The result depends on the seed
    and the batch size, and on nothing else: torch.inference_mode, no_grad, autocast and default dtypes have no effect.

    Args:
        attack: a suite ("autoattack"), a spec ("pgd(steps=50)"), or specs joined by "+".
        model: any module or callable from images (N, C, H, W) in [0, 1] to logits (N, K).
        x: images (N, C, H, W), floats in [0, 1]: a tensor on any device, a NumPy array or a list of either. Pixels
            that are outside by rounding, 1e-5 at the most, are clipped.
        y: labels (N,), integers, likewise.
        threat: norm and radius, "Linf:8/255", or a transformation and its radius, "fog:0.4".
        seed: decides every random number.
        batch_size: images a network call, or "auto".
        device: where to run; None is where the model's parameters are, or where `x` is.
        precision: "fp32", or "bf16" (or "auto") to search in reduced precision; verdicts are always fp32.
        stochastic: whether the model is randomised; a model found to be is treated so in any case.
        workers: processes that share the images, on a CPU; None for one a core. Under Linux they are forked; elsewhere
            they are spawned, which needs a model that can be pickled and a script that calls this under
            `if __name__ == "__main__"`. What the model notes down while it is called stays in them.
        progress: True shows a progress bar on stderr; a function is called after every query.

    Returns:
        x_adv (N, C, H, W), robust (N,), fooled_by, passes, health and more, on the CPU: see Result, which also prints
        a table and saves a record. `x_adv` is within the radius times 1 + 1e-6, and the perturbation is rounded to
        whole grains where that fools as well: 1/127 of the radius in Linf, 1/32767 in L2 and L1. A randomised model
        is judged on fresh draws, which the search has not seen.

    Raises:
        UsageError: for unknown names, malformed specs, images or labels that cannot be used, and for a model that
            cannot be called on them, with what it raised.
    """
    chosen = Threat.parse(threat)
    check_model(model)
    images, labels = prepare(x, y)
    where = choose_device(device) if device else _device_of(model, x)
    check_model(model, where)
    suite = find_suite(attack)
    if suite.rungs:
        raise UsageError(f"{suite.name} is a ladder of several runs: robench run plays it")
    if corruptions(suite.attacks):
        raise UsageError(f"{suite.name} corrupts a data set's images: robench run plays it")
    attacks = build_attacks(suite.specs(chosen.norm), chosen)
    setup = Setup(
        model,
        seed,
        where,
        choose_batch_size(batch_size, where, images.shape[-1], len(images)),
        stochastic=stochastic or bool(getattr(model, "stochastic", False)),
        precision=choose_precision(precision, where),
    )
    samples = Samples(images, labels, torch.arange(len(images)))
    processes = choose_workers(workers, where, len(images), model)
    started = datetime.now(UTC)
    with shown(progress) as update:
        outcome = Run(setup, attacks, samples, chosen, executor=Processes(processes), progress=update).play()
    specs = tuple(spec for spec, _ in attacks)
    return Result.of(outcome, Attacked(setup, images, labels, chosen, suite.name, specs, started))


def _device_of(model: Model, x: Any) -> torch.device:
    """Where the model's weights are, or else the images."""
    weight = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if weight is None:
        weight = x if isinstance(x, Tensor) else None
    return choose_device("cpu" if weight is None else str(weight.device))
