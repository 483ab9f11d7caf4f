"""Each method's loss against its paper's formula in float64, and each inner maximizer by its properties."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robench.core.errors import UsageError
from robench.defenses.dbat import PairedClasses
from robench.training.adversarial import ascend, attacked, normal_start, pgd
from robench.training.methods import Budget, find_method, methods
from robench.training.methods.apgd_at import apgd
from robench.training.methods.dbat import DBAT, draw_targets
from robench.training.methods.generalist import Experts, Generalist
from robench.training.methods.mart import MART, boosted_cross_entropy
from robench.training.methods.trades import TRADES, kl_ascent
from tests.models import images, small_net

BUDGET = Budget(eps=0.1, step_size=0.04, steps=3)
N, K = 12, 10


@pytest.fixture
def batch():
    """Float64, so that a loss can be held against its formula to nearly all its digits."""
    torch.manual_seed(4)
    return images(N).double(), torch.randint(K, (N,))


def double_net(classes=K):
    """With logits far enough apart for divergences to count."""
    net = small_net(classes).double()
    with torch.no_grad():
        net[-1].weight.mul_(30)
    return net


def probabilities(net, x):
    """softmax of the net's logits, in NumPy's float64."""
    with torch.no_grad():
        z = net(x).double().numpy()
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def cross_entropy(p, y, smoothing=0.0):
    """With a smoothed label: 1 - s on it and s / K on every class."""
    target = np.eye(p.shape[1])[y] * (1 - smoothing) + smoothing / p.shape[1]
    return -(target * np.log(p)).sum(1).mean()


def seeded(loss):
    torch.manual_seed(7)
    return loss()


def ce_ascent(net, x, y):
    def objective(x_adv):
        return F.cross_entropy(net(x_adv), y, reduction="sum")

    with attacked(net):
        return ascend(x, normal_start(x), objective, BUDGET.eps, BUDGET.step_size, BUDGET.steps)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", ["pgd-at", "fast-at", "apgd-at"])
def test_cross_entropy_of_adversarial_images(batch, name, smoothing):
    net, (x, y) = double_net(), batch
    if name == "apgd-at":  # the suite's APGD is made for float32
        net, x = net.float(), x.float()
    budget = Budget(0.1, 0.04, 1 if name == "fast-at" else 3, smoothing)
    inner = {"apgd-at": lambda: apgd(net, x, y, 0.1, 3)}
    x_adv = seeded(inner.get(name, lambda: pgd(net, x, y, 0.1, 0.04, budget.steps)))
    loss = seeded(lambda: find_method(name).loss(net, x, y, budget))
    expected = cross_entropy(probabilities(net, x_adv), y, smoothing)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5 if name == "apgd-at" else 1e-9)


def test_pgd_at_without_steps_is_clean_training(batch):
    net, (x, y) = double_net(), batch
    loss = find_method("pgd-at").loss(net, x, y, Budget(0.1, 0.04, 0))
    assert float(loss.detach()) == pytest.approx(cross_entropy(probabilities(net, x), y), rel=1e-9)


def test_trades(batch):
    net, (x, y) = double_net(), batch
    x_adv = seeded(lambda: kl_ascent(net, x, BUDGET))
    loss = seeded(lambda: TRADES(beta=3.5).loss(net, x, y, BUDGET))
    p, q = probabilities(net, x), probabilities(net, x_adv)
    divergence = (p * np.log(p / q)).sum(1).mean()
    assert divergence > 1e-2
    expected = cross_entropy(p, y) + 3.5 * divergence
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9)


def test_mart(batch):
    net, (x, y) = double_net(), batch
    with torch.no_grad():  # half of the labels are the model's own, the other half wrong
        y[: N // 2] = net(x[: N // 2]).argmax(1)
    x_adv = seeded(lambda: ce_ascent(net, x, y))
    loss = seeded(lambda: MART(weight=2.5).loss(net, x, y, BUDGET))
    p, q = probabilities(net, x), probabilities(net, x_adv)
    own = q[np.arange(N), y]
    wrong = np.where(np.eye(K)[y] > 0, -1, q).max(1)
    bce = -np.log(own) - np.log(1 - wrong)
    weighted = (p * np.log(p / q)).sum(1) * (1 - p[np.arange(N), y])
    assert float(loss.detach()) == pytest.approx((bce + 2.5 * weighted).mean(), rel=1e-9)


def test_marts_margin_stays_exact_where_the_wrong_class_takes_all():
    """Class 0 takes all but e^-60, which float32 probabilities would round to nothing."""
    scores = torch.tensor([[60.0, 0.0, -100.0]], requires_grad=True)
    loss = boosted_cross_entropy(scores, torch.tensor([1]))
    assert float(loss.detach()) == pytest.approx(120.0, rel=1e-6)
    loss.backward()
    assert torch.isfinite(scores.grad).all()


def test_dbat_is_one_cross_entropy_of_twice_the_classes(batch):
    net, (x, y) = PairedClasses(double_net(2 * K), K), batch
    smooth = Budget(0.1, 0.04, 3, label_smoothing=0.5, part=0.5)

    def inner():
        targets = draw_targets(y, K, paired=True)
        with attacked(net):
            return ascend(
                x,
                normal_start(x),
                lambda x_adv: -F.cross_entropy(net.network(x_adv), targets, reduction="sum"),
                0.1,
                0.04,
                3,
            )

    x_adv = seeded(inner)
    loss = seeded(lambda: DBAT().loss(net, x, y, smooth))
    p = probabilities(net.network, torch.cat([x, x_adv]))
    wanted = np.concatenate([y.numpy(), y.numpy() + K])
    assert float(loss.detach()) == pytest.approx(cross_entropy(p, wanted, 0.5), rel=1e-9)


def test_dbats_targets_are_all_classes_but_the_images_own_two():
    torch.manual_seed(0)
    y = torch.arange(4).repeat(500)
    for paired, known in ((False, 4), (True, 8)):
        targets = draw_targets(y, 4, paired)
        for label in range(4):
            found, counts = targets[y == label].unique(return_counts=True)
            assert set(found.tolist()) == set(range(known)) - {label, label + 4}
            assert counts.min() > 0.6 * 500 / len(found)


def test_dbat_reads_each_pair_as_one_class():
    class Fixed(nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 2.0, 3.0, 7.0, 0.0, 4.0]])

    assert PairedClasses(Fixed(), 3)(torch.zeros(1)).tolist() == [[7.0, 2.0, 4.0]]


def test_dbat_needs_twice_the_classes():
    with pytest.raises(ValueError, match=r"this is a Sequential: write the builder as dbat\(base='...'\)"):
        DBAT().learners(small_net())


def test_generalist_trains_each_learner_on_its_own_images(batch):
    x, y = batch
    experts = Experts(double_net())
    with torch.no_grad():
        experts.natural[0].weight.mul_(0.5)
    x_adv = seeded(lambda: pgd(experts.robust, x, y, 0.1, 0.04, 3))
    loss = seeded(lambda: Generalist().loss(experts, x, y, BUDGET))
    robust = cross_entropy(probabilities(experts.robust, x_adv), y)
    natural = cross_entropy(probabilities(experts.natural, x), y)
    assert float(loss.detach()) == pytest.approx(robust + natural, rel=1e-9)


@pytest.mark.parametrize(("part", "share"), [(0.0, 1.0), (0.5, 1.0), (0.75, 0.7), (1.0, 0.4)])
def test_generalists_share(part, share):
    assert Generalist(share=0.4, share_from=0.5).robust_share(part) == pytest.approx(share)


def test_generalist_hands_out_the_global_learner_at_its_times():
    """Weights 3 and 1 around a global 2; 4 steps an epoch, every second epoch from half of 24 steps on."""
    method = Generalist(every=2, start=0.5)
    given = []
    for done in range(1, 25):
        experts, average = Experts(nn.Linear(1, 1)), nn.Linear(1, 1)
        for model, value in ((experts.robust, 3.0), (experts.natural, 1.0), (average, 2.0)):
            nn.init.constant_(model.weight, value)
        method.after(experts, average, done, steps=4, total=24)
        weights = float(experts.robust.weight.detach()), float(experts.natural.weight.detach())
        assert weights in ((3.0, 1.0), (2.0, 2.0))
        given += [done] if weights == (2.0, 2.0) else []
    assert given == [16, 24]


def test_generalists_natural_learner_may_learn_faster():
    experts = Experts(nn.Linear(2, 2))
    groups = Generalist(natural_lr=10.0).groups(experts, 0.05, 1.0)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert [scale[id(p)] for p in experts.robust.parameters()] == [1.0, 1.0]
    assert [scale[id(p)] for p in experts.natural.parameters()] == [10.0, 10.0]


def own_loss(net, x, x_adv, y):
    return float(F.cross_entropy(net(x_adv), y).detach())


def divergence(net, x, x_adv, y):
    p, q = probabilities(net, x), probabilities(net, x_adv)
    return float((p * np.log(p / q)).sum(1).mean())


MAXIMISERS = {
    "pgd": (lambda net, x, y: pgd(net, x, y, 0.1, 0.04, 3), own_loss),
    "one step": (lambda net, x, y: pgd(net, x, y, 0.1, 0.125, 1), own_loss),
    "apgd": (lambda net, x, y: apgd(net, x, y, 0.1, 2), own_loss),
    "kl": (lambda net, x, y: kl_ascent(net, x, BUDGET), divergence),
    "ce": (ce_ascent, own_loss),
}


@pytest.mark.parametrize("name", MAXIMISERS)
def test_inner_maximisers(name):
    """Inside ball and box, the model as it was, and a loss above that of random points of the ball."""
    maximise, judge = MAXIMISERS[name]
    net = small_net().train()
    torch.manual_seed(2)
    x, y = torch.rand(64, 3, 8, 8), torch.randint(K, (64,))  # many pixels near 0 and 1
    net[0].bias.requires_grad_(False)
    x_adv = maximise(net, x, y)
    assert not x_adv.requires_grad and net.training
    assert not net[0].bias.requires_grad and net[0].weight.requires_grad and net[0].weight.grad is None
    assert float((x_adv - x).abs().max()) <= 0.1 + 1e-6
    assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
    random = (x + torch.empty_like(x).uniform_(-0.1, 0.1)).clamp(0, 1)
    assert judge(net, x, x_adv, y) > judge(net, x, random, y)
    assert judge(net, x, x_adv, y) > judge(net, x, x, y)


def test_more_steps_of_apgd_find_more(batch):
    net, x, y = double_net().float(), batch[0].float(), batch[1]
    losses = [own_loss(net, x, seeded(lambda s=s: apgd(net, x, y, 0.1, s)), y) for s in (1, 3, 10)]
    assert losses == sorted(losses) and losses[2] > losses[0]


def test_the_draws_of_apgd_follow_torchs_seed(batch):
    net, x, y = double_net().float(), batch[0].float(), batch[1]
    first, again = seeded(lambda: apgd(net, x, y, 0.1, 2)), seeded(lambda: apgd(net, x, y, 0.1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, apgd(net, x, y, 0.1, 2))


@pytest.mark.parametrize("name", [name for name in methods if methods.get(name).most_steps])
def test_no_radius_leaves_the_images(name, batch):
    """As in the first step of a ramp."""
    x, y = batch[0].float(), batch[1]
    net = PairedClasses(small_net(2 * K), K) if name == "dbat" else small_net()
    method = find_method(name)
    loss = method.loss(method.learners(net), x, y, Budget(0.0, 0.0, 1))
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("trade", r'unknown method "trade": did you mean trades\?'),
        ("trades(alpha=1.0)", "trades takes no argument alpha: it takes beta"),
        ('trades(beta="six")', "beta='six': expected a number"),
        ("trades(beta=True)", "beta=True: expected a number"),
        ("mart(weight=-1.0)", "weight=-1.0: expected a finite number, at least 0"),
        ("trades(beta=1e999)", "beta must be a finite number"),
        ("generalist(every=2.5)", "every=2.5: expected a whole number"),
        ("generalist(every=0)", "every=0: expected at least 1"),
        ("generalist(share=1.5)", "share=1.5: expected at most 1"),
        ("pgd-at(steps=3)", "pgd-at takes no argument steps: it takes best"),
    ],
)
def test_mistakes_in_a_method(spec, said):
    with pytest.raises(UsageError, match=said):
        find_method(spec)
