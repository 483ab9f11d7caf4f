"""Smaller batches while memory runs out: nothing is lost, and the batch size returns."""

import pytest
import torch
from torch import nn

from robench.attacks.build import build_attacks
from robench.core.errors import ResourceError
from robench.engine.attack_context import Samples
from robench.engine.backing_off import BatchSize, backing_off
from robench.engine.batched_model import Network
from robench.engine.checkpoint import FolderStore
from robench.engine.corruption_run import classify
from robench.engine.run import Run
from robench.engine.setup import Setup
from robench.engine.workers import Processes
from robench.evaluation.attack import attack
from robench.threats.threat import Threat
from tests.corruption.scenes import some
from tests.engine.test_corruption_run import CELLS
from tests.models import images, small_net

CPU = torch.device("cpu")
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


class Narrow(nn.Module):
    """A model that runs out of memory on more than a few images, and records its batch sizes.

    Args:
        most: number of images that fit.
        gradients: whether only images with gradients take memory.
    """

    def __init__(self, most, gradients=True, network=None):
        super().__init__()
        self.model, self.most, self.gradients, self.sizes = network or small_net(), most, gradients, []

    def forward(self, x):
        if len(x) > self.most and (x.requires_grad or not self.gradients):
            raise NO_MEMORY
        self.sizes.append(len(x))
        return self.model(x)


def test_the_next_attack_has_the_whole_batch_size_again():
    model, x = Narrow(3), images(24)
    y = model.model(x).argmax(1)
    suite = "pgd(steps=3)+square(queries=8)"
    result = attack(suite, model, x, y, threat="Linf:0.004", batch_size=8)
    assert result.batch_size == 2
    assert model.sizes[-1] == 8 and 2 in model.sizes
    whole = attack(suite, model.model, x, y, threat="Linf:0.004", batch_size=8)
    assert torch.equal(result.robust, whole.robust) and result.fooled_by == whole.fooled_by


def run(model=None, **options):
    """A run of two attacks, and the lines for the user."""
    x, threat, notes = images(12), Threat.parse("Linf:0.004"), []
    attacks = build_attacks(["pgd(steps=6)", "square(queries=8)"], threat)
    samples = Samples(x, small_net()(x).argmax(1), torch.arange(12))
    setup = Setup(model or Narrow(3), 0, CPU, 8)
    return Run(setup, attacks, samples, threat, note=notes.append, **options), notes


def test_an_interrupted_attack_resumes_with_the_batch_size_that_fits(tmp_path, monkeypatch):
    monkeypatch.setattr("robench.engine.run._SHOW_EVERY", 0)

    def stop(progress):
        if progress.rows >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store=FolderStore(tmp_path, "key"), progress=stop)[0].outcome()
    resumed, notes = run(store=FolderStore(tmp_path, "key"))
    outcome = resumed.outcome()
    assert notes == [] and outcome.batch_size == 2
    assert outcome.fooled_by == run()[0].outcome().fooled_by


def test_a_share_without_memory_does_not_reduce_the_others():
    whole, _ = run(small_net())
    reduced, notes = run(Narrow(3), executor=Processes(1, shares=3))
    outcome = reduced.outcome()
    assert outcome.fooled_by == whole.outcome().fooled_by and outcome.batch_size == 2
    # Two reductions in each share, because each starts with the whole batch size.
    assert len(notes) == 6


def test_a_corruption_run_uses_smaller_batches_and_gives_the_same():
    results = [
        classify(Setup(model, 3, CPU, 16), some(40), CELLS)
        for model in (small_net(4, 32), Narrow(5, False, small_net(4, 32)))
    ]
    for name in ("clean", "predictions", "pixels"):
        assert torch.equal(*(getattr(result, name) for result in results))


def test_a_batch_size_returns_after_several_batches_that_fit():
    size = BatchSize(12)
    size.reduce(NO_MEMORY, CPU)
    size.reduce(NO_MEMORY, CPU)
    sizes = []
    for _ in range(100):
        sizes.append(size.current)
        size.fits()
    assert sizes[0] == 3 and sizes[-1] == 12 and sizes == sorted(sizes) and set(sizes) == {3, 6, 12}


def test_a_network_reduces_once_and_not_at_every_call():
    model = Narrow(3, False)
    network, x = Network(model, 8, backs_off=True), images(8)
    ids = torch.arange(8)
    first, second = network.logits(x, ids), network.logits(x, ids)
    assert torch.equal(first, second) and model.sizes == [2] * 8


def test_other_errors_and_single_images_are_not_retried():
    def fails(error):
        def step(size):
            raise error

        return step

    with pytest.raises(RuntimeError, match="shapes"):
        backing_off(fails(RuntimeError("shapes differ")), 8, CPU)
    with pytest.raises(ResourceError, match="cpu ran out of memory with a single image"):
        backing_off(fails(NO_MEMORY), 8, CPU)
    with pytest.raises(ResourceError, match="single image"):
        Network(Narrow(0, False), 8, backs_off=True).logits(images(2), torch.arange(2))
