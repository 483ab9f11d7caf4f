"""CPU time of the warnings of a run: the same run with and without them, in pairs.

    python perf/health_cost.py --defense mimir-digits --attack autoattack --samples 64 --pairs 5

Both runs of a pair take place one after the other in one process, with alternating order, so that other load affects
them equally; CPU time (user and system) is compared. Without warnings the losses and gradients of rows are not
monitored, the defense is not tested for randomness, and no warning is computed. The script checks that both give the
same result.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from robench import attack
from robench.data import load_dataset
from robench.defenses import load_defense
from robench.engine import result_warnings
from robench.engine.loss_monitor import LossMonitor
from robench.engine.outcome import Outcome

# Functions that compute warnings, which are replaced.
_WARNINGS = (
    "squashed_outputs", "batch_dependence", "nonfinite_logits", "randomised", "few_classes", "nonfinite_gradients",
    "zero_gradients", "losses", "gradient_free_wins",
)  # fmt: skip


class NoMonitor(LossMonitor):
    """A monitor that records nothing."""

    def facts(self, answer, starting: bool) -> dict[str, Tensor | None]:
        return {}

    def note(self, asking: Tensor, first: Tensor | None, facts) -> None:
        pass

    def end(self, lane: int, failed: bool) -> np.ndarray:
        return self.counts[lane]


@contextmanager
def without_warnings() -> Iterator[None]:
    """Inside the block, runs compute no warnings."""
    with ExitStack() as stack:
        stack.enter_context(patch("robench.engine.attack_loop.LossMonitor", NoMonitor))
        for name in _WARNINGS:
            stack.enter_context(patch.object(result_warnings, name, lambda *arguments: []))
        stack.enter_context(patch.object(result_warnings, "looks_random", lambda *arguments: False))
        stack.enter_context(patch.object(result_warnings, "count_nonfinite", lambda *arguments: 0))
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--defense", default="mimir-digits")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--threat", default="Linf:0.1")
    parser.add_argument("--attack", default="apgd")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batch-size", default="auto")
    parser.add_argument("--data-dir")
    args = parser.parse_args()
    images = load_dataset(args.dataset, "test", args.samples, args.data_dir)
    model = load_defense(args.defense, args.dataset)

    def run() -> tuple[Outcome, float]:
        begun = time.process_time()
        outcome = attack(
            args.attack, model, images.x, images.y, threat=args.threat, batch_size=args.batch_size
        )
        return outcome, time.process_time() - begun

    ratios = []
    run()
    for pair in range(args.pairs):
        order = (True, False) if pair % 2 == 0 else (False, True)
        results: dict[bool, tuple[Outcome, float]] = {}
        for warned in order:
            if warned:
                results[True] = run()
            else:
                with without_warnings():
                    results[False] = run()
        (with_, seconds), (without, bare) = results[True], results[False]
        assert torch.equal(with_.x_adv[:], without.x_adv[:]) and with_.passes == without.passes
        ratios.append(seconds / bare)
        print(f"pair {pair + 1}: {seconds:.2f} s with warnings, {bare:.2f} s without, ratio {ratios[-1]:.4f}")
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{args.defense}, {args.attack}, {args.samples} images, {torch.get_num_threads()} threads: warnings cost "
        f"{100 * (middle - 1):+.1f} % of CPU time (median of {len(ratios)} pairs, half of them between "
        f"{100 * (low - 1):+.1f} and {100 * (high - 1):+.1f} %)"
    )


if __name__ == "__main__":
    main()
