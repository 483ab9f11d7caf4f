"""A randomized defense: judged on ten draws of each row's own noise, recorded with three figures, re-checked."""

import dataclasses
import shutil

import pytest
import torch

import robench
from robench.core import registry
from robench.core.errors import CheckFailed
from robench.core.rng import normal_like
from robench.defenses import Defense, Purifier, load
from robench.evaluation.attack import attack
from robench.records import randomized as drawn
from robench.records.record import read_record
from robench.records.samples import read_samples
from robench.verification.verify import verify
from tests.engine.runs import run_of
from tests.models import images, small_net


class Noise(Purifier):
    """Gaussian noise, and nothing else."""

    stochastic = True

    def __init__(self, sigma: float = 0.1):
        super().__init__()
        self.sigma = sigma

    def forward(self, x):
        return (x + self.sigma * normal_like(x)).clamp(0, 1)


def defended(sigma=0.1):
    return Defense(small_net(), num_classes=10, image_size=8, purifier=Noise(sigma), stochastic=True).eval()


def play(x, y, **options):
    return attack("apgd(steps=5, eot=3)", defended(), x, y, threat="Linf:0.03", batch_size=8, **options)


@pytest.fixture(scope="module")
def whole():
    x = images(24)
    y = small_net().eval()(x).argmax(1)
    return x, y, play(x, y)


def test_some_draws_fail_and_some_do_not(whole):
    _, _, outcome = whole
    assert outcome.of_draws == 10
    assert ((outcome.draws > 0) & (outcome.draws < 10)).any() and (outcome.draws >= outcome.clean_draws).all()
    assert torch.equal(outcome.robust, outcome.draws == 0)
    for name, count in zip(outcome.fooled_by, outcome.draws.tolist(), strict=True):
        assert (name == "") == (count == 0)


class Drawing(Purifier):
    """Noise of torch's own generator."""

    stochastic = True

    def forward(self, x):
        return (x + 0.1 * torch.randn_like(x)).clamp(0, 1)


def test_noise_of_torchs_generator_is_seeded_and_on_a_cpu_no_other_device(monkeypatch):
    """`torch.manual_seed` seeds every device, and formats the stack for each that is not in use."""
    net = small_net()
    model = Defense(net, num_classes=10, image_size=8, purifier=Drawing(), stochastic=True).eval()
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("every device was seeded"))
    x = images(3)
    one, other = (
        attack("pgd(steps=2)", model, x, net(x).argmax(1), threat="Linf:0.01", batch_size=4) for _ in range(2)
    )
    assert torch.equal(one.x_adv, other.x_adv) and torch.equal(one.clean_draws, other.clean_draws)
    assert 0 < int(one.clean_draws.sum()) < 30


def test_a_rows_noise_does_not_hang_on_its_neighbours(whole):
    x, y, outcome = whole
    ids = torch.tensor([3, 17, 20, 8, 11])
    from robench.attacks.build import build_attacks
    from robench.threats.threat import Threat

    threat = Threat.parse("Linf:0.03")
    part = run_of(
        defended(), build_attacks(["apgd(steps=5, eot=3)"], threat), x[ids], y[ids], ids, threat,
        batch_size=8, stochastic=True,
    ).outcome()  # fmt: skip
    assert torch.equal(part.x_adv, outcome.x_adv[ids])
    assert torch.equal(part.draws, outcome.draws[ids]) and torch.equal(
        part.clean_draws, outcome.clean_draws[ids]
    )


def test_another_seed_is_other_noise(whole):
    x, y, outcome = whole
    other = attack("pgd(steps=1)", defended(), x, y, threat="Linf:0.03", batch_size=8, seed=1)
    assert not torch.equal(other.clean_draws, outcome.clean_draws)


@pytest.fixture(scope="module")
def noisy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.purifiers._builders, "noise", Noise)
        patch.setitem(registry.purifiers._holders, "noise", "tests.Noise")
        yield "noise(sigma=0.2)+pgd-at-digits"


@pytest.fixture(scope="module")
def record(noisy, tmp_path_factory):
    return robench.run(
        noisy,
        "pgd(steps=5, eot=2)",
        samples=40,
        threat="Linf:0.1",
        results=tmp_path_factory.mktemp("noisy"),
        batch_size=16,
    )


def test_its_record_says_average_worst_draw_and_majority(record):
    rows = read_samples(record.folder).to_pydict()
    found = read_record(record.folder).extra[drawn.FIELD]
    assert found["draws"] == 10
    robust = found["robust"]
    assert robust["average"]["value"] == pytest.approx(1 - sum(rows["draws"]) / 400)
    assert robust["worst_draw"]["value"] == rows["draws"].count(0) / 40 == record.robust_accuracy.value
    assert robust["worst_draw"]["value"] < robust["average"]["value"] < found["clean"]["average"]["value"]
    vote = sum(a == b for a, b in zip(rows["prediction"], rows["label"], strict=True)) / 40
    assert robust["majority"]["value"] == vote
    assert record.health == ()


def test_it_is_verified_by_drawing_the_same_noise_again(record, noisy):
    data = robench.data.load_dataset("digits", "test", 40)
    found = verify(record.folder, load(noisy), data)
    assert "in the worst of 10 fresh draws" in found[-1].detail and len(found) > 15


def test_forged_draws_are_refused(record, noisy, tmp_path):
    data = robench.data.load_dataset("digits", "test", 40)
    folder = shutil.copytree(record.folder, tmp_path / record.folder.name)
    content = read_record(folder)
    forged = {**content.extra[drawn.FIELD], "clean": content.extra[drawn.FIELD]["robust"]}
    (folder / "record.json").write_bytes(dataclasses.replace(content, extra={drawn.FIELD: forged}).encode())
    with pytest.raises(CheckFailed, match="stochastic: the record says"):
        verify(folder, load(noisy), data)
