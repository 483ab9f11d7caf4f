"""The suite `quick` against AutoAttack: the search that chose it, and how close it comes on other networks.

    python perf/quick.py search --data DIR
    python perf/quick.py measure --data DIR --verdicts DIR [--attack SUITE]

`search` runs candidates on the development networks and prints how many images survive each. `measure` runs `quick` on
the other networks, and AutoAttack where no shipped record has its verdicts, and prints the table of docs/quick.md.
Verdicts are kept in the folder of `--verdicts`, so it may be interrupted. DIR has CIFAR-10 (`cifar-10-batches-py`),
ImageNet's and Tiny-ImageNet's validation images (`imagenet`, `tiny-imagenet-200`) and weights (`weights`).
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import robust_200
import torch
from autoattack import cnn_a
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import robench
from robench.catalog import folder
from robench.data import Images, load_dataset
from robench.threats.threat import Threat

# All cost at most 5 % of AutoAttack's passes on an image that survives.
CANDIDATES = (
    'apgd(loss="dlr", targets=9, steps=20)',
    'apgd(loss="dlr", targets=9, steps=23)',
    'apgd(loss="margin", targets=9, steps=23)',
    'apgd(loss="ce", targets=9, steps=23)',
    'apgd(loss="ce", steps=10)+apgd(loss="dlr", targets=9, steps=21)',
    'apgd(loss="dlr", targets=6, steps=34)',
    'apgd(loss="dlr", targets=4, steps=52)',
    'apgd(loss="dlr", targets=9, steps=12)+apgd(loss="dlr", targets=4, steps=24)',
    'apgd(loss="dlr", targets=9, steps=10)+apgd(loss="dlr", targets=2, steps=55)',
    'apgd(loss="dlr", targets=9, steps=11)+apgd(loss="margin", targets=9, steps=11)',
    'apgd(loss="ce", steps=50)+apgd(loss="dlr", targets=3, steps=50)',
)
# Further candidates in L2 and L1, where attacks may need more steps.
MORE_STEPS = (
    'apgd(loss="dlr", targets=3, steps=70)',
    'apgd(loss="dlr", targets=2, steps=105)',
    'apgd(loss="dlr", steps=70)+apgd(loss="dlr", targets=4, steps=35)',
    'apgd(loss="ce", steps=20)+apgd(loss="dlr", targets=9, steps=20)',
    'apgd(loss="margin", targets=3, steps=70)',
)
MINIMUM_NORM = {"L2": ("ddn(steps=210)", "fmn(steps=210)"), "L1": ("fmn(steps=210)",)}
# The search compares candidates on images between these multiples of the radius, by the first candidate.
CONTESTED = (0.93, 1.07)
# Number of images whose verdicts are kept in one file.
PART = 100


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR-10 (He et al. 2015, arXiv 1512.03385), whose shortcuts have no parameters."""

    def __init__(self, weights: Path):
        super().__init__()
        self.state = load_file(weights)
        self.mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        self.std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def _convolved(self, x: Tensor, place: str, number: int, stride: int = 1) -> Tensor:
        state, norm = self.state, f"{place}bn{number}"
        x = F.conv2d(x, state[f"{place}conv{number}.weight"], stride=stride, padding=1)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.batch_norm(x, mean, variance, state[f"{norm}.weight"], state[f"{norm}.bias"])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self._convolved((x - self.mean) / self.std, "", 1))
        for stage in (1, 2, 3):
            for block in (0, 1, 2):
                stride, place = 2 if stage > 1 and not block else 1, f"layer{stage}.{block}."
                y = F.relu(self._convolved(x, place, 1, stride))
                y = self._convolved(y, place, 2)
                if stride == 2:
                    pad = y.shape[1] // 4
                    x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad))
                x = F.relu(x + y)
        return F.linear(x.mean((2, 3)), self.state["linear.weight"], self.state["linear.bias"])


class FirstClasses(nn.Module):
    """A network with only the first `count` of its logits."""

    def __init__(self, network: nn.Module, count: int):
        super().__init__()
        self.network, self.count = network, count

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, : self.count]


