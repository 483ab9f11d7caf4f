"""Every attack on a device that is not the CPU, without one: no tensors mix, and the host rarely waits for it."""

import pytest
import torch
from torch import nn

from robench.attacks.build import build_attacks
from robench.core.registry import attacks
from robench.defenses import Defense
from robench.engine.attack_context import Samples
from robench.engine.checkpoint import FolderStore
from robench.engine.knowledge import Attacker
from robench.engine.run import Run
from robench.engine.setup import Setup
from robench.threats.threat import Threat
from tests.combinations import first_only
from tests.engine.pretend_device import (
    DEVICE,
    ENGINE,
    KERNEL,
    SYNC,
    TO_DEVICE,
    TO_HOST,
    MixedDevices,
    Network,
    PretendDevice,
)
from tests.engine.test_randomised import Noise
from tests.models import images, small_net
from tests.threats.transformations.test_transformations import SPECS

CPU = torch.device("cpu")
LINF, L2, L1, L0 = "Linf:0.006", "L2:0.1", "L1:1", "L0:6"
CASES = [
    ("fgsm", LINF),
    ("pgd(steps=3)", LINF),
    ("pgd(steps=3, restarts=2)", L2),
    ("mifgsm(steps=3)", LINF),
    ("apgd(steps=8)", LINF),
    ('apgd(steps=6, loss="dlr", targets=2)', L2),
    ("apgd-l1(steps=6)", L1),
    ("fab(steps=3)", LINF),
    ("fab(steps=3, targets=2)", L2),
    ("fab(steps=3)", L1),
    ("square(queries=10)", LINF),
    ("square(queries=10)", L2),
    ("square(queries=10)", L1),
    ("cw(steps=3, rounds=2)", L2),
    ("ddn(steps=4)", L2),
    ("fmn(steps=4)", LINF),
    ("fmn(steps=4)", L1),
    ("sigma-zero(steps=4)", L0),
    ("sparse-rs(queries=8)", L0),
    ("patch-rs(queries=8)", "patch:3"),
    ("spsa(steps=1, samples=4)", LINF),
    ("nes(steps=1, samples=4)", LINF),
    ("hopskipjump(queries=24, samples=4)", L2),
    ("pgd-feature(steps=3)", LINF),
    ("apgd-feature(steps=5)", LINF),
    ("pgd-mi(steps=3)", LINF),
    ("apgd-mi(steps=5)", LINF),
    ("grid(points=(3,))", "rotation:20"),
]


class Small(nn.Module):
    """A network whose features can be looked at."""

    def __init__(self, seed: int = 0):
        super().__init__()
        *body, head = small_net(seed=seed).children()
        self.body, self.head = nn.Sequential(*body), head

    def forward_features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.forward_features(x))


