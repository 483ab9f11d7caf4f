"""robench's AutoAttack compared with the reference implementation on the same images and checkpoint.

    python perf/autoattack.py --subject mimir-digits --samples 500
    python perf/autoattack.py --subject cnn-a --weights FILE --data-dir DIR --threat Linf:2/255 --samples 500

For every subject and norm both run one after the other. The script prints robust accuracy, the fraction of images with
the same verdict, and wall times. --repeats alternates between both several times and reports medians and the smallest
and largest ratio, for machines with other load. --output gets one JSON line for each pair.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import robench
from robench.attacks.reference import adversary
from robench.data import load_dataset
from robench.defenses import Defense
from robench.engine.outcome import Outcome
from robench.engine.workers import choose_workers
from robench.statistics.accuracy import wilson
from robench.threats.threat import Threat


@dataclass(frozen=True)
class Pair:
    """The result of one comparison; accuracies are fractions, times are medians of `repeats` in seconds."""

    subject: str
    threat: str
    suite: str
    samples: int
    clean: float
    ours: float
    ours_interval: tuple[float, float]
    reference: float
    same_verdicts: float
    seconds: float
    reference_seconds: float
    ratio: float
    ratio_range: tuple[float, float]
    repeats: int
    batch_size: int
    precision: str
    workers: int
    threads: int
    torch: str
    machine: str


def cnn_a(weights: Path) -> Defense:
    """CNN-A of the alpha-beta-CROWN collection: two convolutions and two linear layers, for CIFAR-10."""
    layers = [
        nn.Conv2d(3, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2048, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    ]
    network = nn.Sequential(*layers)
    network.load_state_dict(load_file(weights))
    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    return Defense(network, num_classes=10, image_size=32, mean=mean, std=std).eval()


def reference(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> tuple[Tensor, float]:
    """Run the standard version of the reference; return which images survive, and the time in seconds."""
    runner = adversary(model, threat, seed, "cpu")
    begun = time.perf_counter()
    result = runner.run_standard_evaluation(x, y, batch_size=250)
    seconds = time.perf_counter() - begun
    with torch.no_grad():
        predictions = torch.cat([model(part).argmax(1) for part in result[0].split(250)])
    return predictions == y, seconds


def compare(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    seed: int,
    batch: str,
    precision: str,
    workers: int | None,
    repeats: int,
) -> Pair:
    """Run both `repeats` times, robench first, and compare the verdicts."""

    def both() -> tuple[Outcome, Tensor, float, float]:
        begun = time.perf_counter()
        ours = robench.attack(
            "autoattack",
            model,
            x,
            y,
            threat=threat,
            seed=seed,
            batch_size=batch,
            precision=precision,
            workers=workers,
        )
        seconds = time.perf_counter() - begun
        return ours, *reference(model, x, y, threat, seed), seconds

    rounds = [both() for _ in range(repeats)]
    ours, theirs, *_ = rounds[0]
    ratios = [seconds / reference_seconds for _, _, reference_seconds, seconds in rounds]
    return Pair(
        subject=name,
        threat=str(threat),
        suite="autoattack",
        samples=len(x),
        clean=ours.clean_accuracy,
        ours=ours.robust_accuracy,
        ours_interval=wilson(int(ours.robust.sum()), len(x)),
        reference=float(theirs.double().mean()),
        same_verdicts=float((theirs == ours.robust).double().mean()),
        seconds=median(seconds for *_, seconds in rounds),
        reference_seconds=median(seconds for _, _, seconds, _ in rounds),
        ratio=median(ratios),
        ratio_range=(min(ratios), max(ratios)),
        repeats=repeats,
        batch_size=ours.batch_size,
        precision=ours.precision,
        workers=choose_workers(workers, torch.device("cpu"), len(x)),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        machine=platform.machine(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subject", action="append", required=True, help="a card, or cnn-a; may be repeated")
    parser.add_argument("--threat", action="append", help="may be repeated; default: Linf:0.1")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="precision of robench")
    parser.add_argument("--workers", type=int, help="processes of robench; default: one per core")
    parser.add_argument("--repeats", type=int, default=1, help="number of alternating pairs")
    parser.add_argument("--weights", type=Path, help="safetensors file of cnn-a")
    parser.add_argument("--data-dir", help="folder of CIFAR-10")
    parser.add_argument("--output", type=Path, help="JSON lines, appended")
    options = parser.parse_args()
    print("| subject | threat | n | clean | ours | reference | same verdicts | seconds | reference | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for subject in options.subject:
        model = cnn_a(options.weights) if subject == "cnn-a" else robench.load_defense(subject)
        dataset = "cifar10" if subject == "cnn-a" else "digits"
        images = load_dataset(dataset, "test", options.samples, options.data_dir)
        for threat in options.threat or ["Linf:0.1"]:
            pair = compare(
                subject,
                model.requires_grad_(True),
                images.x[:],
                images.y,
                Threat.parse(threat),
                options.seed,
                options.batch_size,
                options.precision,
                options.workers,
                options.repeats,
            )
            low, high = pair.ours_interval
            print(
                f"| {subject} | {threat} | {pair.samples} | {pair.clean:.1%} | {pair.ours:.1%} "
                f"[{low:.1%}, {high:.1%}] | {pair.reference:.1%} | {pair.same_verdicts:.1%} | "
                f"{pair.seconds:.1f} | {pair.reference_seconds:.1f} | {pair.ratio:.2f} "
                f"[{pair.ratio_range[0]:.2f}, {pair.ratio_range[1]:.2f}] |",
                flush=True,
            )
            if options.output:
                with options.output.open("a") as file:
                    file.write(json.dumps(asdict(pair)) + "\n")


if __name__ == "__main__":
    main()
