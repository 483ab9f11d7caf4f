"""`robench.attack` shares its images among processes by itself where that is safe."""

import os
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import robench
from tests.models import images, small_net

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="processes are forked, without a GPU"
)


class Noted(nn.Module):
    """A network that notes the process of each call, and may add noise of torch's generator."""

    def __init__(self, folder, sigma=0.0):
        super().__init__()
        self.net, self.folder, self.sigma = small_net().eval(), folder, sigma

    def forward(self, x):
        (self.folder / str(os.getpid())).touch()
        return self.net(x + self.sigma * torch.randn_like(x))

    @property
    def processes(self):
        return len(list(self.folder.iterdir()))


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    # Workers restore the number, and a process forked from one with several threads of OpenMP hangs.
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    # Plugins of pytest may have threads.
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


def attack(model, n=32, **options):
    x, y = images(n), small_net()(images(n)).argmax(1)
    return robench.attack("apgd(steps=4)", model, x, y, threat="Linf:0.01", batch_size=8, **options)


def test_each_core_takes_a_part_of_the_images(tmp_path, two_threads):
    ours, alone = attack(Noted(tmp_path)), attack(small_net().eval(), workers=1)
    assert len(list(tmp_path.iterdir())) == 3  # two processes for the attack, this one for all verdicts
    assert torch.equal(ours.x_adv, alone.x_adv) and ours.fooled_by == alone.fooled_by
    assert ours.passes == alone.passes


def test_few_images_stay_in_this_process(tmp_path, two_threads):
    model = Noted(tmp_path)
    attack(model, n=31)
    assert model.processes == 1


@pytest.mark.parametrize("case", ["child", "notebook", "threads", "number"])
def test_one_process_where_forking_is_not_safe(case, tmp_path, two_threads, monkeypatch):
    model = Noted(tmp_path)
    if case == "child":
        monkeypatch.setattr("multiprocessing.parent_process", lambda: SimpleNamespace(pid=1))
    elif case == "notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    elif case == "threads":
        monkeypatch.setattr(threading, "active_count", lambda: 2)
    attack(model, **({"workers": 1} if case == "number" else {}))
    assert model.processes == 1


@pytest.mark.parametrize("stochastic", [False, True])
def test_noise_of_torch_is_the_same_for_any_number_of_processes(stochastic, tmp_path, two_threads):
    """It depends on the other images of a batch, so the images are not split, even if it is asked for."""
    found = []
    for workers in (1, 2, None):
        (tmp_path / str(workers)).mkdir()
        model = Noted(tmp_path / str(workers), sigma=0.1)
        found.append(attack(model, workers=workers, stochastic=stochastic))
        assert model.processes <= 2  # one for the attack, this one for all verdicts
    for other in found[1:]:
        assert torch.equal(other.x_adv, found[0].x_adv) and other.passes == found[0].passes
