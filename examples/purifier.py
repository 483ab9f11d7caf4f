"""A defense of your own: a purifier in front of a classifier, under three kinds of attackers.

The purifier rounds pixels to a few gray levels. Its gradient is zero almost everywhere, so an attack with the
exact gradient gets no direction, and the run carries a warning. BPDA replaces the purifier's gradient with the
identity, and breaks the defense.
"""

import torch

import robench
from robench.core import registry
from robench.defenses import Purifier


@registry.purifiers.register("round")
class Round(Purifier):
    """Rounds pixels to `levels` gray levels."""

    def __init__(self, levels: int = 4):
        super().__init__()
        self.levels = levels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * (self.levels - 1)).round() / (self.levels - 1)


def main(samples: int = 50, attack: str = "apgd(steps=20)") -> None:
    for knowledge in ("oblivious", "full", "bpda"):
        record = robench.run(
            "round(levels=4)+standard-digits",
            attack,
            dataset="digits",
            threat="Linf:0.1",
            samples=samples,
            knowledge=knowledge,
        )
        warnings = ", ".join(warning.code for warning in record.warnings) or "none"
        robust = record.robust_accuracy.value
        print(f"{knowledge:>9}: {robust:.1%} robust, warnings: {warnings}")


if __name__ == "__main__":
    main()
