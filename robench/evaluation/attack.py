"""`robench.attack`: attack any model from Python."""

import warnings
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
from robench.engine.device import choose_batch_size, choose_device, choose_precision
from robench.engine.refusals import Model, check_model
from robench.engine.run import Run
from robench.engine.setup import Setup
from robench.engine.spawned import refuse_unguarded
from robench.engine.workers import Processes, choose_workers, may_fork_unasked
from robench.evaluation.inputs import prepare
from robench.evaluation.progress import Callback, shown
from robench.evaluation.protocol import too_large
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
    """Run an attack or a suite of attacks on `model`, for images `x` with labels `y`.

    The model runs in evaluation mode with frozen weights; both settings are restored afterwards. `x` and `y` are not
    modified, even if the model changes its input in place. The result depends only on the arguments:
    `torch.inference_mode`, `no_grad`, autocast and the default dtype have no effect.

    Args:
        attack: a suite ("autoattack"), an attack with arguments ("pgd(steps=50)"), or several attacks joined by "+".
        model: a module or function from images (N, C, H, W), float32 in [0, 1], to logits (N, K).
        x: images (N, C, H, W), floats in [0, 1]: a tensor on any device, a NumPy array or a list of either. Pixels
            outside [0, 1] by at most 1e-5 (rounding errors) are clipped.
        y: labels (N,), integers: a tensor, an array or a list.
        threat: norm and radius, such as "Linf:8/255", or a transformation and its radius, such as "fog:0.4".
        seed: seed of all random numbers.
        batch_size: number of images per network call, or "auto".
        device: device to run on; None for the device of the model's parameters, or of `x` if it has none.
        precision: precision of the search, "fp32", "bf16" or "auto"; verdicts are always in fp32.
        stochastic: whether the model is randomized. If it is False and two calls on the first batch differ, the model
            is treated as randomized, with a warning.
        compile: use `torch.compile` for the search, in one process; verdicts come from the original model.
        deterministic: give the same bits in every run on a GPU; on a CPU this is always the case.
        workers: number of processes that share the images, on a CPU of a machine without CUDA. None is one process per
            torch thread, with at least 16 images each, if forking is safe: on Linux, in a main process without other
            threads, and outside notebooks; otherwise 1. With a number, processes are forked on Linux. Elsewhere they
            are spawned, which needs a model that can be pickled and a call under `if __name__ == "__main__"`. Changes
            to the model's state stay in the processes. Each process uses one thread, so logits may be rounded
            differently than with several threads. The images of a model with noise from torch's generators are not
            split, because this noise depends on the other images of a batch.
        progress: True for a progress bar on stderr, or a function that is called with a
            `robench.engine.progress.Progress` about ten times a second for each process.

    Returns:
        A `Result`: x_adv (N, C, H, W), robust (N,), fooled_by, passes, warnings and more, on the CPU. Perturbations
        have at most the radius times 1 + 1e-6 (in Linf plus 2**-24). Unless the attack minimizes them, they are rounded
        to multiples of 1/127 of the radius in Linf, and 1/32767 in L2 and L1, if the result still fools the model. A
        randomized model is judged on ten noise draws that the search has not used.

    Raises:
        UsageError: if a name is unknown, an argument is invalid, or the model raises an error.
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
        raise UsageError(f"{suite.name} corrupts the images of a dataset: use robench run")
    attacks = build_attacks(suite.specs(parsed_threat.norm), parsed_threat)
    # A minimum-norm attack needs no radius, so the largest is a natural choice for it.
    needs_radius = not all(attack.minimum_norm for _, attack in attacks)
    if needs_radius and (hint := too_large(parsed_threat, images.shape[1:])):
        warnings.warn(hint, stacklevel=3)
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
    processes = choose_workers(1 if compile else workers, torch_device, len(images), model)
    takes_all = any(isinstance(attack, ForeignAttack) for _, attack in attacks)
    if workers is None and processes > 1 and (takes_all or not may_fork_unasked(torch_device)):
        processes = 1
    started = datetime.now(UTC)
    with shown(progress) as update:
        executor = Processes(processes)
        outcome = Run(setup, attacks, samples, parsed_threat, executor=executor, progress=update).outcome()
    specs = tuple(spec for spec, _ in attacks)
    return Result.of(outcome, Attacked(setup, images, labels, parsed_threat, suite.name, specs, started))


def _device_of(model: Model, x: Any) -> torch.device:
    """The device of the model's weights, or of the images if the model has none."""
    tensor = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if tensor is None:
        tensor = x if isinstance(x, Tensor) else None
    return choose_device("cpu" if tensor is None else str(tensor.device))
