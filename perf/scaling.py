"""Scaling of one run over the processes of this machine.

    python perf/scaling.py                                # AutoAttack on 200 digits, 1 and 2 workers: 3 minutes idle
    python perf/scaling.py --repeats 2 --output scaling.json

The runs of all numbers of workers take turns. The time of a run is that of its clean pass, attacks and final verdicts,
without imports, loading and writing. Two efficiencies are printed:

- by wall time: T(1) / (w T(w)), which holds only on an idle machine;
- by CPU time: the same with the CPU time of the critical path (this process, then the slowest share), which other
  work on the machine changes little.

--output gets one JSON object with the CPU time of every share, for perf/simulate_cluster.py.
"""

import argparse
import heapq
import json
import os
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from robench.attacks.build import build_attacks
from robench.catalog import find_suite
from robench.data import load_dataset
from robench.defenses import load
from robench.engine.attack_context import Samples
from robench.engine.device import choose_batch_size
from robench.engine.run import Run
from robench.engine.run_state import ShareResult
from robench.engine.setup import Setup
from robench.engine.workers import Processes
from robench.threats.threat import Threat


@dataclass(frozen=True)
class Timing:
    """The times of one run in seconds.

    Attributes:
        wall: from the clean pass to the final verdicts.
        driver: CPU time of this process.
        shares: CPU time of each share, in order.
        verdicts: digest of the verdicts, which every run must have in common.
    """

    workers: int
    wall: float
    driver: float
    shares: list[float]
    verdicts: str

    @property
    def critical(self) -> float:
        """CPU time of the critical path: this process, then the slowest of the workers, which take shares in order."""
        ends = [0.0] * self.workers
        for seconds in self.shares:
            heapq.heapreplace(ends, ends[0] + seconds)
        return self.driver + max(ends)


def measure(options: argparse.Namespace, workers: int) -> Timing:
    """Time one run."""
    images = load_dataset("digits", "test", options.samples)
    defense, threat = load(options.subject).defense, Threat.parse(options.threat)
    device = torch.device("cpu")
    size = choose_batch_size("auto", device, images.x.shape[-1], len(images))
    run = Run(
        Setup(defense, 0, device, size),
        build_attacks(find_suite(options.suite).specs(threat.norm), threat),
        Samples(images.x, images.y, images.ids),
        threat,
        executor=Processes(workers, shares=workers * options.shares),
    )
    attack = Run.attack
    with tempfile.TemporaryDirectory() as folder:

        def timed(self: Run) -> ShareResult:
            start = time.process_time()
            result = attack(self)
            number = run.parts.index(self)
            (Path(folder) / f"{number:06d}").write_text(str(time.process_time() - start))
            return result

        Run.attack = timed
        try:
            wall, driver = time.monotonic(), time.process_time()
            outcome = run.outcome()
            wall, driver = time.monotonic() - wall, time.process_time() - driver
        finally:
            Run.attack = attack
        shares = [float(path.read_text()) for path in sorted(Path(folder).iterdir())]
    # With one worker, shares run in this process.
    driver -= sum(shares) if workers == 1 else 0.0
    return Timing(workers, wall, driver, shares, str(hash(tuple(outcome.fooled_by))))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--subject", default="mimir-digits")
    parser.add_argument("--suite", default="autoattack")
    parser.add_argument("--threat", default="Linf:0.13")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--shares", type=int, default=1, help="shares per worker")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--repeats", type=int, default=1, help="rounds in which every number of workers runs once"
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    timings: list[Timing] = []
    for _ in range(options.repeats):
        for workers in options.workers:
            timings.append(measure(options, workers))
            last = timings[-1]
            shares = " + ".join(f"{seconds:.1f}" for seconds in last.shares)
            print(
                f"{workers} workers: {last.wall:.1f} s wall; CPU: {last.driver:.1f} s here, {shares} s in shares",
                flush=True,
            )
    if len({timing.verdicts for timing in timings}) > 1:
        raise SystemExit("the verdicts differ between numbers of workers")
    baseline = min(options.workers)

    def middle(workers: int, value: str) -> float:
        return median(getattr(timing, value) for timing in timings if timing.workers == workers)

    print(
        f"\n{options.suite} on {options.samples} images, {options.subject}; {os.cpu_count()} cores, "
        f"load before {load_before:.1f}"
    )
    print("workers  wall, s  efficiency  critical CPU, s  efficiency")
    for workers in options.workers:
        efficiencies = [
            baseline * middle(baseline, value) / (workers * middle(workers, value))
            for value in ("wall", "critical")
        ]
        wall, critical = middle(workers, "wall"), middle(workers, "critical")
        print(f"{workers:7}  {wall:7.1f}  {efficiencies[0]:10.2f}  {critical:15.1f}  {efficiencies[1]:10.2f}")
    if options.output:
        facts = {"samples": options.samples, "suite": options.suite, "subject": options.subject}
        facts |= {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        options.output.write_text(
            json.dumps({**facts, "runs": [asdict(timing) for timing in timings]}, indent=2)
        )


if __name__ == "__main__":
    main()
