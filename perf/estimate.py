"""Coverage and price of `--estimate`, simulated from the verdicts of full runs.

    python perf/estimate.py --verdicts DIR
    python perf/estimate.py

With the folder that `perf/quick.py measure` writes, the images are those of its networks, and the screen is `quick`.
Without it, they are those of the shipped records of AutoAttack, and the screen is AutoAttack's first attack, which
misses many more images. Runs on more images than a record has are drawn from it with replacement. The price is the
share of the full run's passes that the screen and the sample take.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robench.catalog import folder
from robench.evaluation.estimate import Sampling
from robench.records.estimate import NOT_ATTACKED, Estimate
from robench.records.record import read_record
from robench.records.samples import read_samples

# Sizes and half widths of the table.
SIZES, HALF_WIDTHS = (1000, 5000, 10000), (0.5, 1.0)
BATCH_SIZE = 56


@dataclass(frozen=True)
class Verdicts:
    """Verdicts on the images of a full run.

    Attributes:
        survives: whether an image survives the screen, bool (n,).
        robust: whether it survives the suite, bool (n,).
        screened, passes: passes of the screen and of the suite on each image, (n,).
    """

    name: str
    survives: np.ndarray
    robust: np.ndarray
    screened: np.ndarray
    passes: np.ndarray

    def drawn(self, n: int, generator: np.random.Generator) -> "Verdicts":
        """n images, drawn with replacement."""
        rows = generator.integers(0, len(self.robust), n)
        columns = (column[rows] for column in (self.survives, self.robust, self.screened, self.passes))
        return Verdicts(self.name, *columns)


def simulate(verdicts: Verdicts, seed: int, half_width: float) -> tuple[bool, float]:
    """Whether the interval of an estimate holds the accuracy of the full run, and its price."""
    n = len(verdicts.robust)
    sampling = Sampling.of(verdicts.survives.tolist(), range(n), seed, BATCH_SIZE)
    order, share = np.array(sampling.order), np.array(sampling.share)
    fooled_by = np.where(verdicts.robust, "", "attack")
    first, current = sampling.certain, _estimate(fooled_by, order, share, sampling.certain)
    while current.half_width > half_width and first < sampling.count:
        first = sampling.next(current, first, half_width)
        current = _estimate(fooled_by, order, share, first)
    low, high = current.accuracy.interval
    holds = low - 1e-9 <= verdicts.robust.mean() <= high + 1e-9
    spent = verdicts.screened.sum() + verdicts.passes[share < first].sum()
    return bool(holds), float(spent / verdicts.passes.sum())


def _estimate(fooled_by: np.ndarray, order: np.ndarray, share: np.ndarray, first: int) -> Estimate:
    return Estimate.of(np.where(share < first, fooled_by, NOT_ATTACKED).tolist(), order.tolist())


def of_shipped_records() -> Iterator[Verdicts]:
    """The shipped records of AutoAttack, with its first attack as the screen."""
    for file in sorted((folder("result") / "shipped").glob("*/*/autoattack/record.json")):
        record = read_record(file)
        rows = read_samples(file.parent).to_pydict()
        by, passes = np.array(rows["fooled_by"]), np.add(rows["forward"], rows["backward"])
        first = record.attacks[0]
        screened = np.full(len(by), (first.forward + first.backward) / len(by))
        name = f"{record.job.defense.name} {record.job.threat}"
        yield Verdicts(name, ~np.isin(by, ("clean", first.spec)), by == "", screened, passes)


def of_quick(verdicts: Path) -> Iterator[Verdicts]:
    """All images of `perf/quick.py` together."""
    from quick import OTHERS, PART, reference

    parts = []
    for subject in OTHERS:
        for start in range(0, subject.samples, PART):
            file = np.load(verdicts / f"quick-{start}-{subject.file}")
            robust, passes = reference(subject, Path(), verdicts, start)
            parts.append((file["robust"], robust, file["passes"], passes))
    yield Verdicts("the networks of perf/quick.py", *map(np.concatenate, zip(*parts, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--verdicts", type=Path, help="folder that perf/quick.py measure has written")
    parser.add_argument("--trials", type=int, default=200)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    for verdicts in of_quick(options.verdicts) if options.verdicts else of_shipped_records():
        for n in SIZES:
            for half_width in HALF_WIDTHS:
                results = [
                    simulate(verdicts.drawn(n, generator), seed, half_width) for seed in range(options.trials)
                ]
                holds, prices = zip(*results, strict=True)
                print(
                    f"| {verdicts.name} | {n:,} | {half_width} | {np.mean(holds):.1%} | {np.mean(prices):.1%} "
                    f"| {max(prices):.1%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
