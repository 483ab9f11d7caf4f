"""Copies between host and device give the same bits as on the CPU."""

import numpy as np
import torch

import robench
from robench.core.transfer import sent, sent_bytes
from robench.data.corrupted import tensor
from robench.engine.corruption_run import classify
from robench.engine.host import on_host
from robench.engine.setup import Setup
from tests.corruption.scenes import some
from tests.engine.pretend_device import DEVICE, ENGINE, TO_DEVICE, TO_HOST, Network, PretendDevice
from tests.engine.test_corruption_run import CELLS
from tests.models import images, small_net

CPU = torch.device("cpu")


def test_images_cross_as_bytes_and_are_the_same_on_every_device():
    # Every value of a byte.
    pixels = np.arange(2 * 8 * 16 * 3, dtype=np.int64).reshape(2, 8, 16, 3).astype(np.uint8)
    with PretendDevice() as device:
        there = sent_bytes(pixels, DEVICE)
        assert there.device == DEVICE and device.counts[ENGINE, TO_DEVICE] == 2
        assert torch.equal(there.cpu(), tensor(pixels))
    assert torch.equal(sent_bytes(pixels, CPU), tensor(pixels))


def test_a_corruption_run_gives_the_same_on_the_device():
    here = classify(Setup(small_net(4, 32), 3, CPU, 8), some(20), CELLS, workers=1)
    with PretendDevice() as device:
        network = Network(small_net(4, 32), device)
        there = classify(Setup(network, 3, DEVICE, 8), some(20), CELLS, workers=1)
    for name in ("clean", "margin", "predictions", "pixels"):
        assert torch.equal(getattr(here, name), getattr(there, name))


def test_images_for_cuda_are_pinned_and_not_waited_for(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device, **options: calls.append((device, options)))
    sent(torch.zeros(2), torch.device("cuda"))
    assert calls == [(torch.device("cuda"), {"non_blocking": True})]


def test_the_images_of_an_attack_are_sent_like_this(monkeypatch):
    shapes = []
    monkeypatch.setattr("robench.engine.run_images.sent", lambda x, device: shapes.append(x.shape) or x)
    x = images(3)
    robench.attack("pgd(steps=1)", small_net(), x, small_net()(x).argmax(1), threat="Linf:0.01")
    assert shapes.count(x.shape) == 1


def test_columns_keep_their_types():
    facts = on_host(a=torch.tensor([True, False]), b=None, c=torch.tensor([1.5, 2.0]))
    assert set(facts) == {"a", "c"} and facts["a"].dtype == torch.bool


def test_columns_of_the_device_cross_in_one_copy_and_keep_their_digits():
    distance = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    with PretendDevice() as device:
        facts = on_host(a=torch.tensor([True, False]).to(DEVICE), b=distance.to(DEVICE))
    assert device.counts[ENGINE, TO_HOST] == 1
    assert facts["a"].tolist() == [True, False] and torch.equal(facts["b"], distance)
