"""Corruption runs: results do not depend on batch size, processes, cache or interruptions."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch

from robench.core.errors import UsageError
from robench.core.rng import normal_like
from robench.corruption.cache import Cache
from robench.corruption.make import corrupt
from robench.corruption.suite import Cell, Corruption, cells, corruptions
from robench.data.corrupted import bytes8, tensor
from robench.engine.checkpoint import Saved
from robench.engine.corruption_run import classify
from robench.engine.setup import Setup
from tests.combinations import first_only
from tests.corruption.scenes import some
from tests.models import small_net

CPU = torch.device("cpu")
CELLS = cells([Corruption("impulse_noise", (1, 5)), Corruption("contrast", (3,)), Corruption("frost", (2,))])


@pytest.fixture(autouse=True, scope="module")
def small_chunks():
    """So that few images are two chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robench.data.corrupted._CHUNK", 16)
        yield


class Interrupted(Exception):
    pass


class Memory:
    """A store that keeps everything and can fail on demand."""

    def __init__(self, last=10**9):
        self.saved, self.count, self.last = None, 0, last

    def load(self, check=lambda saved: None):
        if self.saved is not None:
            check(self.saved)
        return self.saved

    def shares(self):
        return int(self.saved is not None)

    def claimed(self):
        return contextlib.nullcontext()

    def due(self):
        return True

    def forget(self, reason):
        raise AssertionError(reason)

    def save(self, tensors, facts, attack=0, found=None):
        self.count += 1
        if self.count > self.last:
            raise Interrupted
        self.saved = Saved({name: each.clone() for name, each in tensors.items()}, dict(facts), {})


def played(batch_size=7, n=20, **options):
    return classify(Setup(small_net(4, 32), 3, CPU, batch_size), some(n), CELLS, **options)


def same(a, b):
    return all(
        torch.equal(getattr(a, f.name), getattr(b, f.name))
        for f in dataclasses.fields(a)
        if f.name in ("clean", "predictions", "pixels")
    )


def test_it_is_what_the_network_says_to_each_image():
    images, net = some(20), small_net(4, 32)
    found = classify(Setup(net, 3, CPU, 8), images, CELLS)
    assert torch.equal(found.clean, net(images.x).argmax(1))
    for k, cell in enumerate(CELLS):
        made = [
            corrupt(image, cell.name, cell.severity, sample, 3)
            for image, sample in zip(bytes8(images.x), images.ids.tolist(), strict=True)
        ]
        assert torch.equal(found.predictions[:, k], net(tensor(np.stack(made))).argmax(1))


@pytest.fixture(scope="module")
def whole():
    return played()


def test_batches_processes_and_the_cache_change_nothing(tmp_path, whole):
    assert same(whole, played(batch_size=64, workers=2))
    cache = Cache(tmp_path, 10**8)
    assert same(whole, played(cache=cache)) and cache.usage()[0] == 2 * len(CELLS)
    assert same(whole, played(cache=cache))


@pytest.mark.parametrize("last", first_only(2, [1, 5, 4, 8]))
def test_an_interruption_changes_nothing(last, whole):
    store = Memory(last)
    with pytest.raises(Interrupted):
        played(store=store)
    store.last = 10**9
    seen = []
    found = played(store=store, progress=seen.append)
    assert same(whole, found)
    # Each of the two chunks is asked about once a cell, and once as it is; nothing twice.
    assert [progress.rows for progress in seen] == list(range(last + 1, 2 * (len(CELLS) + 1) + 1))
    # The images of a chunk are classified when its last cell is: of 20 images, first 16 and then 4.
    assert {(progress.samples, progress.left) for progress in seen} == {(20, "classify")}
    assert [progress.survivors for progress in seen[-2:]] == [4, 0]


class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small_net(4, 32)

    def forward(self, x):
        return self.net((x + 0.3 * normal_like(x)).clamp(0, 1))


def test_the_noise_of_a_randomised_defense_is_decided_by_image_and_cell():
    def played(batch_size):
        return classify(Setup(Noisy(), 3, CPU, batch_size, stochastic=True), some(18), CELLS)

    assert same(played(5), played(64))


class Undefined(torch.nn.Module):
    def forward(self, x):
        logits = x.mean((2, 3))
        return torch.where(x.std() > 0, logits * float("nan"), logits)


def test_an_undefined_answer_is_no_class():
    found = classify(Setup(Undefined(), 0, CPU, 3), some(3), CELLS)
    assert (found.predictions == -1).all() and (found.clean == -1).all()


def test_specs_of_corruptions_are_canonical():
    (one,) = corruptions(['corruption(severities=[5, 2], jpeg=False, name="fog")'])
    assert str(one) == 'corruption(name="fog", severities=[2, 5])'
    assert cells([one]) == [Cell("fog", 2, False), Cell("fog", 5, False)]
    assert (
        str(corruptions(['corruption(name="fog", severities=[1, 2, 3, 4, 5])'])[0])
        == 'corruption(name="fog")'
    )
    assert corruptions(["pgd", "square"]) == []


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        (['corruption(name="fogg")'], "did you mean fog"),
        (['corruption(name="fog", severities=[6])'], "severity 6"),
        (['corruption(name="fog", severities=[])'], "expected a list"),
        (['corruption(name="fog", severities=3)'], "expected a list"),
        (['corruption(name="fog", jpeg=85)'], "True or False"),
        (["corruption"], "needs name"),
        (['corruption(name="fog")', "pgd"], "run them separately"),
        (['corruption(name="fog", severities=[1])', 'corruption(name="fog", severities=[2])'], "is repeated"),
        (['corruption(name="fog")', 'corruption(name="snow", jpeg=True)'], "run them separately"),
    ],
)
def test_mistakes_in_a_suite_are_named(suite, said):
    with pytest.raises(UsageError, match=said):
        corruptions(suite)
