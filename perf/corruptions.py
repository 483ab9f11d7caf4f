"""CPU time of corruptions: the library `imagecorruptions-imaug` compared with robench, in one process on one core.

Prints CPU milliseconds per image (all five severities together) for each corruption, the largest difference in gray
levels and the share of equal pixels, then the total for 1,000 images of the fifteen common ones. Needs the ImageNet
validation images in the layout of `robench run --data-dir`.

    python perf/corruptions.py --data-dir DIR --samples 20
"""

import argparse
import time

import cv2
import numpy as np
from imagecorruptions import corrupt as library

from robench.corruption import make, quick
from robench.corruption.names import COMMON, SEVERITIES, VALIDATION
from robench.data import load_dataset
from robench.data.corrupted import bytes8


def theirs(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """The corruption by the library, with the same random numbers."""
    options = {"seed": seed} if name in ("glass_blur", "impulse_noise") else {}
    np.random.seed(seed)  # noqa: NPY002
    return library(image, severity=severity, corruption_name=name, **options)


def ours(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """The corruption by robench."""
    np.random.seed(seed)  # noqa: NPY002
    return make.apply(image, name, severity, seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="folder that contains imagenet/val")
    parser.add_argument("--samples", type=int, default=20)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    pictures = bytes8(load_dataset("imagenet", samples=options.samples, data_dir=options.data_dir).x[:])
    totals = [0.0, 0.0]
    print(
        "| corruption | library, ms | ours, ms | equal pixels | largest difference |\n|---|---|---|---|---|"
    )
    for name in COMMON + VALIDATION:
        spent, equal, largest = [0.0, 0.0], 0, 0
        for makes in (theirs, ours):
            makes(pictures[0], name, 1, 0)  # warm-up: compiles code and reads files
        for number, image in enumerate(pictures):
            for severity in SEVERITIES:
                results = []
                for which, makes in enumerate((theirs, ours)):
                    begun = time.process_time()
                    results.append(makes(image, name, severity, number))
                    spent[which] += 1000 * (time.process_time() - begun) / len(pictures)
                difference = np.abs(results[0].astype(int) - results[1])
                equal += int((difference == 0).sum())
                largest = max(largest, int(difference.max()))
        share = equal / (pictures.size * len(SEVERITIES))
        changed = name in quick.QUICK or name == "glass_blur"
        row = (
            f"| {name} | {spent[0]:.1f} | {spent[1]:.1f} |"
            if changed
            else f"| {name} | {spent[0]:.1f} | the same |"
        )
        print(f"{row} {100 * share:.4f} % | {largest} |", flush=True)
        if name in COMMON:
            # Corruptions that call the library cost the same in both: its time counts for both.
            totals = [totals[0] + spent[0], totals[1] + (spent[1] if changed else spent[0])]
    print(
        f"\nFifteen corruptions at five severities, 1,000 images: {totals[0]:.0f} s by the library, {totals[1]:.0f} s"
    )


if __name__ == "__main__":
    main()