@dataclass(frozen=True)
class Subject:
    """A network, its images and a threat.

    Attributes:
        network: a card, "cnn-a", "resnet-20" or "robust-200".
        classes: number of the first classes to keep; 0 for all.
        shipped: folder of a shipped record of AutoAttack with the same images and threat; empty for none.
    """

    network: str
    threat: str
    samples: int
    classes: int = 0
    shipped: str = ""

    @property
    def name(self) -> str:
        return f"{self.network}{f' ({self.classes} classes)' if self.classes else ''}"

    @property
    def file(self) -> str:
        return f"{self.network}-{self.classes}-{self.threat.replace('/', 'over').replace(':', '-')}-{self.samples}.npz"

    def load(self, data: Path, verdicts: Path) -> tuple[nn.Module, Images]:
        """The network and its images."""
        if self.network == "robust-200":
            model = robust_200.network(data, verdicts / "robust-200.safetensors")
            return model, robust_200.images(data, self.samples)
        if self.network == "cnn-a":
            model: nn.Module = cnn_a(data / "weights" / "cnn_a_adv_cifar10.safetensors")
        elif self.network == "resnet-20":
            model = ResNet20(data / "weights" / "resnet20_cifar10.safetensors")
        elif "imagenet" in self.network:
            checkpoint = str(data / "weights" / "squeezenet1_1_imagenet.safetensors")
            model = robench.load_defense(self.network, checkpoint=checkpoint)
        else:
            model = robench.load_defense(self.network)
        digits = self.network.endswith("digits")
        dataset = "digits" if digits else "imagenet" if "imagenet" in self.network else "cifar10"
        count = None if self.classes else self.samples
        images = load_dataset(dataset, "test", count, None if digits else str(data))
        if not self.classes:
            return model, images
        kept = (images.y < self.classes).nonzero()[: self.samples, 0]
        chosen = Images(
            images.name, images.split, images.x[kept], images.y[kept], images.ids[kept], images.classes
        )
        return FirstClasses(model, self.classes), chosen


DEVELOPMENT = (
    Subject("cnn-a", "Linf:2/255", 500),
    Subject("pgd-at-digits", "Linf:0.13", 250),
    Subject("cnn-a", "L2:0.25", 1000),
    Subject("cnn-a", "L1:3", 300),
    Subject("pgd-at-digits", "L2:1.5", 150),
    Subject("pgd-at-digits", "L1:8", 80),
)
OTHERS = (
    Subject("mimir-cifar10", "Linf:8/255", 600, shipped="cifar10-linf/mimir-cifar10/autoattack"),
    Subject("pgd-at-cifar10", "Linf:8/255", 700, shipped="cifar10-linf/pgd-at-cifar10/autoattack"),
    Subject("mimir-digits", "Linf:0.13", 100, shipped="digits-linf/mimir-digits/autoattack"),
    Subject("mae-at-digits", "Linf:0.13", 100, shipped="digits-linf/mae-at-digits/autoattack"),
    Subject("mimir-digits", "L2:1.5", 100),
    Subject("mimir-digits", "L1:8", 20),
    Subject("mimir-digits", "Linf:0.13", 12, classes=2),
    Subject("standard-digits", "Linf:0.13", 100, shipped="digits-linf/standard-digits/autoattack"),
    Subject("maep-digits", "Linf:0.13", 100, shipped="digits-linf/maep-digits/autoattack"),
    Subject("resnet-20", "Linf:8/255", 100),
    Subject("squeezenet-imagenet", "Linf:4/255", 20),
    Subject("robust-200", "Linf:10/255", 300),
    Subject("cnn-a", "Linf:2/255", 300),
)


def attacked(
    attack: str, model: nn.Module, images: Images, threat: str
) -> tuple[np.ndarray, np.ndarray, float]:
    """Which images survive an attack, its passes on each image, and the CPU time."""
    if threat.startswith("L1"):
        attack = attack.replace("apgd(", "apgd-l1(")
    begun = time.process_time()
    result = robench.attack(attack, model, images.x, images.y, threat=threat, workers=1)
    seconds = time.process_time() - begun
    outcome = result
    return result.robust.numpy(), (outcome.forward + outcome.backward).numpy(), seconds


