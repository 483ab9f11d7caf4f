"""The time of AutoAttack on many GPUs, simulated from the outcomes in a record and assumed speeds.

    python perf/simulate_cluster.py
    python perf/simulate_cluster.py --images 5000 --gpus 64 --forward-rate 4000 --record FOLDER

Measured, from the record: which attack fools each image, hence how many rows every share keeps to the end. Assumed:
the speed of a network on a GPU, the start-up, and the driver's time for a share. Each share is simulated attack by
attack: its rows fill the lanes of a batch, and every batch takes the time of a whole one. Square's queries ahead, which
fill some of the empty lanes, are left out, and images are dealt to shares by chance. Shares are given in order to the
first idle GPU, as `--engine ray` does; the driver classifies the clean images before and judges the adversarial
examples afterwards.
"""

import argparse
import heapq
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robench.records.samples import read_samples

_RECORD = Path(__file__).parents[1] / "results/shipped/cifar10-linf/mimir-cifar10/autoattack"


@dataclass(frozen=True)
class Attack:
    """Rows per image, turns of a row, and forward and backward passes per turn (standard AutoAttack)."""

    rows: int
    turns: int
    forward: int
    backward: int


SUITE = (Attack(1, 100, 1, 1), Attack(9, 100, 1, 1), Attack(9, 100, 2, 1), Attack(1, 5000, 1, 0))


@dataclass(frozen=True)
class Speed:
    """Seconds on one GPU for a batch.

    Attributes:
        batch_size: number of images in a batch.
        forward_rate: images per second of forward passes.
        backward: time of a backward pass in forward passes.
    """

    batch_size: int
    forward_rate: float
    backward: float

    def seconds(self, attack: Attack, rows: int) -> float:
        """Time of an attack whose `rows` rows run to their end."""
        turns = math.ceil(rows / self.batch_size) * attack.turns
        return (
            turns * self.batch_size * (attack.forward + self.backward * attack.backward) / self.forward_rate
        )


def share_seconds(stages: Sequence[int], speed: Speed) -> float:
    """Time of a share.

    Args:
        stages: for each image the number of attacks that it survives; -1 if it is misclassified from the start.
    """
    total = 0.0
    for index, attack in enumerate(SUITE):
        # Fooled images stop early, which costs little.
        rows = attack.rows * sum(stage > index for stage in stages)
        total += speed.seconds(attack, rows)
    return total


def makespan(times: Sequence[float], gpus: int, start: float, absorb: float) -> tuple[float, float]:
    """The end of the last share, and the idle time of all GPUs until then.

    Args:
        times: time of each share.
        start: time at which the GPUs begin.
        absorb: time of the driver for each share; results wait for each other.
    """
    idle_at = [start] * gpus
    driver = start
    for seconds in times:
        begin = heapq.heappop(idle_at)
        heapq.heappush(idle_at, begin + seconds)
    ends = sorted(idle_at)
    for end in ends:
        driver = max(driver, end) + absorb * len(times) / gpus
    return driver, sum(ends[-1] - end for end in ends)


def main() -> None:
    """Print one line for each combination of batch size, share size and number of GPUs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", type=Path, default=_RECORD, help="folder of a record of AutoAttack")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128, 64, 32])
    parser.add_argument("--share", type=int, nargs="+", default=[128, 256, 512], help="images in a share")
    parser.add_argument(
        "--forward-rate", type=float, default=4000, help="images per second on one GPU (assumed)"
    )
    parser.add_argument(
        "--backward", type=float, default=1.5, help="time of a backward pass in forward passes (assumed)"
    )
    parser.add_argument(
        "--start", type=float, default=60, help="seconds until workers have started (assumed)"
    )
    parser.add_argument("--absorb", type=float, default=0.05, help="seconds of the driver for each share")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = read_samples(options.record).to_pydict()["fooled_by"]
    attacks = [cost["spec"] for cost in json.loads((options.record / "record.json").read_text())["attacks"]]
    order = {"clean": -1, "": len(attacks)} | {spec: index for index, spec in enumerate(attacks)}
    generator = random.Random(options.seed)
    stages = generator.choices([order[name] for name in rows], k=options.images)
    robust = sum(stage == len(attacks) for stage in stages) / len(stages)
    print(
        f"{options.images} images, {robust:.1%} robust; {options.forward_rate:g} forward passes/s on a GPU (assumed)"
    )
    print("batch  share  GPUs  hours  efficiency  idle at the end  driver alone")
    sizes = [(batch_size, share) for batch_size in options.batch_size for share in options.share]
    for batch_size, size in sizes:
        speed = Speed(batch_size, options.forward_rate, options.backward)
        # One GPU without shares is what the others are measured against.
        whole = share_seconds(stages, Speed(128, options.forward_rate, options.backward))
        count = -(-len(stages) // size)
        times = [share_seconds(stages[number::count], speed) for number in range(count)]
        clean = len(stages) / options.forward_rate
        for gpus in options.gpus:
            end, idle = makespan(times, gpus, max(options.start, clean), options.absorb)
            # The final verdicts are in fp32, at about a quarter of the speed.
            end += 4 * clean
            print(
                f"{batch_size:5}  {size:5}  {gpus:4}  {end / 3600:5.2f}  {whole / (gpus * end):10.2f}  "
                f"{idle / (gpus * end):15.1%}  {(max(options.start, clean) + 4 * clean) / end:12.1%}"
            )


if __name__ == "__main__":
    main()
