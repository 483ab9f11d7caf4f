"""Randomized smoothing against closed forms, and what it refuses."""

import pytest
import torch
from scipy.stats import norm

from robench.certification._base import ABSTAINED
from robench.certification.smoothing import Smoothing
from robench.certification.votes import SoftVote, count_votes
from robench.core.errors import UsageError
from robench.core.rng import Stream, noise
from robench.defenses import Defense, Loaded
from robench.defenses.de3 import DE3
from robench.defenses.diffusion import DiffPure
from robench.defenses.smoothed import Smoothed
from tests.certification.cases import SIDE, Sometimes, case, linear
from tests.models import small_net


def test_the_radius_of_a_linear_classifier_approaches_the_exact_one_from_below():
    """Under Gaussian noise a linear classifier is smoothed to itself: the radius is the distance to its plane."""
    made, draws = case(n=16, sigma=0.5), 2000
    exact = linear().distances(made.images.x, made.images.y, "L2")
    bounds = Smoothing(draws=draws).bounds(made, range(16))
    proven = bounds.prediction == made.images.y
    assert (bounds.radius[proven] <= exact[proven]).all()
    # Far from the plane all draws agree and the number of draws limits the radius; near it the vote abstains.
    near = (exact > 0.1) & (exact < 0.8)
    assert near.sum() >= 5 and proven[near].all()
    assert (exact[near] - bounds.radius[near] < 0.1).all()
    votes = bounds.votes / draws
    assert torch.allclose(votes.double(), torch.from_numpy(norm.cdf(exact / 0.5)), atol=0.03)


@pytest.mark.slow
def test_bounds_are_wrong_at_most_alpha_of_the_time():
    alpha, wrong, total = 0.05, 0, 0
    for seed in range(40):
        made = case(n=12, sigma=0.5, seed=seed)
        exact = linear().distances(made.images.x, made.images.y, "L2")
        bounds = Smoothing(draws=100, selection=10, alpha=alpha).bounds(made, range(12))
        right = bounds.prediction == made.images.y
        wrong += int(((bounds.radius > exact) & right).sum()) + int((~right & (bounds.radius > 0)).sum())
        total += 12
    assert wrong / total <= alpha + 3 * (alpha / total) ** 0.5


def test_a_bound_depends_on_the_seed_and_the_image_alone():
    made, method = case(n=6), Smoothing(draws=100, selection=10)
    whole = method.bounds(made, range(6))
    for rows in ([5], [1, 4], [3, 0, 2]):
        part = method.bounds(made, rows)
        assert torch.equal(part.votes, whole.votes[rows]) and torch.equal(part.radius, whole.radius[rows])
    again = method.bounds(case(n=6, batch_size=7), range(6))
    assert torch.equal(again.votes, whole.votes)
    assert not torch.equal(method.bounds(case(n=6, seed=1), range(6)).votes, whole.votes)


def test_selection_and_estimation_use_other_draws():
    made = case(n=4, sigma=2.0)
    x, _, ids = made.batch(range(4))
    one, other = (
        count_votes(made.setup.network(purpose), x, ids, 50)
        for purpose in ("certify: selection", "certify: estimation")
    )
    assert not torch.equal(one, other)


def test_a_draw_without_a_prediction_is_no_vote():
    made = case(n=8, sigma=0.5, model=Sometimes())
    bounds = Smoothing(draws=200, selection=20).bounds(made, range(8))
    x, _, ids = made.batch(range(8))
    votes = count_votes(made.setup.network("certify: estimation"), x, ids, 200)
    assert (votes.sum(1) < 200).all() and torch.equal(votes[:, 0], bounds.votes)
    assert (bounds.prediction[bounds.votes < 110] == ABSTAINED).all()


def test_the_soft_vote_is_the_mean_softmax_of_its_draws():
    made = case(n=3)
    x, _, ids = made.batch(range(3))
    zero = torch.zeros(3, dtype=torch.int64)
    soft = SoftVote(made.loaded.defense, 5)
    with noise(Stream.of(0, "vote"), ids, zero, zero):
        log_mean = soft(x)
    assert torch.allclose(log_mean.exp().sum(1), torch.ones(3), atol=1e-5)
    many = SoftVote(made.loaded.defense, 2000)
    with noise(Stream.of(0, "vote"), ids, zero, zero):
        mean = many(x).exp()
    torch.manual_seed(0)
    drawn = torch.stack([made.loaded.defense(x).softmax(1) for _ in range(2000)]).mean(0)
    assert torch.allclose(mean, drawn, atol=0.04)


def _loaded(purifier, size: int = SIDE) -> Loaded:
    defense = Defense(small_net(2, size), num_classes=2, image_size=size, purifier=purifier, stochastic=True)
    return Loaded("mine", defense, None, "", None, "")


def _de3(**settings) -> DE3:
    return DE3(8, 4, 8, 1, 2, 8, 1, 2, statistics_head=True, **settings)


@pytest.mark.parametrize(
    ("purifier", "reason"),
    [
        (None, r"certify smoothed\(sigma=0.25\)\+mine"),
        (_de3(statistics="input"), 'choose statistics="predicted" or "noisy"'),
        (_de3(statistics="predicted", noise="mask", sigma=50), "adds no Gaussian noise"),
        (_de3(statistics="predicted", sigma=0), "adds no Gaussian noise"),
        (torch.nn.Identity(), "does not say what noise it adds"),
    ],
)
def test_a_defense_without_noise_in_front_is_refused_with_the_reason(purifier, reason):
    made = case()
    with pytest.raises(UsageError, match=reason):
        Smoothing().check(type(made)(_loaded(purifier), made.images, made.setup))


def test_noise_after_resizing_is_refused():
    purifier, made = _de3(statistics="predicted", size_mode="tile"), case()
    with pytest.raises(UsageError, match="resized or cut to 8 px before the noise"):
        Smoothing().check(type(made)(_loaded(purifier, 16), made.images, made.setup))


def test_the_noise_of_purifiers_is_what_they_add():
    assert Smoothed(0.3).input_noise() == 0.3
    assert _de3(statistics="noisy", sigma=51).input_noise() == pytest.approx(0.2)
    purifier = DiffPure(image_size=8, widths=(8,), layers=1, attention=(), groups=4, t=100)
    x = torch.full((1, 3, 64, 64), 0.4)
    torch.manual_seed(0)
    diffused = purifier.schedule.diffuse(2 * x - 1, torch.tensor([100]), torch.randn(x.shape))
    # Divided by its factor of the image, the noise is Gaussian around the image itself.
    image = (diffused / purifier.schedule.kept[100] ** 0.5 + 1) / 2
    assert image.mean() == pytest.approx(0.4, abs=0.02)
    assert image.std() == pytest.approx(purifier.input_noise(), rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"draws": 0}, "draws=0"),
        ({"draws": 1.5}, "draws=1.5"),
        ({"selection": True}, "selection=True"),
        ({"alpha": 0}, "alpha=0"),
        ({"alpha": 0.5}, "alpha=0.5"),
        ({"draws": 9}, "cannot certify anything at alpha=0.001"),
    ],
)
def test_settings_that_prove_nothing_are_refused(arguments, reason):
    with pytest.raises(UsageError, match=reason):
        Smoothing(**arguments)
