"""Check robench on a GPU and print one table.

    python perf/gpu.py                                # aims at 8 minutes
    python perf/gpu.py --minutes 60                   # AutoAttack on all 1,000 images
    python perf/gpu.py --device cpu --n 8 --minutes 1 # a miniature without a GPU

The networks have the shapes of ViT-S/4 and WRN-28-10 for images of 32 px. They are trained for a few steps on synthetic
classes, and the radius is chosen so that PGD fools about one image in twenty: nearly every image costs the whole of
AutoAttack, as on a robust network. The reference (pyautoattack) attacks the same images as robench, as many as fit in
the time.

The checks of a network run in a process of their own, with a limit of time for each. One that hangs, dies or breaks the
device is a row of the table, and the others go on in a new process. What the time does not suffice for is named. The
table is printed even if the script is stopped. Exit code 1 if a check fails.
"""

import argparse
import functools
import multiprocessing
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from gpu_checks import CHECKS, Bench, Case, devices, networks, tests, trained

from robench.records.provenance import robench_version

# The part of the time that each check may take, which few need, and the seconds that a process takes to start.
_LIMITS = {
    "tests": 0.25,
    "training": 0.1,
    "bf16": 0.1,
    "judge": 0.05,
    "deterministic": 0.1,
    "compiled": 0.15,
    "memory": 0.05,
    "autoattack": 0.45,
    "devices": 0.1,
}
_START = 40.0
# A CPU may be slow, and a miniature shows no times: its limits are longer.
_PATIENCE_ON_CPU = 30


def serve(pipe: Connection, bench: Bench, network: str, names: list[str], file: Path) -> None:
    """Run checks of one network and send the result of each; the target of a process.

    Args:
        names: the checks; "training" makes the case of the others, which is kept in `file`.
    """
    if bench.small:
        # The compiler for CPUs takes minutes.
        torch.compile = functools.partial(torch.compile, backend="aot_eager")
    checks = {check.__name__: check for check in CHECKS}

    def training() -> str:
        case = trained(bench, network, networks(bench.small)[network](), 2 if bench.small else 60, bench.n)
        state = {"model": case.model.state_dict(), "x": case.x, "y": case.y, "threat": case.threat}
        torch.save(state, file)
        return f"radius {case.threat}"

    for name in names:
        if name == "training":
            check = training
        else:
            check = functools.partial(checks[name], bench, read_case(bench, network, file))
        pipe.send(outcome(check))


def read_case(bench: Bench, network: str, file: Path) -> Case:
    """The case that the training has kept in a file."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    model = networks(bench.small)[network]()
    model.load_state_dict(state.pop("model"))
    return Case(network, model.to(bench.device).eval(), **state)


def outcome(check: Callable[[], str]) -> tuple[str, bool]:
    """The result of a check in words, and whether it failed."""
    try:
        return check(), False
    except Exception as error:
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        return f"FAILED: {type(error).__name__}: {str(error).strip()}", True


@dataclass
class Table:
    """The rows of the table, and the time.

    Attributes:
        seconds: time for everything.
        rows: check, network, first line of the result, and whether it failed.
    """

    seconds: float
    rows: list[tuple[str, str, str, bool]] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def limit(self, name: str) -> float:
        """Seconds that a check may take; 0 or less if no time is left."""
        return min(_LIMITS[name] * self.seconds, self.begun + self.seconds - time.monotonic())

    def add(self, name: str, network: str, result: tuple[str, bool], since: float) -> None:
        """Add a row and print it, so that nothing is lost if the script is killed."""
        text, failed = result
        self.rows.append((name, network, (text.splitlines() or [""])[0][:160], failed))
        print(f"{name}, {network} ({time.monotonic() - since:.0f} s): {text}", flush=True)

    def show(self) -> None:
        print(f"\n| {'check':<14} | {'network':<10} | result\n|{'-' * 16}|{'-' * 12}|{'-' * 60}")
        for name, network, text, _ in self.rows:
            print(f"| {name:<14} | {network:<10} | {text}")
        print(f"{time.monotonic() - self.begun:.0f} s in all", flush=True)


_NO_TIME = ("not tried: no time left (--minutes)", False)


def alone(table: Table, bench: Bench, check: Callable[[Bench, float], str]) -> None:
    """Run a check that starts commands."""
    name, since = check.__name__, time.monotonic()
    limit = table.limit(name)
    table.add(name, "-", outcome(lambda: check(bench, limit)) if limit > 0 else _NO_TIME, since)


def of_network(
    table: Table, bench: Bench, network: str, folder: Path, target: Callable[..., None] = serve
) -> None:
    """Run the checks of a network in a process, and in a new one after each that fails."""
    waiting = ["training", *(check.__name__ for check in CHECKS)]
    file = folder / network.replace("/", "-")
    while waiting:
        if table.limit(waiting[0]) <= 0:
            table.add(waiting.pop(0), network, _NO_TIME, time.monotonic())
            continue
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=target, args=(theirs, bench, network, list(waiting), file)
        )
        process.start()
        theirs.close()
        name, start, failed = "", _START, False
        try:
            while waiting and not failed and (limit := table.limit(waiting[0])) > 0:
                since, name = time.monotonic(), waiting.pop(0)
                result = _received(ours, process, limit + start)
                table.add(name, network, result, since)
                start, failed = 0.0, result[1]
            if not waiting and not failed:
                process.join(_START)
        finally:
            process.kill()
            process.join()
            ours.close()
        if failed and name == "training":
            for name in waiting:
                table.add(name, network, ("not tried: no network", False), time.monotonic())
            return


def _received(pipe: Connection, process: BaseProcess, limit: float) -> tuple[str, bool]:
    """The result that a process sends, or how it failed to send one."""
    if not pipe.poll(limit):
        return f"FAILED: took longer than {limit:.0f} s", True
    try:
        return pipe.recv()
    except EOFError:
        process.join()
        return f"FAILED: the process ended with exit code {process.exitcode}", True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a miniature")
    parser.add_argument("--n", type=int, default=1000, help="number of images")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything, at most")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: --device cpu --n 8 --minutes 1 tries a miniature")
        return 3
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, a miniature"
    print(f"robench {robench_version()}, torch {torch.__version__}, {name}", flush=True)
    seconds = 60 * options.minutes
    # Most of the time is for AutoAttack: robench and the reference on two networks.
    bench = Bench(device, options.n, seconds / 5)
    table = Table(seconds * (_PATIENCE_ON_CPU if bench.small else 1))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        alone(table, bench, tests)
        with tempfile.TemporaryDirectory() as folder:
            for network in networks(bench.small):
                of_network(table, bench, network, Path(folder))
        alone(table, bench, devices)
    finally:
        table.show()
    return 1 if any(failed for *_, failed in table.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
