"""`robench.attack`: attack any model from Python."""

from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from robench.attacks._external import ForeignAttack
from robench.attacks.build import build_attacks
from robench.catalog import find_suite
from robench.core.errors import UsageError
from robench.core.torch_state import standard_state
from robench.corruption.suite import corruptions
from robench.engine.attack_context import Samples
from robench.engine.batched_model import frozen
from robench.engine.device import choose_batch_size, choose_device, choose_precision
from robench.engine.refusals import Model, check_model
from robench.engine.run import Run
from robench.engine.setup import Setup
from robench.engine.spawned import refuse_unguarded
from robench.engine.workers import Processes, choose_workers, may_fork_unasked
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
    compile: bool = False,
    deterministic: bool = False,
    workers: int | None = None,
    progress: bool | Callback | None = None,
) -> Result:
    """Attack `model` on images `x` with labels `y`.

    During the attack the model is in evaluation mode and its weights are frozen; both are restored afterwards. Images
    and labels are not changed, even by a model that works in place. The result depends only on the arguments:
    torch.inference_mode, no_grad, autocast and default dtypes have no effect.

    Args:
        attack: a suite ("autoattack"), a spec ("pgd(steps=50)"), or specs joined by "+".
        model: a module or function from images (N, C, H, W) in [0, 1] to logits (N, K).
        x: images (N, C, H, W), floats in [0, 1]: a tensor on any device, a NumPy array or a list of either. Pixels
            outside [0, 1] by at most 1e-5 (rounding errors) are clipped.
        y: labels (N,), integers: a tensor, an array or a list.
        threat: norm and radius, such as "Linf:8/255", or a transformation and its radius, such as "fog:0.4".
        seed: seed of all random numbers.
        batch_size: number of images per network call, or "auto".
        device: device to run on; None for the device of the model's parameters, or of `x` if it has none.
        precision: "fp32", or "bf16" (or "auto") to search in reduced precision; verdicts are always fp32.
        stochastic: whether the model is randomized; a model that turns out to be is treated so in any case.
        compile: use `torch.compile` for the search, in one process; verdicts are of the model as it is.
        deterministic: compute the same bits at every run on a GPU; on a CPU this is always so.
        workers: number of processes that split the images, on a CPU. None is one per thread of torch with at least 16
            images each, where forking is safe: under Linux, in a main process without other threads, outside of
            notebooks, and for a model that is deterministic or draws its noise in robench; otherwise 1. With a number,
            processes are forked under Linux; elsewhere they are spawned, which needs a model that can be pickled and a
            script that calls this under `if __name__ == "__main__"`. Changes to the model's state stay in the worker
            processes. Each process uses one thread, so logits may be rounded differently than with several.
        progress: True shows a progress bar on stderr; a function is called after every query.

    Returns:
        x_adv (N, C, H, W), robust (N,), fooled_by, passes, health and more, on the CPU: see Result, which also prints
        a table and saves a record. `x_adv` is within the radius times 1 + 1e-6. The perturbation is rounded to
        multiples of 1/127 of the radius in Linf, and of 1/32767 in L2 and L1, if the result still fools the model. A
        randomized model is judged on noise draws that the search has not used.

    Raises:
        UsageError: if a name is unknown, a spec is malformed, images or labels are invalid, or calling the model on
            the images fails.
    """
    refuse_unguarded()
    parsed_threat = Threat.parse(threat)
    check_model(model)
    images, labels = prepare(x, y)
    torch_device = choose_device(device) if device else _device_of(model, x)
    check_model(model, torch_device)
    suite = find_suite(attack)
    if suite.rungs:
        raise UsageError(f"{suite.name} is a ladder of several runs: use robench run")
    if corruptions(suite.attacks):
        raise UsageError(f"{suite.name} corrupts the images of a data set: use robench run")
    attacks = build_attacks(suite.specs(parsed_threat.norm), parsed_threat)
    setup = Setup(
        model,
        seed,
        torch_device,
        choose_batch_size(batch_size, torch_device, images.shape[-1], len(images)),
        stochastic=stochastic or bool(getattr(model, "stochastic", False)),
        precision=choose_precision(precision, torch_device),
        compiles=compile,
        deterministic=deterministic,
    )
    samples = Samples(images, labels, torch.arange(len(images)))
    takes_all = any(isinstance(attack, ForeignAttack) for _, attack in attacks)
    processes = choose_workers(1 if compile else workers, torch_device, len(images), model)
    if workers is None and processes > 1 and (takes_all or not _is_safe_to_split(setup, samples)):
        processes = 1
    started = datetime.now(UTC)
    with shown(progress) as update:
        executor = Processes(processes)
        outcome = Run(setup, attacks, samples, parsed_threat, executor=executor, progress=update).outcome()
    specs = tuple(spec for spec, _ in attacks)
    return Result.of(outcome, Attacked(setup, images, labels, parsed_threat, suite.name, specs, started))


def _is_safe_to_split(setup: Setup, samples: Samples) -> bool:
    """Whether processes may split the images unasked."""
    if not may_fork_unasked(setup.device):
        return False
    # The noise of a model that uses torch's generators depends on the batch.
    with frozen(setup.model):
        return setup.stochastic or not setup.checked(samples.x, samples.ids).stochastic


def _device_of(model: Model, x: Any) -> torch.device:
    """The device of the model's weights, or of the images if the model has none."""
    tensor = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if tensor is None:
        tensor = x if isinstance(x, Tensor) else None
    return choose_device("cpu" if tensor is None else str(tensor.device))
