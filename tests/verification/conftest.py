"""One small record of each kind, with the defense and the images it is of."""

from dataclasses import dataclass

import pytest
import torch

import robench
from robench.core import registry
from robench.core.rng import normal_like
from robench.data import load_dataset
from robench.data._base import Images
from robench.defenses import Loaded, Purifier, load
from robench.records.record import Record


class Jitter(Purifier):
    """Noise on the image, drawn again at each call."""

    stochastic = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 0.25 * normal_like(x)).clamp(0, 1)


@dataclass(frozen=True)
class Made:
    record: Record
    loaded: Loaded
    images: Images


# Every kind of record there is.
KINDS = {
    "plain": {"defense": "pgd-at", "attack": "pgd(steps=3)+square(queries=8)", "threat": "Linf:0.1"},
    "targeted": {
        "defense": "pgd-at",
        "attack": 'apgd(loss="dlr", steps=3, targets=2)+fab(steps=3)',
        "threat": "L2:0.6",
    },
    "transfer": {
        "defense": "pgd-at",
        "attack": "pgd(steps=3)",
        "threat": "Linf:0.2",
        "knowledge": "transfer:standard",
    },
    "fog": {"defense": "pgd-at", "attack": "pgd(steps=3)", "threat": "fog:0.4"},
    "randomized": {"defense": "jitter+pgd-at", "attack": "pgd(steps=3, eot=2)", "threat": "Linf:0.1"},
    "corrupted": {
        "defense": "pgd-at",
        "attack": 'corruption(name="contrast", severities=[1, 5])+corruption(name="gaussian_noise", severities=[3])',
    },
}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Records by kind, run when first asked for."""
    known: dict[str, Made] = {}
    patch = pytest.MonkeyPatch()
    patch.setitem(registry.purifiers._builders, "jitter", Jitter)
    patch.setitem(registry.purifiers._holders, "jitter", "tests.Jitter")

    def make(kind: str) -> Made:
        if kind not in known:
            options = KINDS[kind]
            record = robench.run(
                **options,
                dataset="digits",
                samples=16,
                results=tmp_path_factory.mktemp(kind),
                batch_size=16,
                workers=1,
            )
            images = load_dataset("digits", "test", 16)
            known[kind] = Made(record, load(record.job.defense.name, "digits"), images)
        return known[kind]

    yield make
    patch.undo()
