import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robench.defenses.vit import vit
from robench.training.adversarial import correct, pgd
from robench.training.trainer import load_encoder, measure


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))


def test_pgd_on_a_linear_model_reaches_the_best_corner_of_the_ball(linear):
    torch.manual_seed(1)
    x, y = torch.rand(20, 3, 2, 2) * 0.5 + 0.25, torch.randint(2, (20,))
    x_adv = pgd(linear, x, y, eps=0.1, step_size=0.05, steps=5)
    weight = linear[1].weight.detach()
    towards = (weight[1 - y] - weight[y]).sign().view_as(x)
    torch.testing.assert_close(x_adv, x + 0.1 * towards)


def test_pgd_stays_in_the_ball_and_the_box(linear):
    x, y = torch.rand(50, 3, 2, 2).round(), torch.randint(2, (50,))
    x_adv = pgd(linear, x, y, eps=0.3, step_size=0.2, steps=3)
    assert float((x_adv - x).abs().max()) <= 0.3 + 1e-6
    assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1


def test_pgd_leaves_the_model_as_it_was(linear):
    linear[1].bias.requires_grad_(False)
    linear.train()
    pgd(linear, torch.rand(3, 3, 2, 2), torch.zeros(3, dtype=torch.long), 0.1, 0.1, 2)
    assert linear.training
    assert linear[1].weight.requires_grad and not linear[1].bias.requires_grad
    assert linear[1].weight.grad is None


def test_measuring_a_linear_model_agrees_with_its_closed_form(linear):
    """PGD flips a prediction if and only if the margin is below eps times the 1-norm of the weights."""
    torch.manual_seed(2)
    x = torch.rand(300, 3, 2, 2) * 0.4 + 0.3
    y = torch.randint(2, (300,))
    with torch.no_grad():
        logits = linear(x)
    margin = logits.gather(1, y[:, None])[:, 0] - logits.gather(1, 1 - y[:, None])[:, 0]
    reach = float((linear[1].weight[0] - linear[1].weight[1]).detach().abs().sum()) * 0.1
    clean, robust = measure(linear.eval(), x, y, eps=0.1, batch_size=128)
    assert clean == int((margin > 0).sum()) == correct(linear, x, y)
    assert robust == int((margin > reach).sum())
    assert 0 < robust < clean


def test_the_classifier_takes_the_encoder_and_nothing_else():
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "width": 64, "depth": 1, "heads": 2, "num_classes": 100}
    encoder, classifier = vit(**sizes).classifier, vit(**sizes).classifier
    nn.init.constant_(encoder.fc_norm.weight, 7.0)
    load_encoder(encoder.state_dict(), classifier)
    for key, value in classifier.state_dict().items():
        same = torch.equal(value, encoder.state_dict()[key])
        assert same == (key not in ("head.weight", "fc_norm.weight")), key
    assert float(classifier.head.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_the_best_iterate_has_the_highest_loss_of_all():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 30), nn.Tanh(), nn.Linear(30, 5))
    x, y = torch.rand(40, 3, 4, 4), torch.randint(5, (40,))
    labels = F.one_hot(y, 5) * 0.7 + 0.06
    losses = []
    for steps in range(6):
        torch.manual_seed(1)  # the same start, so that these are the iterates
        last = pgd(network, x, labels, 0.3, 0.25, steps)
        losses.append(F.cross_entropy(network(last), labels, reduction="none"))
    torch.manual_seed(1)
    best = pgd(network, x, labels, 0.3, 0.25, 5, best=True)
    highest = torch.stack(losses).amax(0)
    torch.testing.assert_close(F.cross_entropy(network(best), labels, reduction="none"), highest)
    assert (highest > losses[-1]).any()
