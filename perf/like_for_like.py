"""robench against other libraries, like for like: one process, one thread, CPU time and rows sent to the network.

    python perf/like_for_like.py                                  # small set-ups of all digits, some minutes of CPU
    python perf/like_for_like.py --subject cnn-a --weights FILE --data-dir DIR
    python perf/like_for_like.py --subject mimir-digits --threat Linf:0.13 --samples 100 --repeats 5
    python perf/like_for_like.py --subject pgd-at-digits --threat L2:0.6 --attack ddn,fmn,cw,square

AutoAttack and Square are held against pyautoattack, and DDN, FMN and C&W against the adversarial library (`pip install
adv-lib`), with the same numbers of steps. The latter search for the nearest adversarial example of each image, and an
image survives if it is outside the ball. Both run by turns `repeats` times. The script prints survivors, medians of CPU
seconds with the smallest and largest ratio, the CPU time of each over its time inside the network, rows sent to the
network (forward + backward), and the passes that robench counts.
"""

import argparse
import importlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from autoattack import cnn_a
from torch import Tensor, nn

import robench
from robench.attacks.reference import adversary
from robench.data import load_dataset
from robench.threats.threat import Threat

# The number of steps of attacks other than AutoAttack; C&W has three rounds of them, and Square five times as many.
_STEPS = 100
# Installed by hand for this comparison alone; its package needs visdom, which draws curves.
_ADV_LIB = "adv_lib.attacks"
_NORMS = {"Linf": math.inf, "L2": 2, "L1": 1}


@dataclass(frozen=True)
class Setting:
    """A small set-up, in which the slower of the two takes one to two minutes of CPU a run."""

    threat: str
    samples: int
    repeats: int
    attack: str = "autoattack"


@dataclass(frozen=True)
class Case:
    """A network, images and labels, and the threat model."""

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    seed: int


def _pyautoattack(case: Case, version: str = "standard", queries: int = 0) -> Tensor:
    runner = adversary(case.model, case.threat, case.seed, "cpu", version)
    if queries:
        runner.attacks_to_run, runner.square.n_queries = ["square"], queries
    return runner.run_standard_evaluation(case.x, case.y, batch_size=250)[0]


def _adv_lib(case: Case, name: str, has_norm: bool = False, **arguments: Any) -> Tensor:
    with mock.patch.dict(sys.modules, {"visdom": mock.MagicMock()}):
        attack = getattr(importlib.import_module(_ADV_LIB), name)
    norm = {"norm": _NORMS[case.threat.norm]} if has_norm else {}
    return attack(case.model, case.x, case.y, **norm, **arguments)


# Our spec, and the other library's adversarial images.
_PEERS: dict[str, tuple[str, Callable[[Case], Tensor]]] = {
    "autoattack": ("autoattack", _pyautoattack),
    "autoattack-rand": ("autoattack-rand", partial(_pyautoattack, version="rand")),
    "square": (f"square(queries={5 * _STEPS})", partial(_pyautoattack, queries=5 * _STEPS)),
    "ddn": (f"ddn(steps={_STEPS}, minimise=True)", partial(_adv_lib, name="ddn", steps=_STEPS)),
    "fmn": (
        f"fmn(steps={_STEPS}, minimise=True)",
        partial(_adv_lib, name="fmn", has_norm=True, steps=_STEPS),
    ),
    "cw": (
        f"cw(steps={_STEPS}, rounds=3, minimise=True)",
        partial(
            _adv_lib,
            name="carlini_wagner_l2",
            initial_const=1e-2,
            binary_search_steps=3,
            max_iterations=_STEPS,
            abort_early=False,
        ),
    ),
}


_SETTINGS = {
    "standard-digits": Setting("Linf:0.1", 24, 3),
    "mimir-digits": Setting("Linf:0.13", 16, 1),
    "pgd-at-digits": Setting("Linf:0.13", 16, 1),
    "de3-digits": Setting("Linf:0.03", 4, 1, "autoattack-rand"),
    "cnn-a": Setting("Linf:2/255", 16, 1),
}


@dataclass
class Turn:
    """One run: images that survive, CPU seconds in all and inside the network, and rows sent."""

    robust: Tensor
    seconds: float
    inside: float
    forward: int
    backward: int


