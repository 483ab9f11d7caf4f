"""Cost of a step of MIMIR's pre-training relative to a step of PGD adversarial training, measured in one run.

    python perf/training_cost.py                      # ViT-B/16 at 224 pixels on a GPU, ViT-T/16 on a CPU
    python perf/training_cost.py --network "vit(image_size=32, patch_size=4, width=192, heads=3)" \
        --batch-size 64

Steps of every kind alternate, so that other load affects them equally. They run on random images and include the inner
attack, the backward pass and the optimizer. From the medians the script projects the schedules of the MIMIR paper
(arXiv 2312.04960) on ImageNet: pre-training and one-step fine-tuning, compared with supervised adversarial training.
The paper reports 123.76 h and 451.39 h for ViT-B. The schedule behind the 451.39 h is not known: --baseline-epochs and
--baseline-steps are assumptions. Loading and augmenting images is not included on either side.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robench.core import registry, specs
from robench.defenses import Defense
from robench.engine.device import choose_device
from robench.training import Finetuning, Pretraining
from robench.training.stages import Stage, finetuning_stage, pretraining_stage

IMAGES = 1_281_167  # training images of ImageNet
PUBLISHED = (123.76, 451.39)
DEFAULTS = {"cuda": "vit()", "cpu": "vit(width=192, heads=3)"}
Step = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Schedule:
    """Epochs of each part; `baseline_steps` is the number of PGD steps in each step of the baseline."""

    pretraining_epochs: int
    finetuning_epochs: int
    baseline_epochs: int
    baseline_steps: int


@dataclass(frozen=True)
class Cost:
    """The measurements of a network; a step processes one batch.

    Attributes:
        seconds: median time of a step, by kind: "MIMIR" for its pre-training, "PGD-k" for adversarial training.
        spread: ratio of the largest to the smallest time of a step, by kind.
        flops: floating-point operations of a step, by kind.
        hours: projected time of MIMIR's whole schedule, and of the baseline.
        ratio: time of the baseline divided by that of MIMIR.
        flops_ratio: the same ratio for floating-point operations.
    """

    network: str
    batch_size: int
    rounds: int
    schedule: Schedule
    seconds: dict[str, float]
    spread: dict[str, float]
    flops: dict[str, int]
    hours: tuple[float, float]
    ratio: float
    flops_ratio: float
    precision: str
    device: str
    threads: int
    torch: str


def main() -> None:
    """Measure, print, and append a line of JSON to --output."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", action="append", help="spec of a builder; may be repeated")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, help="default: 256 on a GPU, 8 on a CPU")
    parser.add_argument("--rounds", type=int, default=7, help="number of timed steps of each kind")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--pretraining-epochs", type=int, default=800)
    parser.add_argument(
        "--finetuning-epochs", type=int, default=100, help="epochs of one-step adversarial training"
    )
    parser.add_argument("--baseline-epochs", type=int, default=300, help="assumed epochs of the baseline")
    parser.add_argument("--baseline-steps", type=int, default=3, help="assumed PGD steps of the baseline")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = choose_device(options.device)
    gpu = device.type == "cuda"
    schedule = Schedule(
        options.pretraining_epochs, options.finetuning_epochs, options.baseline_epochs, options.baseline_steps
    )
    for network in options.network or [DEFAULTS[device.type]]:
        cost = measure(
            network,
            device,
            options.batch_size or (256 if gpu else 8),
            options.rounds,
            options.precision or ("bf16" if gpu else "fp32"),
            schedule,
        )
        print(report(cost), flush=True)
        if options.output:
            with options.output.open("a") as file:
                file.write(json.dumps(asdict(cost)) + "\n")


