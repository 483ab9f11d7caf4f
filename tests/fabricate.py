"""Small random outcomes that satisfy the invariants of the engine."""

import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robench import catalog
from robench.data._base import Images
from robench.defenses import Loaded
from robench.engine.outcome import AttackCost, Outcome, ResultWarning
from robench.records.record import DatasetFacts, DefenseFacts, Job, Record, SuiteFacts
from robench.records.store import make_record, record_folder, write_record
from robench.threats.threat import Threat

SPECS = ("apgd", "square")
# Forward and backward passes of each attack on an image that it does not fool.
COSTS = ((101, 101), (5001, 0))
EPS = 0.04
PARAMETERS = 147  # of the linear judge


def linear(seed: int = 0, classes: int = 3, pixels: int = 3 * 4 * 4) -> nn.Module:
    """A linear judge on 4 x 4 images."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(pixels, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, pixels, generator=generator))
        layer.bias.copy_(-0.5 * layer.weight.sum(1))
    judge = nn.Sequential(nn.Flatten(), layer).eval()
    judge.stochastic = False  # pyright: ignore[reportArgumentType]
    return judge


@dataclass(frozen=True)
class Run:
    """A job with everything a record needs."""

    job: Job
    outcome: Outcome
    images: Images
    judge: nn.Module
    folder: Path

    @property
    def loaded(self) -> Loaded:
        return Loaded(
            "mimir-digits", cast(Any, self.judge), None, "a" * 64, None, weights_of("mimir-digits"), "mimir"
        )

    def record(self, **changes) -> Record:
        facts = {
            "command": "robench run --defense mimir --attack autoattack",
            "started": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            "finished": datetime(2026, 1, 2, 3, 5, 5, tzinfo=UTC),
            "seconds": 60.0,
            "device": "cpu",
        }
        return make_record(self.job, self.outcome, **facts | changes)

    def write(self, **changes) -> Record:
        return write_record(self.folder, self.record(**changes), self.outcome, self.images)


def make_images(n: int, seed: int, judge: nn.Module) -> Images:
    """Images that the judge mostly classifies correctly: labels are its predictions, every seventh changed."""
    x = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    y = judge(x).argmax(1)
    y[::7] = (y[::7] + 1) % 3
    return Images("digits", "test", x, y, torch.arange(n) * 2 + 5, ("zero", "one", "two"))


def make_outcome(images: Images, judge: nn.Module, health: tuple[ResultWarning, ...] = ()) -> Outcome:
    """A gradient-sign step of EPS replaces the first attack, one of EPS / 2 the second."""
    x, y, n = images.x, images.y, len(images)
    clean = judge(x).argmax(1)
    x_adv, fooled_by = x.clone(), ["" if right else "clean" for right in (clean == y)]
    candidates = [_step(judge, x, y, EPS), _step(judge, x, y, EPS / 2)]
    forward, backward = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
    steps = torch.zeros(n, dtype=torch.int64)
    costs = []
    for spec, candidate, cost in zip(SPECS, candidates, COSTS, strict=True):
        attacked = [i for i in range(n) if fooled_by[i] == ""]
        wrong = judge(candidate).argmax(1) != y
        hits = [i for i in attacked if bool(wrong[i]) and i % 2 == SPECS.index(spec)]
        # More would raise a warning about masked gradients.
        hits = hits if cost[1] else hits[:1]
        spent = [0, 0]
        for i in attacked:
            took = i % 5 + 1 if i in hits else cost[0]
            own = took, took if cost[1] else 0
            forward[i] += own[0]
            backward[i] += own[1]
            spent = [a + b for a, b in zip(spent, own, strict=True)]
        for i in hits:
            x_adv[i], fooled_by[i], steps[i] = candidate[i], spec, i % 5 + 1
        costs.append(AttackCost(spec, len(attacked), len(attacked) - len(hits), spent[0], spent[1], 1.5))
    robust = torch.tensor([name == "" for name in fooled_by])
    distance = Threat("Linf", EPS, str(EPS)).distance(x, x_adv)
    return Outcome(
        x_adv, robust, fooled_by, clean, judge(x_adv).argmax(1), judge(x).detach().topk(2, 1).values.diff().neg()[:, 0],
        (clean != y).long(), (~robust).long(), distance,
        steps, forward, backward,
        costs, list(health), "fp32", 8,
    )  # fmt: skip


def _step(judge: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(judge(x), y), x)
    x = x.detach()
    moved = (x + eps * gradient.sign()).clamp(0, 1)
    for _ in range(3):  # until adding the saved perturbation gives this image, bit for bit
        moved = (x + (moved - x)).clamp(0, 1)
    return moved


def weights_of(defense: str) -> str:
    """The digest of the weights that a fabricated record names: those of the card, if there is one with weights."""
    card = catalog.cards().get(defense.partition("(")[0])
    return (card.sha256 if card else "") or "b" * 64


def make_run(
    root: Path, n: int = 30, draw: int = 0, defense: str = "mimir-digits", health=(), **changes: Any
) -> Run:
    """A run whose record is written below `root`; `changes` are fields of its job, `draw` seeds its numbers."""
    judge = linear(draw)
    images = make_images(n, draw, judge)
    with torch.enable_grad():
        outcome = make_outcome(images, judge, health=tuple(health))
    job = Job(
        **{
            "defense": DefenseFacts(defense, "mimir", "a" * 64, weights_of(defense), PARAMETERS),
            "suite": SuiteFacts("autoattack", SPECS),
            "dataset": DatasetFacts("digits", "test", images.digest),
            "protocol": "digits-linf",
            "threat": f"Linf:{EPS}",
            "n": n,
            "batch_size": 8,
            **changes,
        }
    )
    folder = record_folder(root, job.protocol, defense, job.suite.name, job.knowledge, job.seed)
    return Run(job, outcome, images, judge, folder)


def uncompressed(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of certificates as they were before version 0.2, with the grains not compressed."""
    tensors = load_file(path)
    if "grains_end" not in tensors:
        return tensors
    packed, rows, start = tensors["grains"].numpy().tobytes(), [], 0
    for end in tensors.pop("grains_end").tolist():
        rows.append(zlib.decompress(packed[start:end]))
        start = end
    shape = tensors["delta"].shape[1:]
    kind = np.int8 if not rows or len(rows[0]) == shape.numel() else np.int16
    tensors["grains"] = torch.from_numpy(np.frombuffer(b"".join(rows), kind).copy()).view(-1, *shape)
    return tensors
