"""Images a second that defenses classify, and for which they give a gradient, measured by turns in one process.

    python perf/prediction_speed.py --defense standard-digits,maep-digits,de3-digits,diffpure-digits
    python perf/prediction_speed.py --defense standard-cifar10,maep-cifar10 --dataset cifar10 --data-dir DIR

In every round each defense classifies the same batch and then differentiates its loss by the images, so that other load
affects all equally. The figures are medians of CPU time (of time on a GPU). The claim to check is that of MAEP's paper
(arXiv 2501.16904), that purifying by a masked autoencoder is faster than by diffusion.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from robench.data import load_dataset
from robench.defenses import Defense, load_defense
from robench.engine.device import choose_device


@dataclass(frozen=True)
class Speed:
    """Images a second of one defense, and how many times as long as the first defense it takes."""

    defense: str
    forward: float
    gradient: float
    forward_ratio: float
    gradient_ratio: float


def seconds(defense: Defense, x: Tensor, y: Tensor, differentiate: bool) -> float:
    """The time of one batch of images in [0, 1], (N, 3, H, W), with labels (N,)."""
    clock = time.perf_counter if x.is_cuda else time.process_time
    x = x.clone().requires_grad_(differentiate)
    begun = clock()
    with torch.set_grad_enabled(differentiate):
        loss = cross_entropy(defense(x), y)
        if differentiate:
            torch.autograd.grad(loss, x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return clock() - begun


def measure(names: list[str], defenses: list[Defense], x: Tensor, y: Tensor, rounds: int) -> list[Speed]:
    """The speed of each defense. One round before is not measured."""
    times: dict[tuple[str, bool], list[float]] = {}
    for turn in range(rounds + 1):
        for name, defense in zip(names, defenses, strict=True):
            for differentiate in (False, True):
                spent = seconds(defense, x, y, differentiate)
                if turn:
                    times.setdefault((name, differentiate), []).append(spent)
    median = {key: statistics.median(spent) for key, spent in times.items()}
    first = names[0]
    return [
        Speed(
            name,
            len(x) / median[name, False],
            len(x) / median[name, True],
            median[name, False] / median[first, False],
            median[name, True] / median[first, True],
        )
        for name in names
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--defense", required=True, help="names, separated by commas")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="append one JSON line for each defense")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    names = args.defense.split(",")
    images = load_dataset(args.dataset, "test", args.samples, args.data_dir)
    defenses = [load_defense(name, args.dataset).to(device) for name in names]
    for speed in measure(names, defenses, images.x.to(device), images.y.to(device), args.rounds):
        print(
            f"{speed.defense}: {speed.forward:,.0f} images/s ({speed.forward_ratio:.2f} times the first), "
            f"with gradient {speed.gradient:,.0f} images/s ({speed.gradient_ratio:.2f} times)"
        )
        if args.output:
            with args.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(speed)) + "\n")


if __name__ == "__main__":
    main()
