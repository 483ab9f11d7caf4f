"""Attack any model: what someone with their own training script reaches for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import robench.attacks  # noqa: F401  (registers the built-in attacks)
from robench import registry
from robench.content import Suite, read_named, suites
from robench.corruption.suite import SPEC, corruptions
from robench.data._pixels import Stack
from robench.engine.attackers import Attacker, build_attacks, canonical
from robench.engine.device import choose_device, choose_lanes, choose_precision
from robench.engine.network import Model
from robench.engine.outcome import Outcome
from robench.engine.progress import Progress
from robench.engine.suite import Run
from robench.engine.team import choose_workers
from robench.errors import UsageError, unknown_name
from robench.specs import parse, split
from robench.threat import Threat, check_images
from robench.trust import like


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
    progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Attack `model` on images `x` with labels `y`.

    The model is put into evaluation mode and its weights are frozen while it is attacked, and both are put
    back. The result depends on the seed and the batch size, and on nothing else.

    Args:
        attack: a suite ("autoattack"), a spec ("pgd(steps=50)"), or specs joined by "+".
        model: any module or callable from images (N, C, H, W) in [0, 1] to logits (N, K).
        x: images (N, C, H, W), float32 in [0, 1], a tensor on any device or a NumPy array.
        y: labels (N,), integers.
        threat: norm and radius, "Linf:8/255", or a transformation and its radius, "fog:0.4".
        seed: decides every random number.
        batch_size: images a network call, or "auto".
        device: where to run; None is where the model's parameters are, or where `x` is.
        precision: "fp32", or "bf16" (or "auto") to search in reduced precision; verdicts are always fp32.
        stochastic: whether the model is randomised; a model found to be is treated so in any case.
        workers: processes that share the images, on a CPU under Linux; None for one a core. They are forked: what the
            model notes down while it is called stays in them.
        progress: called after every question.

    Returns:
        x_adv (N, C, H, W), robust (N,), fooled_by, passes, health and more, on the CPU: see Outcome. `x_adv` is within
        the radius times 1 + 1e-6, and the perturbation is rounded to whole grains where that fools as well: 1/127 of
        the radius in Linf, 1/32767 in L2 and L1. A randomised model is judged on fresh draws, which the search has
        not seen.

    Raises:
        UsageError: for unknown names, malformed specs, images or labels that cannot be used.
    """
    chosen = Threat.parse(threat)
    images, labels = _images(x), _labels(y)
    check_images(images, labels)
    where = choose_device(device) if device else _device_of(model, images)
    suite = find_suite(attack)
    if suite.rungs:
        raise UsageError(f"{suite.name} is a ladder of several runs: robench run plays it")
    if corruptions(suite.attacks):
        raise UsageError(f"{suite.name} corrupts a data set's images: robench run plays it")
    attacks = build_attacks(suite.specs(chosen.norm), chosen)
    run = Run(
        model,
        attacks,
        images.cpu(),
        labels.cpu(),
        torch.arange(len(images)),
        chosen,
        seed,
        device=where,
        lanes=choose_lanes(batch_size, where, images.shape[-1], len(images)),
        attacker=Attacker(),
        stochastic=stochastic or bool(getattr(model, "stochastic", False)),
        precision=choose_precision(precision, where),
        workers=choose_workers(workers, where, len(images)),
        progress=progress,
    )
    return run.play()


def find_suite(text: str) -> Suite:
    """The suite called `text`, the one in the TOML file of that path, or the specs written there.

    Specs are a suite under their canonical names, so that however they are written they are one suite.

    Raises:
        UsageError: when it is neither a suite nor attacks, with the nearest names, or an argument is wrong.
    """
    known, text = suites(), like(text, text.strip())
    if text in known:
        return known[text]
    if text.endswith(".toml"):
        return read_named(Suite, text)
    pieces = split(text, "+")
    for piece in pieces:
        name = parse(piece).name
        if name not in registry.attacks and name != SPEC:
            raise unknown_name("attack", name, {*known, *registry.attacks, SPEC})
    found = list(map(str, corruptions(pieces))) or list(map(canonical, pieces))
    return Suite(name=like(text, "+".join(found)), attacks=like(text, found))


def _images(x: Any) -> Tensor:
    tensor = _tensor(x, "images")
    if tensor.dtype == torch.uint8:
        raise UsageError("images are uint8: expected float32 in [0, 1] (divide them by 255)")
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _labels(y: Any) -> Tensor:
    tensor = _tensor(y, "labels")
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()


def _tensor(value: Any, what: str) -> Tensor:
    value = value[:] if isinstance(value, Stack) else value
    if isinstance(value, Tensor):
        return value.detach()
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{what} are {type(value).__name__}: expected a tensor or a NumPy array") from error


def _device_of(model: Model, x: Tensor) -> torch.device:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return x.device if parameter is None else parameter.device