def measure(
    network: str, device: torch.device, batch_size: int, rounds: int, precision: str, schedule: Schedule
) -> Cost:
    """Time and count the steps of one network, and project the schedules."""
    kinds = {"MIMIR": 0, "PGD-1": 1, f"PGD-{schedule.baseline_steps}": schedule.baseline_steps}
    steps = {kind: _step(_stage(network, device, k), precision) for kind, k in kinds.items()}
    size, classes = (getattr(_build(network), name) for name in ("image_size", "num_classes"))
    torch.manual_seed(0)
    x = torch.rand(batch_size, 3, size, size, device=device)
    y = torch.randint(classes, (batch_size,), device=device)
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    flops = {}
    for kind, step in steps.items():  # the first step also creates the state of the optimizer
        with _Flops() as counter:
            step(x, y)
        flops[kind] = counter.total
        step(x, y)
    for _ in range(rounds):
        for kind, step in steps.items():
            times[kind].append(_seconds(step, x, y, device))
    seconds = {kind: statistics.median(measured) for kind, measured in times.items()}
    ours, theirs = _project(seconds, schedule)
    our_flops, their_flops = _project({kind: float(n) for kind, n in flops.items()}, schedule)
    hours = tuple(total * IMAGES / batch_size / 3600 for total in (ours, theirs))
    return Cost(
        network=network,
        batch_size=batch_size,
        rounds=rounds,
        schedule=schedule,
        seconds=seconds,
        spread={kind: max(measured) / min(measured) for kind, measured in times.items()},
        flops=flops,
        hours=(hours[0], hours[1]),
        ratio=theirs / ours,
        flops_ratio=their_flops / our_flops,
        precision=precision,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


class _Flops(TorchDispatchMode):
    """Counts floating-point operations of matrix products, convolutions and attention.

    torch's FlopCounterMode also tracks modules, which fails if only the images need gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def _build(network: str) -> Defense:
    spec = specs.parse(network)
    return specs.build(spec, registry.defenses.get(spec.name))


def _stage(network: str, device: torch.device, attack_steps: int) -> Stage:
    """MIMIR's pre-training for 0 attack steps, else adversarial training with that many, as on ImageNet."""
    torch.manual_seed(0)
    defense = _build(network).to(device)
    if not attack_steps:
        return pretraining_stage(defense.classifier, Pretraining(), device, defense.image_size)
    config = Finetuning(
        eps=4 / 255, step_size=(5 / 255 if attack_steps == 1 else 1 / 255), steps=attack_steps
    )
    return finetuning_stage(defense.classifier, _build(network).classifier.to(device), config)


def _step(stage: Stage, precision: str) -> Step:
    def step(x: Tensor, y: Tensor) -> None:
        half = torch.autocast(x.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
        with half:
            loss = stage.loss(x, y, 0.0)
        stage.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        stage.optimizer.step()

    return step


def _seconds(step: Step, x: Tensor, y: Tensor, device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else nullcontext
    wait()
    start = time.perf_counter()
    step(x, y)
    wait()
    return time.perf_counter() - start


def _project(step: dict[str, float], schedule: Schedule) -> tuple[float, float]:
    """Cost of MIMIR's schedule and of the baseline in units of `step`, for one step per epoch."""
    ours = schedule.pretraining_epochs * step["MIMIR"] + schedule.finetuning_epochs * step["PGD-1"]
    return ours, schedule.baseline_epochs * step[f"PGD-{schedule.baseline_steps}"]


def report(cost: Cost) -> str:
    """Format the measurement and the parts of the ratio."""
    plan, published = cost.schedule, PUBLISHED[1] / PUBLISHED[0]
    baseline = f"PGD-{plan.baseline_steps}"
    lines = [
        f"{cost.network}: batch {cost.batch_size}, {cost.precision}, {cost.device}, {cost.threads} threads, "
        f"torch {cost.torch}, median of {cost.rounds}",
        "",
        "| a step of | seconds | slowest / fastest | GFLOP |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {kind} | {cost.seconds[kind]:.3f} | {cost.spread[kind]:.2f} | {cost.flops[kind] / 1e9:.1f} |"
        for kind in cost.seconds
    ]
    pretraining = plan.pretraining_epochs * cost.seconds["MIMIR"]
    finetuning = plan.finetuning_epochs * cost.seconds["PGD-1"]
    epochs = published * (pretraining + finetuning) / cost.seconds[baseline]
    lines += [
        "",
        "| ImageNet schedule | hours on this device |",
        "|---|---|",
        f"| MIMIR: {plan.pretraining_epochs} epochs pre-training, {plan.finetuning_epochs} PGD-1 | "
        f"{cost.hours[0]:.1f} |",
        f"| {baseline} for {plan.baseline_epochs} epochs (assumed) | {cost.hours[1]:.1f} |",
        "",
        f"ratio {cost.ratio:.2f} by time, {cost.flops_ratio:.2f} by floating-point operations; published "
        f"{PUBLISHED[1]} h / {PUBLISHED[0]} h = {published:.2f} for ViT-B.",
        f"A pre-training step costs {cost.seconds['MIMIR'] / cost.seconds[baseline]:.2f} of a {baseline} step by "
        f"time and {cost.flops['MIMIR'] / cost.flops[baseline]:.2f} by operations: two passes, forward and "
        f"backward, over the visible patches and the decoder, against {plan.baseline_steps + 1} over the whole.",
        f"Fine-tuning is {finetuning / (pretraining + finetuning):.0%} of MIMIR's time. The published ratio would "
        f"be that of a {baseline} baseline of {epochs:.0f} epochs; the difference is due to the baseline's "
        "schedule, which is not known, and by the speed of each kind of step relative to its operations.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