class Narrow(Small):
    """A network without memory for the gradients of more than `most` images."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, x):
        if x.requires_grad and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def play(specs, threat, device=None, *, n=6, batch_size=4, sigma=0.0, surrogate=False, most=10**9, **options):
    """A run on the CPU, or on the pretended device."""
    net = Narrow(most).eval()
    defense = Defense(
        net if device is None else Network(net, device),
        num_classes=10,
        image_size=8,
        purifier=Noise(sigma) if sigma else None,
        stochastic=sigma > 0,
    ).eval()
    x = images(n)
    y = small_net()(x).argmax(1)
    chosen = Threat.parse(threat)
    other = Small(seed=1).eval()
    attacker = (
        Attacker(surrogate=other if device is None else Network(other, device)) if surrogate else Attacker()
    )
    setup = Setup(defense, 0, CPU if device is None else DEVICE, batch_size, attacker, sigma > 0, "fp32")
    return Run(
        setup, build_attacks(specs, chosen), Samples(x, y, torch.arange(n)), chosen, **options
    ).outcome()


def assert_same(here, there):
    assert here.fooled_by == there.fooled_by
    assert torch.equal(here.x_adv, there.x_adv)
    assert torch.equal(here.prediction, there.prediction)
    assert here.passes == there.passes


def test_every_attack_is_tried():
    # The reference implementation runs its own loop.
    assert {spec.partition("(")[0] for spec, _ in CASES} == set(attacks) - {"reference", "submitted"}


@pytest.mark.parametrize(
    ("spec", "threat"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case == ("square(queries=10)", L1))) for case in CASES],
)
def test_an_attack_gives_the_verdicts_of_the_cpu(spec, threat):
    here = play([spec], threat)
    with PretendDevice() as device:
        there = play([spec], threat, device)
    assert_same(here, there)
    assert device.counts[ENGINE, TO_HOST] > 0


def test_rows_stop_where_they_fool_though_many_queries_are_read_at_once():
    here = play(["square(queries=90)"], "Linf:0.008", batch_size=8, n=8)
    assert 0 < int(here.robust.sum()) < 8
    with PretendDevice() as device:
        there = play(["square(queries=90)"], "Linf:0.008", device, batch_size=8, n=8)
    assert_same(here, there)
    assert device.counts[ENGINE, SYNC] + device.counts[ENGINE, TO_HOST] < 91 / 2


@pytest.mark.parametrize("threat", SPECS.values(), ids=SPECS)
def test_a_transformation_gives_the_verdicts_of_the_cpu(threat):
    here = play(["pgd(steps=2)"], threat, n=4)
    with PretendDevice() as device:
        there = play(["pgd(steps=2)"], threat, device, n=4)
    assert_same(here, there)


def test_memory_of_the_device_does_not_grow_with_the_number_of_images():
    peaks = []
    for n in (16, 64):
        with PretendDevice(memory=True) as device:
            play(["fgsm", "apgd(steps=3)"], LINF, device, n=n, batch_size=8)
        peaks.append(device.peak)
    assert peaks[0] > 8 * 8 * 8 * 3 * 4 and peaks[1] <= 1.05 * peaks[0]


def test_an_attack_that_runs_out_of_memory_goes_on_with_a_smaller_batch():
    here = play(["pgd(steps=4)", "square(queries=20)"], LINF, batch_size=8)
    with PretendDevice() as device:
        there = play(["pgd(steps=4)", "square(queries=20)"], LINF, device, most=3, batch_size=8)
    assert there.batch_size == 2 and here.batch_size == 8
    assert_same(here, there)


@pytest.mark.parametrize(
    "spec", first_only(1, ["apgd(steps=3, eot=2)", "square(queries=4)", "pgd-feature(steps=2)"])
)
def test_a_randomised_defense(spec):
    here = play([spec], LINF, sigma=0.05)
    with PretendDevice() as device:
        there = play([spec], LINF, device, sigma=0.05)
    assert_same(here, there)


def test_a_surrogate():
    here = play(["pgd(steps=3)", "mifgsm(steps=3)"], "Linf:0.02", surrogate=True)
    with PretendDevice() as device:
        there = play(["pgd(steps=3)", "mifgsm(steps=3)"], "Linf:0.02", device, surrogate=True)
    assert_same(here, there)


@pytest.mark.parametrize("spec", ["apgd(steps=8)", "square(queries=20)", "pgd-mi(steps=6)", "fmn(steps=6)"])
def test_an_interrupted_run_goes_on(tmp_path, spec, monkeypatch):
    monkeypatch.setattr("robench.engine.run._SHOW_EVERY", 0)
    whole, calls = play([spec], LINF), 0

    def stop(progress):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    with PretendDevice() as device:
        with pytest.raises(KeyboardInterrupt):
            play([spec], LINF, device, store=FolderStore(tmp_path, "key"), progress=stop)
        there = play([spec], LINF, device, store=FolderStore(tmp_path, "key"))
    assert_same(whole, there)


def test_tensors_of_two_devices_do_not_mix():
    with PretendDevice():
        there = torch.ones(3, device=DEVICE)
        assert (there + 1).sum().item() == 6
        with pytest.raises(MixedDevices):
            torch.add(there, torch.ones(3))
        with pytest.raises(MixedDevices):
            there.index_select(0, torch.tensor([1]))


def test_what_the_host_waits_for_is_counted():
    with PretendDevice() as device:
        there = torch.arange(6, device=DEVICE)
        there.cpu()
        there.tolist()
        bool((there > 3).any())
        there[there > 3]
        there[torch.tensor([1, 2], device=DEVICE)]
    assert device.counts[ENGINE, TO_HOST] + device.counts[ENGINE, SYNC] == 4


# What a step costs outside of the network, for rows that nothing fools: how often it waits for the device (copies to
# the host and synchronizations), copies to the device, and kernels. A table that may only fall. A step of FAB has two
# queries, because its points cross the boundary.
COSTS = {
    ("pgd(steps={})", "Linf:1e-6"): (1, 0, 41),
    ("mifgsm(steps={})", "Linf:1e-6"): (1, 0, 46),
    ("apgd(steps={})", "Linf:1e-6"): (1, 0, 74),
    ("apgd(steps={})", "L2:1e-6"): (1, 0, 98),
    ('apgd(steps={}, loss="dlr", targets=1)', "Linf:1e-6"): (1, 0, 80),
    ("apgd-l1(steps={})", "L1:1e-6"): (2, 0, 635),
    ("pgd-mi(steps={})", "Linf:1e-6"): (2, 0, 95),
    ("fab(steps={}, targets=1)", "Linf:1e-6"): (2, 2, 335),
    ("fab(steps={}, targets=1)", "L2:1e-6"): (2, 2, 478),
    ("fab(steps={}, targets=1)", "L1:1e-6"): (2, 2, 218),
    ("square(queries={})", "Linf:1e-6"): (1 / 16, 0, 84),
    ("square(queries={})", "L2:1e-6"): (1 / 16, 0, 145),
    ("cw(steps={}, rounds=1)", "L2:1e-6"): (1, 0, 127),
    ("ddn(steps={})", "L2:1e-6"): (1, 0, 230),
    ("fmn(steps={})", "Linf:1e-6"): (1, 0, 101),
}


@pytest.mark.parametrize(("spec", "threat"), COSTS)
def test_a_step_costs_no_more_than_before(spec, threat):
    waits, copies, kernels = COSTS[spec, threat]
    with PretendDevice() as device:
        play([spec.format(6 if waits >= 1 else 36)], threat, device, batch_size=6)
    counted = [
        (count[ENGINE, SYNC] + count[ENGINE, TO_HOST], count[ENGINE, TO_DEVICE], count[ENGINE, KERNEL])
        for count in device.before
    ]
    # Two of the last steps: the first ones copy what is kept for the next. Square's queries are read sixteen at a time.
    steps, calls = (2, 4 if "fab" in spec else 2) if waits >= 1 else (16, 16)
    for before, after, most in zip(counted[-2 - calls], counted[-2], (waits, copies, kernels), strict=True):
        assert (after - before) / steps <= most
