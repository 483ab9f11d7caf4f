"""robench against pyautoattack, like for like: one process, one thread, CPU time and rows sent to the network.

    python perf/like_for_like.py                                  # small set-ups of all digits, some minutes of CPU
    python perf/like_for_like.py --subject cnn-a --weights FILE --data-dir DIR
    python perf/like_for_like.py --subject mimir-digits --threat Linf:0.13 --samples 100 --repeats 5

Both run by turns `repeats` times. The script prints survivors, medians of CPU seconds with the smallest and largest
ratio, the CPU time of each over its time inside the network, rows sent to the network (forward + backward), and the
passes that robench counts.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from autoattack import cnn_a
from torch import Tensor, nn

import robench
from robench.attacks.reference import adversary
from robench.data import load_dataset
from robench.threats.threat import Threat

_SUITES = {"standard": "autoattack", "rand": "autoattack-rand"}


@dataclass(frozen=True)
class Setting:
    """A small set-up, in which the slower of the two takes one to two minutes of CPU a run."""

    threat: str
    samples: int
    repeats: int
    version: str = "standard"


_SETTINGS = {
    "standard-digits": Setting("Linf:0.1", 24, 3),
    "mimir-digits": Setting("Linf:0.13", 16, 1),
    "pgd-at-digits": Setting("Linf:0.13", 16, 1),
    "de3-digits": Setting("Linf:0.03", 4, 1, "rand"),
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
        model.register_forward_pre_hook(self._before)
        model.register_forward_hook(self._after)

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
        gradient = torch.autograd.grad

        def timed(*args, **kwargs):
            start = time.process_time()
            try:
                return gradient(*args, **kwargs)
            finally:
                self.inside += time.process_time() - start

        with mock.patch("torch.autograd.grad", timed):
            robust = attack()
        return Turn(robust, time.process_time() - begun, self.inside, self.forward, self.backward)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subject", help="a card, or cnn-a; all small set-ups of digits by default")
    parser.add_argument("--threat")
    parser.add_argument("--version", choices=_SUITES)
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
        compare(argparse.Namespace(**{**vars(options), **chosen, "subject": subject}))


def compare(options: argparse.Namespace) -> None:
    """Run both by turns, and print."""
    is_cifar = options.subject == "cnn-a" or options.subject.endswith("cifar10")
    model = cnn_a(options.weights) if options.subject == "cnn-a" else robench.load_defense(options.subject)
    images = load_dataset("cifar10" if is_cifar else "digits", "test", options.samples, options.data_dir)
    x, y, threat = images.x[:], images.y, Threat.parse(options.threat)
    meter, passes = Meter(model.requires_grad_(True)), {}

    def ours() -> Tensor:
        outcome = robench.attack(
            _SUITES[options.version], model, x, y, threat=threat, seed=options.seed, workers=1
        )
        passes.update(outcome.passes)
        return outcome.robust

    def theirs() -> Tensor:
        runner = adversary(model, threat, options.seed, "cpu", options.version)
        attacked = runner.run_standard_evaluation(x, y, batch_size=250)[0]
        with torch.no_grad():
            return model(attacked).argmax(1) == y

    turns = [(meter.run(ours), meter.run(theirs)) for _ in range(options.repeats)]
    us, them = turns[0]
    seconds, reference = (median(turn[i].seconds for turn in turns) for i in (0, 1))
    ratios = [ours.seconds / theirs.seconds for ours, theirs in turns]
    overhead = median(ours.seconds / ours.inside for ours, _ in turns)
    print(
        f"{options.subject} {threat} {options.version} n={len(x)}: {int(us.robust.sum())} and "
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
