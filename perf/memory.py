"""Peak memory of a run, its verification and a board, by the number of images.

    python perf/memory.py --n 500 5000 50000
    python perf/memory.py --side 32 --n 5000 50000       # as large as CIFAR-10
    python perf/memory.py --side 224 --n 500 5000        # as large as ImageNet: 0.75 GB of images

The dataset is an archive of 8-bit images of 16 px (`--side`), digits shifted by up to two pixels and enlarged; the
defense is a linear classifier, so that the figures measure robench itself. Each command runs in a separate process. Its
peak anonymous memory is sampled a hundred times a second and reported in megabytes; libraries mapped from files are
excluded because they would dominate. Runs use one process (`--workers 1`), so that no memory is shared or counted
twice. Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from robench.data import load_dataset

THREAT = "Linf:0.05"
# Nearest class mean for ten classes.
NETWORK = """
import torch
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        means = torch.load("means.pt")
        linear = nn.Linear(means.shape[1], 10)
        linear.weight.data, linear.bias.data = means, -means.square().sum(1) / 2
        super().__init__(nn.Flatten(), linear)
"""
ATTACKS = ("fgsm", "apgd(steps=5)")


def write_archive(path: Path, n: int, side: int) -> None:
    """Write `n` images, uint8 (n, side, side, 3), with labels."""
    digits = load_dataset("digits", "test")
    draw = np.random.default_rng(0)
    source = (digits.x[:].numpy() * 255).round().astype(np.uint8)
    x = np.empty((n, side, side, 3), np.uint8)
    places = np.arange(side) * 16 // side
    for i in range(n):
        image = np.roll(np.moveaxis(source[i % len(source)], 0, -1), draw.integers(-2, 3, 2), axis=(0, 1))
        x[i] = image[places][:, places]
    y = np.resize(digits.y.numpy(), n)
    np.savez(path, x=x, y=y, classes=np.array(digits.classes))
    flat = torch.from_numpy(np.moveaxis(x[:500], -1, 1) / np.float32(255)).flatten(1)
    means = torch.stack([flat[torch.from_numpy(y[:500]) == k].mean(0) for k in range(10)])
    torch.save(means, path.parent / "means.pt")
    (path.parent / "small.py").write_text(NETWORK)


def measured(folder: str, *arguments: str) -> tuple[float, float]:
    """Peak anonymous memory of `robench ARGUMENTS` in a folder, in MB, and its time in seconds."""
    begun, most = time.monotonic(), 0
    command = [sys.executable, "-m", "robench", *arguments]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            most = max(most, anonymous(process.pid))
            time.sleep(0.01)
        if process.returncode != 0:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {errors.read()[-500:]}")
    return most / 1024, time.monotonic() - begun


def anonymous(process: int) -> int:
    """Anonymous memory of a process in kilobytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, nargs="+", default=[500, 5_000, 50_000])
    parser.add_argument("--side", type=int, default=16, help="side of the images in pixels")
    parser.add_argument("--attack", nargs="+", default=ATTACKS)
    arguments = parser.parse_args()
    defense = f"python:small.Net(image_size={arguments.side})"
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; {defense} at {THREAT}; peak MB (seconds)"
    )
    print(f"{'attack':<16}{'n':>8}{'run':>16}{'verify':>16}{'board':>16}", flush=True)
    for n in arguments.n:
        with tempfile.TemporaryDirectory() as folder:
            archive, results = Path(folder, "images.npz"), Path(folder, "results")
            write_archive(archive, n, arguments.side)
            for attack in arguments.attack:
                run = measured(
                    folder, "run", "--defense", defense, "--attack", attack, "--dataset", f"npz:{archive}",
                    "--samples", str(n), "--threat", THREAT, "--workers", "1", "--results", str(results),
                    "--batch-size", "64",
                )  # fmt: skip
                (record,) = (
                    path.parent
                    for path in results.rglob("record.json")
                    if path.parent.name.startswith(attack.partition("(")[0])
                )
                figures = (
                    run,
                    measured(folder, "verify", "--trust", str(record)),
                    measured(folder, "board", str(results)),
                )
                cells = "".join(f"{f'{size:.0f} ({seconds:.0f})':>16}" for size, seconds in figures)
                print(f"{attack:<16}{n:>8,}{cells}", flush=True)


if __name__ == "__main__":
    main()