def kept(
    attack: str, subject: Subject, data: Path, verdicts: Path, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts and passes of an attack on the images from `start`, at most PART of them, which are kept in a file."""
    path = verdicts / f"{attack}-{start}-{subject.file}"
    if not path.exists():
        model, images = subject.load(data, verdicts)
        part = slice(start, start + PART)
        images = replace(images, x=images.x[part], y=images.y[part], ids=images.ids[part])
        robust, passes, seconds = attacked(attack, model, images, subject.threat)
        np.savez(path, robust=robust, passes=passes, seconds=seconds)
    file = np.load(path)
    return file["robust"], file["passes"]


def reference(subject: Subject, data: Path, verdicts: Path, start: int) -> tuple[np.ndarray, np.ndarray]:
    """AutoAttack's verdicts and passes on the images from `start`: of the shipped record, or those that are kept."""
    if not subject.shipped:
        return kept("autoattack", subject, data, verdicts, start)
    path = folder("result") / "shipped" / subject.shipped / "samples.parquet"
    rows = pq.read_table(path).slice(start, PART).to_pydict()
    return np.array([by == "" for by in rows["fooled_by"]]), np.add(rows["forward"], rows["backward"])


def candidates(norm: str) -> tuple[str, ...]:
    """The candidates of the search in a norm."""
    return CANDIDATES if norm == "Linf" else (*CANDIDATES, *MORE_STEPS, *MINIMUM_NORM[norm])


def search(data: Path, verdicts: Path, subjects: Sequence[Subject]) -> None:
    """Print how many contested images survive each candidate on the development networks.

    An image is contested if the first candidate fools it at a slightly larger radius, but not at a slightly smaller
    one: other images survive or fall under every candidate. In L1 that is not so, and all images are compared.
    """
    for subject in subjects:
        model, images = subject.load(data, verdicts)
        threat = Threat.parse(subject.threat)
        if threat.norm == "L1":
            print(f"{subject.name} {threat}: all {len(images)} images", flush=True)
        else:
            smaller, larger = (
                attacked(CANDIDATES[0], model, images, f"{threat.norm}:{factor * threat.eps}")[0]
                for factor in CONTESTED
            )
            rows = (smaller & ~larger).nonzero()[0]
            images = replace(images, x=images.x[rows], y=images.y[rows], ids=images.ids[rows])
            print(f"{subject.name} {threat}: {len(rows)} of {len(smaller)} images are contested", flush=True)
        survivors = []
        for candidate in candidates(threat.norm):
            robust, passes, seconds = attacked(candidate, model, images, subject.threat)
            survivors.append(robust)
            print(f"  {int(robust.sum()):4} {int(passes.max()):4} {seconds:5.0f} s  {candidate}", flush=True)
        print(f"  {int(np.all(survivors, axis=0).sum()):4} survive all of them", flush=True)


def measure(data: Path, verdicts: Path, attack: str, subjects: Sequence[Subject]) -> None:
    """Print one row of the table for each network, and one for all that had no part in the search together."""
    rows: dict[Subject, tuple] = {}
    searched = {subject.network for subject in DEVELOPMENT}
    for subject in subjects:
        parts = []
        for start in range(0, subject.samples, PART):
            robust = reference(subject, data, verdicts, start)
            parts.append((*robust, *kept(attack, subject, data, verdicts, start)))
        rows[subject] = tuple(map(np.concatenate, zip(*parts, strict=True)))
        mark = " (development)" if subject.network in searched else ""
        print(_row(f"{subject.name}{mark} | {subject.threat}", *rows[subject]), flush=True)
    others = [row for subject, row in rows.items() if subject.network not in searched]
    if others:
        print(_row("all others | ", *map(np.concatenate, zip(*others, strict=True))))


def _row(
    name: str, robust: np.ndarray, passes: np.ndarray, quick: np.ndarray, quick_passes: np.ndarray
) -> str:
    both = robust & quick
    mine, full = (p[both].mean() if both.any() else np.nan for p in (quick_passes, passes))
    missed, only = int((quick & ~robust).sum()), int((robust & ~quick).sum())
    cells = (
        f"{len(robust):,}",
        f"{robust.mean():.1%}",
        f"{quick.mean():.1%}",
        f"{100 * (quick.mean() - robust.mean()):+.1f}",
        f"{missed} / {only}",
        f"{(quick == robust).mean():.1%}",
        f"{mine:.0f}",
        f"{mine / full:.1%}",
        f"{quick_passes.sum() / passes.sum():.1%}",
    )
    return f"| {name} | {' | '.join(cells)} |".replace("nan%", "–").replace("nan", "–")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("search", "measure"))
    parser.add_argument("--data", type=Path, required=True, help="folder of datasets and weights")
    parser.add_argument("--verdicts", type=Path, default=Path("verdicts"), help="folder that keeps verdicts")
    parser.add_argument("--attack", default="quick")
    parser.add_argument("--only", default="", help="text that the network and threat must contain")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.verdicts.mkdir(parents=True, exist_ok=True)
    subjects = DEVELOPMENT if options.action == "search" else OTHERS
    subjects = [subject for subject in subjects if options.only in f"{subject.name} {subject.threat}"]
    if options.action == "search":
        search(options.data, options.verdicts, subjects)
    else:
        measure(options.data, options.verdicts, options.attack, subjects)


if __name__ == "__main__":
    main()
