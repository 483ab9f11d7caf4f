import pytest
import torch

from robench.core.hsic import nhsic
from robench.data import load_dataset
from robench.defenses.vit import vit
from robench.training.batches import InMemory
from robench.training.mae import MaskedAutoencoder, random_order
from robench.training.mimir import grouped_nhsic, inner_attack, pretraining_loss
from robench.training.recipe import Finetuning, Pretraining, Recipe
from robench.training.stages import finetuning_stage, pretraining_stage

CPU = torch.device("cpu")


def small(**arguments):
    sizes = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "num_classes": 10}
    return vit(**{**sizes, **arguments}).classifier


@pytest.fixture(scope="module")
def digits():
    images = load_dataset("digits", "train")
    return images.x[:256], images.y[:256]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MaskedAutoencoder(small(drop_path=0.5), 16, 1, 2)


def own_loss(model, x, draws=40):
    """The reconstruction loss whose target is the input itself, over many masks."""
    torch.manual_seed(1)
    model.eval()
    with torch.no_grad():
        return sum(float(model(x, x, random_order(len(x), 16, CPU))[0]) for _ in range(draws)) / draws


def test_the_inner_attack_stays_in_the_ball_and_makes_guessing_harder(model, digits):
    x = digits[0]
    # A few steps of plain MAE, so that there is something to attack.
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss, _ = model(x, x, random_order(len(x), 16, CPU))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.train()
    torch.manual_seed(0)
    x_adv = inner_attack(model, x, 8 / 255, 10 / 255)
    assert model.training
    assert not x_adv.requires_grad
    assert float((x_adv - x).abs().max()) <= 8 / 255 + 1e-6
    assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
    noise = (x + torch.empty_like(x).uniform_(-8 / 255, 8 / 255)).clamp(0, 1)
    assert own_loss(model, x_adv) > own_loss(model, noise)


def test_a_step_longer_than_the_radius_ends_mostly_on_its_edge(model):
    """The official code was seen to leave about 60 % of the pixels of random images at +-eps."""
    torch.manual_seed(0)
    x = torch.rand(64, 3, 16, 16) * 0.8 + 0.1
    edge = (inner_attack(model, x, 0.031, 0.039) - x).abs() > 0.031 - 1e-6
    assert 0.55 < float(edge.float().mean()) < 0.75


def test_the_inner_attack_leaves_the_model_as_it_was(model):
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    inner_attack(model, torch.rand(4, 3, 16, 16), 0.1, 0.1)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert all(p.grad is None for p in model.parameters())


def test_the_penalty_is_added_with_its_weight_and_reaches_the_encoder(model):
    x = torch.rand(8, 3, 16, 16)
    model.eval()

    def loss(weight):
        torch.manual_seed(3)
        return pretraining_loss(model, x, 0.1, 0.1, weight)

    torch.manual_seed(3)
    x_adv = inner_attack(model, x, 0.1, 0.1)
    latent = model.encode(x_adv, random_order(8, 16, CPU))
    penalty = nhsic(latent, x_adv)
    added = float(loss(0.5).detach() - loss(0.0).detach())
    assert added == pytest.approx(0.5 * float(penalty.detach()), rel=1e-3)
    penalty.backward()
    assert model.encoder.network.blocks[0].attn.qkv.weight.grad.abs().max() > 0


@pytest.mark.slow
def test_a_few_hundred_steps_lower_both_losses(digits):
    x, y = digits
    torch.manual_seed(0)
    config = Pretraining(
        epochs=40, warmup=5, batch_size=64, lr=2e-3, decoder_width=16, decoder_depth=1, decoder_heads=2
    )
    encoder = small(width=32)
    losses = list(pretraining_stage(encoder, config, CPU).run(InMemory(x, y), Recipe(pretraining=config)))
    # Guessing each patch's mean costs 1 in normalized pixels, less where a patch is all black.
    assert losses[-1] < 0.8 * losses[4]
    tune = Finetuning(
        epochs=25, warmup=2, batch_size=32, lr=3e-3, layer_decay=1.0, eps=0.02, step_size=0.02, steps=1
    )
    losses = list(
        finetuning_stage(encoder, small(width=32), tune).run(InMemory(x, y), Recipe(finetuning=tune))
    )
    assert losses[-1] < 0.6 * losses[0]


def test_the_penalty_is_the_mean_over_groups_of_rows():
    """As the gradients of several GPUs are averaged, each with the nHSIC of its images."""
    torch.manual_seed(0)
    latent, x = torch.randn(10, 6, requires_grad=True), torch.rand(10, 3, 4, 4)
    penalty = grouped_nhsic(latent, x, 4)
    parts = [nhsic(latent[rows], x[rows]) for rows in (slice(0, 4), slice(4, 8), slice(8, 10))]
    expected = 0.4 * parts[0] + 0.4 * parts[1] + 0.2 * parts[2]
    torch.testing.assert_close(penalty, expected)
    assert torch.equal(grouped_nhsic(latent, x, 0), nhsic(latent, x))
    # No penalty of one row.
    torch.testing.assert_close(grouped_nhsic(latent[:9], x[:9], 4) * 9, (parts[0] + parts[1]) * 4)
    # The penalty of twice the rows is larger, and so is its gradient.
    whole, halves = (
        torch.autograd.grad(grouped_nhsic(latent, x, group), latent)[0].norm() for group in (0, 5)
    )
    assert whole > 1.2 * halves
