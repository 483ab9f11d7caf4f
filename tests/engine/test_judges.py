"""What is reported of a randomized defense comes from draws that no attack has seen."""

import pytest
import torch
from torch import nn

from robench.core.rng import uniform_like
from robench.engine.judges import Judges
from robench.evaluation.attack import attack
from tests.models import images

WRONG = 0.3


class Chance(nn.Module):
    """Wrong in three of ten draws wherever it is asked, by noise that every image sees otherwise.

    No attack changes that. But a search that keeps the luckiest of many candidates sees more failures in the draws
    that it is shown.
    """

    stochastic = True

    def forward(self, x):
        place = 1e3 * x.flatten(1).double().sum(1) + uniform_like(x[:, :1, :1, :1]).flatten(1)[:, 0]
        wrong = (place.frac() < WRONG).float() + 0 * x.flatten(1).sum(1)
        return torch.stack([0.5 + 0 * wrong, wrong], 1)


def play(n=40, **options):
    return attack(
        "pgd(steps=6)", Chance(), images(n), torch.zeros(n, dtype=torch.int64), threat="Linf:0.1", batch_size=20,
        stochastic=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def outcome():
    return play()


def average(outcome):
    return 1 - float(outcome.draws.double().mean()) / outcome.of_draws


def test_choosing_a_candidate_does_not_bias_what_is_reported(outcome, monkeypatch):
    # The same candidates on the draws that they were chosen on.
    of = Judges.of
    monkeypatch.setattr(Judges, "of", lambda *given: of(*given[:4], fresh=False))
    chosen = play()
    both = (outcome.distance > 0) & (chosen.distance > 0)
    assert int(both.sum()) > 12 and torch.equal(chosen.x_adv[both], outcome.x_adv[both])
    assert float(outcome.draws[both].double().mean()) / 10 == pytest.approx(WRONG, abs=0.08)
    assert float(chosen.draws[both].double().mean()) / 10 > WRONG + 0.05


def test_every_row_is_judged_by_what_it_ends_with(outcome):
    assert outcome.answers.shape == outcome.clean_answers.shape == (40, 10)
    assert torch.equal((outcome.answers != 0).sum(1), outcome.draws)
    assert torch.equal((outcome.clean_answers != 0).sum(1), outcome.clean_draws)
    left = outcome.distance == 0
    assert torch.equal(outcome.answers[left], outcome.clean_answers[left])
    assert outcome.single_draw_accuracy == float((outcome.answers[:, 0] == 0).double().mean())
    for name, wrong, clean in zip(
        outcome.fooled_by, outcome.draws.tolist(), outcome.clean_prediction.tolist(), strict=True
    ):
        assert name == ("clean" if clean else "" if not wrong else name) and (name == "") == (wrong == 0)
    assert torch.equal(outcome.robust, torch.tensor([name == "" for name in outcome.fooled_by]))


def test_processes_that_share_the_images_change_nothing(outcome):
    shared = play(workers=2)
    for name in ("x_adv", "answers", "clean_answers", "draws", "steps", "distance"):
        assert torch.equal(getattr(shared, name), getattr(outcome, name)), name
    assert shared.fooled_by == outcome.fooled_by and shared.passes == outcome.passes


def test_another_batch_size_draws_the_same_noise(outcome):
    other = attack(
        "pgd(steps=1)", Chance(), images(40), torch.zeros(40, dtype=torch.int64), threat="Linf:0.1", batch_size=7,
        stochastic=True,
    )  # fmt: skip
    assert torch.equal(other.clean_answers, outcome.clean_answers)


def test_the_three_judges_of_a_seed_draw_three_kinds_of_noise():
    judges = Judges.of(Chance(), 8, 0, True)
    x, ids = images(8), torch.arange(8)
    said = [judge.answers(x, ids) for judge in (judges.search, judges.clean, judges.final)]
    assert not torch.equal(said[0], said[1]) and not torch.equal(said[1], said[2])
    assert not torch.equal(said[0], said[2])


def test_a_deterministic_defense_has_one_judge_and_no_draws():
    judges = Judges.of(nn.Flatten(), 8, 0, False)
    assert judges.search is judges.clean is judges.final and judges.final.draws == 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()
    x = images(4)
    outcome = attack("fgsm", model, x, model(x).argmax(1), threat="Linf:0.3", batch_size=4)
    assert (outcome.of_draws, outcome.answers, outcome.clean_answers) == (1, None, None)
    assert outcome.single_draw_accuracy is None