class Meter:
    """Counts the rows of a network and the CPU time inside it."""

    def __init__(self, model: nn.Module):
        self.forward = self.backward = 0
        self.inside = self.begun = 0.0
        self._hooks = [
            model.register_forward_pre_hook(self._before),
            model.register_forward_hook(self._after),
        ]

    def close(self) -> None:
        """Stop counting."""
        for hook in self._hooks:
            hook.remove()

    def _before(self, model: nn.Module, inputs: tuple[Tensor]) -> None:
        self.begun = time.process_time()

    def _after(self, model: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> None:
        self.inside += time.process_time() - self.begun
        self.forward += len(logits)
        if logits.requires_grad:
            logits.register_hook(self._backward)

    def _backward(self, grad: Tensor) -> None:
        self.backward += len(grad)

    def run(self, attack) -> Turn:
        """Run an attack, a function to the images that survive."""
        self.forward = self.backward = 0
        self.inside, begun = 0.0, time.process_time()
        backward = torch.autograd.graph._engine_run_backward

        def timed(*args, **kwargs):
            start = time.process_time()
            try:
                return backward(*args, **kwargs)
            finally:
                self.inside += time.process_time() - start

        with mock.patch("torch.autograd._engine_run_backward", timed):
            robust = attack()
        return Turn(robust, time.process_time() - begun, self.inside, self.forward, self.backward)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subject", help="a card, or cnn-a; all small set-ups of digits by default")
    parser.add_argument("--threat")
    parser.add_argument("--attack", help=f"{', '.join(_PEERS)}; several with commas")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="safetensors file of cnn-a")
    parser.add_argument("--data-dir", help="folder of CIFAR-10")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for subject in [options.subject] if options.subject else [name for name in _SETTINGS if "digits" in name]:
        small = _SETTINGS.get(subject, Setting("Linf:0.1", 100, 5))
        chosen = {name: getattr(options, name) or value for name, value in vars(small).items()}
        case = load(subject, chosen["threat"], chosen["samples"], options)
        for attack in chosen["attack"].split(","):
            compare(f"{subject} {case.threat} {attack}", case, *_PEERS[attack], chosen["repeats"])


def load(subject: str, threat: str, samples: int, options: argparse.Namespace) -> Case:
    """The network and its images."""
    is_cifar = subject == "cnn-a" or subject.endswith("cifar10")
    model = cnn_a(options.weights) if subject == "cnn-a" else robench.load_defense(subject)
    images = load_dataset("cifar10" if is_cifar else "digits", "test", samples, options.data_dir)
    return Case(model.requires_grad_(True), images.x[:], images.y, Threat.parse(threat), options.seed)


def compare(title: str, case: Case, spec: str, attack: Callable[[Case], Tensor], repeats: int) -> None:
    """Run both by turns, and print."""
    model, x, y, threat = case.model, case.x, case.y, case.threat
    meter, passes = Meter(model), {}

    def ours() -> Tensor:
        outcome = robench.attack(spec, model, x, y, threat=threat, seed=case.seed, workers=1)
        passes.update(outcome.passes)
        return outcome.robust

    def theirs() -> Tensor:
        attacked = attack(case).detach()
        with torch.no_grad():
            return (model(attacked).argmax(1) == y) | ~threat.contains(x, attacked, threat.slack)

    turns = [(meter.run(ours), meter.run(theirs)) for _ in range(repeats)]
    meter.close()
    us, them = turns[0]
    seconds, reference = (median(turn[i].seconds for turn in turns) for i in (0, 1))
    ratios = [ours.seconds / theirs.seconds for ours, theirs in turns]
    overhead = median(ours.seconds / ours.inside for ours, _ in turns)
    print(
        f"{title} n={len(x)}: {int(us.robust.sum())} and "
        f"{int(them.robust.sum())} survive, {float((us.robust == them.robust).double().mean()):.1%} the same\n"
        f"  CPU seconds {seconds:.1f} and {reference:.1f}, ratio {median(ratios):.2f} "
        f"[{min(ratios):.2f}, {max(ratios):.2f}], time over that in the network {overhead:.2f} and "
        f"{median(theirs.seconds / theirs.inside for _, theirs in turns):.2f}\n"
        f"  rows {us.forward} + {us.backward} and {them.forward} + {them.backward}, "
        f"ratio {(us.forward + us.backward) / (them.forward + them.backward):.2f}; passes {passes}, "
        f"rows / passes {(us.forward + us.backward) / max(sum(passes.values()), 1):.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
