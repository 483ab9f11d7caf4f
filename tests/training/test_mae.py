import math

import pytest
import torch

from robench.defenses.vit import vit
from robench.training.mae import MaskedAutoencoder, patchify, random_order, sincos_positions


@pytest.fixture
def model():
    torch.manual_seed(0)
    encoder = vit(image_size=16, patch_size=4, width=16, depth=2, heads=2, num_classes=10).classifier
    return MaskedAutoencoder(encoder, decoder_width=16, decoder_depth=1, decoder_heads=2)


def hidden_pixels(model, order, x):
    """A mask of the pixels whose patches are hidden, (N, 1, 16, 16)."""
    mask = torch.zeros(len(x), model.patches).scatter(1, order[:, model.visible :], 1.0)
    return mask.view(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3).bool()


def test_three_quarters_are_hidden(model):
    assert (model.patches, model.visible) == (16, 4)
    order = random_order(50, 16, torch.device("cpu"))
    assert torch.equal(order.sort(1).values, torch.arange(16).expand(50, -1))
    assert model.encode(torch.rand(50, 3, 16, 16), order).shape == (50, 5, 16)


def test_hidden_patches_cannot_reach_the_encoder(model):
    x = torch.rand(3, 3, 16, 16)
    order = random_order(3, 16, x.device)
    hidden = hidden_pixels(model, order, x)
    other = torch.where(hidden, torch.full_like(x, torch.nan), x)
    assert torch.equal(model.encode(x, order), model.encode(other, order))
    x.requires_grad_(True)
    model.encode(x, order).square().sum().backward()
    reached = x.grad.abs().amax(1, keepdim=True) > 0
    assert not (reached & hidden).any()
    assert (reached | hidden).all()


def test_the_encoder_is_the_classifiers(model):
    """With nothing hidden and in order, the tokens are the ViT's own, normalized."""
    whole = MaskedAutoencoder(model.encoder.network, 16, 1, 2, mask_ratio=0.0)
    x = torch.rand(2, 3, 16, 16)
    order = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(
        whole.encode(x, order), whole.encoder.norm(model.encoder.network.forward_features(x))
    )


def test_decoding_puts_every_patch_in_its_place(model):
    """Where the same patches are visible, the order in which they were drawn does not matter."""
    x = torch.rand(2, 3, 16, 16)
    order = random_order(2, 16, x.device)
    shuffled = torch.cat([order[:, :4].flip(1), order[:, 4:].roll(3, 1)], 1)
    torch.testing.assert_close(
        model.decode(model.encode(x, order), order), model.decode(model.encode(x, shuffled), shuffled)
    )


def test_the_loss_is_of_hidden_patches_alone_each_normalised(model):
    x = torch.rand(2, 3, 16, 16)
    order = random_order(2, 16, x.device)
    guess = torch.randn(2, 16, 48)
    total, count = 0.0, 0
    for image, ranks, guesses in zip(x, order, guess, strict=True):
        for place in ranks[4:].tolist():
            row, column = divmod(place, 4)
            patch = image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten().double()
            wanted = (patch - patch.mean()) / math.sqrt(patch.var(unbiased=True) + 1e-6)
            total += float((guesses[place] - wanted).square().mean())
            count += 1
    assert count == 24
    assert float(model.reconstruction(guess, x, order)) == pytest.approx(total / count, rel=1e-5)


def test_patches_are_read_row_by_row():
    x = torch.arange(2 * 4 * 4).view(1, 2, 4, 4)
    assert patchify(x, 2)[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]


def test_positions():
    positions = sincos_positions(8, 3)
    assert positions.shape == (1, 10, 8)
    assert positions[0, 0].abs().max() == 0
    # Row 2, column 1: sines and cosines of the column at wave lengths 1 and 100, then of the row.
    expected = [f(p * w) for p in (1, 2) for f in (math.sin, math.cos) for w in (1, 0.01)]
    assert positions[0, 1 + 2 * 3 + 1].tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions(6, 3)


def test_positions_stay_fixed_and_everything_else_learns(model):
    x = torch.rand(4, 3, 16, 16)
    loss, _ = model(x, x, random_order(4, 16, x.device))
    loss.backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()}
    unused = {"pos_embed", "fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert still == {f"encoder.network.{name}" for name in unused}
    assert torch.equal(model.encoder.network.pos_embed, sincos_positions(16, 4))
