"""MIMIR's adaptive attacks against their formulas, in NumPy float64 by finite differences."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robench.attacks._feature_losses import information, nearest_other_class, relative_distance
from robench.attacks.apgd import APGD
from robench.attacks.apgd_feature import APGDFeature
from robench.attacks.apgd_mi import APGDMI
from robench.attacks.build import build_attacks
from robench.attacks.pgd import PGD
from robench.attacks.pgd_feature import PGDFeature
from robench.attacks.pgd_mi import PGDMI
from robench.catalog import find_suite
from robench.core.errors import UsageError
from robench.evaluation.attack import attack
from robench.threats.threat import Threat
from tests.attacks.driver import answer, play, problem, rows_of
from tests.combinations import each_once, first_only
from tests.core.test_hsic import by_the_formula
from tests.models import Linear, images

EPS = 0.06
SIDE = 2
PIXELS = 3 * SIDE**2
# The largest spread of features that a kernel of width sigma sqrt(d) can still resolve.
SPREAD = 8


class Curved(nn.Module):
    """features = SPREAD tanh(A (x - 0.5)), logits = B features."""

    def __init__(self, classes: int = 4, width: int = 6):
        super().__init__()
        rng = np.random.default_rng(0)
        self.a, self.b = rng.normal(size=(PIXELS, width)), rng.normal(size=(width, classes)) / SPREAD
        self.register_buffer("first", torch.from_numpy(self.a).float())
        self.register_buffer("second", torch.from_numpy(self.b).float())

    def features(self, x: Tensor) -> Tensor:
        return SPREAD * ((x - 0.5).flatten(1) @ self.first).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x) @ self.second

    def features64(self, x: np.ndarray) -> np.ndarray:
        return SPREAD * np.tanh((x - 0.5).reshape(len(x), -1) @ self.a)

    def cross_entropy64(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        logits = self.features64(x) @ self.b
        return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(x)), y]


def gradient(function, x: np.ndarray) -> np.ndarray:
    """Central differences, pixel by pixel."""
    grad = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = 1e-5
        grad[index] = (function(x + step) - function(x - step)) / 2e-5
    return grad


def task(group: int = 1, norm: str = "Linf"):
    return replace(problem(f"{norm}:{EPS}", 4), group=group)


def setting(n: int = 8):
    model, x = Curved(), images(n, SIDE)
    rows = rows_of(model, x)
    return model, replace(rows, reference=model.features(x))


def check_steps(asked: list, clean: Tensor, objective) -> float:
    """Each point is the published step from the previous one, wherever the sign of the gradient is certain.

    Returns:
        The share of pixels where it is.
    """
    sure = []
    low, high = clean.double().numpy() - EPS, clean.double().numpy() + EPS
    for now, after in pairwise(asked):
        x = torch.stack(now).double().numpy()
        grad = gradient(objective, x)
        expected = np.clip(np.clip(x + EPS / 4 * np.sign(grad), low, high), 0, 1)
        plain = np.abs(grad) > 1e-3 * np.abs(grad).max()
        sure.append(plain.mean())
        np.testing.assert_allclose(torch.stack(after).numpy()[plain], expected[plain], atol=1e-6)
    return float(np.mean(sure))


@pytest.mark.parametrize("weight", first_only(2, [0.2, -0.2, 1e-5]))
def test_pgd_mi_takes_the_published_steps(weight):
    model, rows = setting()
    y = rows.y.numpy()
    asked, _ = play(model, PGDMI(weight=weight, steps=6, group=4), task(4), rows, 6)

    def objective(x):
        total = 0.0
        for group in (slice(0, 4), slice(4, 8)):
            mi = by_the_formula(model.features64(x[group]), x[group])
            total += model.cross_entropy64(x[group], y[group]).mean() + weight * mi
        return total

    assert check_steps(asked, rows.x, objective) > 0.9
    if abs(weight) > 0.1:
        # The second term changes many steps: plain PGD would fail here.
        with pytest.raises(AssertionError):
            check_steps(asked, rows.x, lambda x: model.cross_entropy64(x, y).mean())


def test_pgd_feature_takes_the_published_steps():
    model, rows = setting()
    clean = model.features64(rows.x.double().numpy())
    asked, _ = play(model, PGDFeature(steps=6), task(), rows, 6)

    def objective(x):
        return np.sqrt(np.square(model.features64(x) - clean).sum(1)).sum()

    assert check_steps(asked, rows.x, objective) > 0.9


def test_the_published_settings_are_the_defaults():
    for published in (PGDMI(), PGDFeature()):
        assert published.steps == 100 and published.norms == ("Linf",)
        base = published.base_attack(8 / 255)
        assert base.step_size == pytest.approx(2 / 255) and base.random_start and base.restarts == 1
    assert (PGDMI().weight, PGDMI().group) == (1e-5, 16)


@pytest.mark.parametrize("weight", [0.1, -1.0])
def test_apgd_mi_maximises_the_formula(weight):
    model, rows = setting()
    asking, chosen = task(4), APGDMI(weight=weight, group=4)
    ask = chosen.ask(asking, rows, chosen.init(asking, rows))
    said = answer(model, ask, rows)
    x, y = ask.x.double().numpy(), rows.y.numpy()

    def objective(x):
        mi = sum(by_the_formula(model.features64(x[g]), x[g]) for g in (slice(0, 4), slice(4, 8)))
        return model.cross_entropy64(x, y).sum() + 4 * weight * mi

    assert float(said.loss.sum()) == pytest.approx(objective(x), rel=1e-5)
    expected = gradient(objective, x)
    np.testing.assert_allclose(said.grad.numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_several_layers_are_averaged():
    x, one, other = torch.rand(6, 3, 2, 2), torch.randn(6, 5), torch.randn(6, 2, 4)
    both = information(x, (one, other), 3)
    single = [information(x, (layer,), 3) for layer in (one, other)]
    torch.testing.assert_close(both, torch.stack(single).mean(0))
    reference = torch.cat([one.flatten(1), 2 * other.flatten(1)], 1)
    torch.testing.assert_close(relative_distance((one, other), reference), torch.full((6,), 0.25))


@pytest.mark.parametrize(("norm", "targets", "loss"), each_once(["Linf", "L2"], [0, 2], ["ce", "dlr"]))
def test_without_weight_it_is_apgd_step_for_step(norm, targets, loss):
    model, rows = setting()
    plain, _ = play(model, APGD(loss, steps=20, targets=targets), task(norm=norm), rows, 20)
    for steered in (
        APGDMI(loss, weight=0.0, steps=20, targets=targets, group=4),
        APGDFeature(loss, weight=0.0, steps=20, targets=targets),
    ):
        asked, _ = play(model, steered, task(4, norm), rows, 20)
        for ours, theirs in zip(asked, plain, strict=True):
            assert all(map(torch.equal, ours, theirs))


def test_without_weight_it_is_pgd_step_for_step():
    model, rows = setting()
    plain, _ = play(model, PGD(steps=20, step_size=EPS / 4), task(), rows, 20)
    asked, _ = play(model, PGDMI(weight=0.0, steps=20, group=4), task(4), rows, 20)
    for ours, theirs in zip(asked, plain, strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(
    "steered",
    [
        PGDMI(weight=1.0, group=4),
        PGDFeature(),
        APGDMI(weight=-1.0, group=4),
        APGDFeature(),
        APGDFeature(targets=2),
    ],
)
def test_every_query_lies_in_the_ball(norm, steered):
    if norm not in steered.norms:
        pytest.skip("published in Linf")
    model, rows = setting()
    asked, state = play(model, steered, task(4, norm), rows, 30)
    threat = Threat.parse(f"{norm}:{EPS}")
    for points in [*map(torch.stack, asked), steered.best(state)]:
        assert threat.contains(rows.x, points).all()


@pytest.mark.parametrize("targets", [0, 2])
def test_adaptive_steps_move_features_in_the_right_direction(targets):
    model, rows = setting(12)
    run = rows_of(model, rows.x)
    chosen = APGDFeature(targets=targets, steps=50)
    reference = model.features(rows.x)[chosen.references(run, rows)]
    if not targets:
        assert torch.equal(reference, model.features(rows.x))
    rows = replace(rows, reference=reference)
    _, state = play(model, chosen, task(), rows, 51)
    start = chosen.init(task(), rows).x
    before, after = (relative_distance((model.features(x),), reference) for x in (start, chosen.best(state)))
    assert (after < before).all() if targets else (after > before).all()


def test_the_reference_image_is_the_nearest_of_the_target_class():
    _, rows = setting(40)
    assert len(rows.y.unique()) >= 3
    chosen = APGDFeature(targets=3, restarts=2)
    rows = replace(rows, rank=torch.arange(40) % 6)
    target = chosen.target(rows)
    picked = nearest_other_class(rows, rows, target, 2)
    for i in range(40):
        assert rows.y[picked[i]] != rows.y[i]
        among = (rows.y == target[i]).nonzero()[:, 0]
        if not len(among):
            continue
        far = (rows.x[among] - rows.x[i]).flatten(1).norm(dim=1)
        nearer = int((far < (rows.x[picked[i]] - rows.x[i]).norm()).sum())
        assert rows.y[picked[i]] == target[i] and nearer == min(int(rows.rank[i]) % 2, len(among) - 1)


def test_a_run_with_one_class_has_no_reference_image():
    model, x = Curved(), images(1, SIDE)
    with pytest.raises(UsageError, match="attack more images at once"):
        attack("apgd-feature(targets=3)", model, x, model(x).argmax(1), threat="Linf:0.1")


def test_features_of_another_shape_are_refused():
    class Odd(Linear):
        def features(self, x):
            return [x.flatten(1)]

    model, x = Odd(4, (3, SIDE, SIDE)), images(4, SIDE)
    with pytest.raises(UsageError, match=r"features\(x\) of this model must be tensors"):
        attack("pgd-mi", model, x, model(x).argmax(1), threat="Linf:0.01")


@pytest.mark.parametrize("spec", ["apgd+pgd-mi", "apgd+apgd-feature", 'square+apgd-mi(layers="all")'])
def test_a_defense_without_features_is_refused_before_the_first_query(spec):
    model, calls = Linear(4, (3, SIDE, SIDE)), []
    model.register_forward_hook(lambda *said: calls.append(1))
    with pytest.raises(UsageError, match=r"has no features.*robench\.defenses\.Defense.*autoattack"):
        attack(spec, model, images(4, SIDE), torch.zeros(4).long(), threat="Linf:0.1")
    assert len(calls) <= 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ('apgd-mi(layers="first")', "expected one of last, all"),
        ("apgd-mi(group=0)", "at least 1"),
        ('apgd-feature(loss="hinge")', "unknown loss"),
        ("apgd-feature(weight=5.0)", "against a loss: set loss too"),
    ],
)
def test_wrong_arguments_are_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        build_attacks([spec], Threat.parse("Linf:0.1"))


def test_the_suite_begins_with_autoattack():
    suite, first = find_suite("adaptive"), find_suite("autoattack")
    for threat in ("Linf:8/255", "L2:0.5"):
        chosen = Threat.parse(threat)
        ours = [spec for spec, _ in build_attacks(suite.specs(chosen.norm), chosen)]
        theirs = [spec for spec, _ in build_attacks(first.specs(chosen.norm), chosen)]
        assert ours[: len(theirs)] == theirs and len(set(ours)) == len(ours) > 20
