"""De^3's purifier: MAE's layout, its noise, and what goes past the denoiser through a patch's mean and deviation."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.core.rng import Stream, noise
from robench.data import load_dataset
from robench.defenses import build_purifier, load, load_purifier
from robench.defenses.de3 import DE3, statistics_of

SIZES = {"image_size": 16, "patch_size": 4, "width": 32, "depth": 2, "heads": 2}
DECODER = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
BLOCK = [
    f"{layer}.{kind}"
    for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
]


def tiny(statistics="input", **changes):
    torch.manual_seed(0)
    head = statistics == "predicted"
    return (
        DE3(**SIZES, **DECODER, statistics=statistics, statistics_head=head, **changes)
        .eval()
        .requires_grad_(False)
    )


def pictures(n=4, low=0.4, high=0.6):
    """Random images whose purified patches do not reach 0 or 1 where predictions are small."""
    generator = torch.Generator().manual_seed(n)
    return low + (high - low) * torch.rand(n, 3, 16, 16, generator=generator)


def rowwise(step=0, rows=(0, 1, 2, 3)):
    count = torch.zeros(len(rows), dtype=torch.int64)
    return noise(Stream.of(0, "test"), torch.tensor(rows), count, count + step)


def test_the_state_has_the_official_maes_keys():
    plain = [f"{layer}.{kind}" for layer in ("norm", "decoder_norm") for kind in ("weight", "bias")]
    plain += [f"{layer}.{kind}" for layer in ("decoder_embed", "decoder_pred") for kind in ("weight", "bias")]
    plain += ["cls_token", "pos_embed", "mask_token", "decoder_pos_embed"]
    plain += ["patch_embed.proj.weight", "patch_embed.proj.bias"]
    blocks = [f"blocks.{i}.{key}" for i in range(2) for key in BLOCK]
    blocks += [f"decoder_blocks.0.{key}" for key in BLOCK]
    state = tiny().state_dict()
    assert set(state) == {*plain, *blocks}
    assert state["pos_embed"].shape == (1, 17, 32) and state["decoder_pred.weight"].shape == (48, 16)
    trained = {
        name for name, parameter in DE3(**SIZES, **DECODER).named_parameters() if parameter.requires_grad
    }
    assert set(state) - trained == {"pos_embed", "decoder_pos_embed"}


def test_pixels_of_a_patch_stand_row_by_row_their_channels_together():
    purifier = tiny(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    x = torch.rand(2, 3, 16, 16)
    pixels = purifier.pixels(x)
    row, column, channel = 2, 3, 1
    expected = (x[:, channel, 4 + row, 8 + column] - 0.2) / 0.6
    torch.testing.assert_close(pixels[:, 1 * 4 + 2, (row * 4 + column) * 3 + channel], expected)
    torch.testing.assert_close(purifier.images(pixels), x)


@pytest.mark.parametrize("sigma", [70.0, torch.tensor([0.0, 20.0, 70.0, 140.0])])
def test_the_noise_has_the_deviation_asked_for_and_is_not_clipped(sigma):
    x = torch.full((4, 3, 224, 224), 0.9)
    seen = DE3(depth=0, decoder_depth=0).corrupt(x, sigma)
    assert seen.order is None
    wanted = torch.as_tensor(sigma).expand(4) / 255
    # 150,528 draws an image: deviations within 1 %, five times their own error.
    torch.testing.assert_close((seen.x - x).flatten(1).std(1), wanted, rtol=0.01, atol=1e-7)
    torch.testing.assert_close((seen.x - x).flatten(1).mean(1), torch.zeros(4), rtol=0, atol=0.005)
    assert bool((seen.x.amax((1, 2, 3)) > 1).all()) == bool((wanted > 0.05).all())


@pytest.mark.parametrize(("sigma", "visible"), [(25.0, 12), (75.0, 4), (99.9, 1), (1.0, 15)])
def test_a_mask_hides_so_much_in_every_image(sigma, visible):
    seen = tiny(noise="mask", sigma=sigma).corrupt(pictures(64), sigma)
    assert seen.visible == visible and torch.equal(seen.x, pictures(64))
    shown = torch.zeros(64, 16).scatter(1, seen.order[:, :visible], 1.0)
    assert shown.sum(1).eq(visible).all() and len(shown.unique(dim=0)) > 8


@pytest.mark.parametrize("kind", ["gaussian", "mask"])
def test_no_noise_is_deterministic(kind):
    purifier, x = tiny(noise=kind, sigma=0), pictures()
    assert not purifier.stochastic and torch.equal(purifier(x), purifier(x))
    noisy = tiny(noise=kind, sigma=30)
    assert noisy.stochastic and not torch.equal(noisy(x), noisy(x))


@pytest.mark.parametrize("kind", ["gaussian", "mask"])
def test_a_rows_noise_is_its_own(kind):
    purifier, x = tiny(noise=kind, sigma=50), pictures()
    with rowwise():
        together = purifier(x)
    with rowwise(rows=(2,)):
        alone = purifier(x[2:3])
    torch.testing.assert_close(together[2:3], alone)
    with rowwise(step=1):
        assert not torch.allclose(purifier(x), together, atol=1e-4)


def centred(statistics, **changes):
    """A network whose normalized patches have mean 0, as those it is trained to guess."""
    purifier = tiny(statistics, mean=(0, 0, 0), std=(1, 1, 1), **changes)
    with torch.no_grad():
        for parameter in purifier.decoder_pred.parameters():
            parameter -= parameter.mean(0)
        if purifier.decoder_statistics is not None:
            nn.init.normal_(purifier.decoder_statistics.weight, std=0.01)
            purifier.decoder_statistics.bias.copy_(torch.tensor([0.5, -3.0]))
    return purifier


def patch_means(purifier, x):
    return statistics_of(purifier.pixels(x))[0][:, :, 0]


@pytest.mark.parametrize("kind", ["gaussian", "mask"])
def test_with_the_inputs_statistics_a_patchs_mean_goes_past_the_denoiser(kind):
    """Whatever the denoiser makes of it, and whatever the noise."""
    purifier, x = centred("input", noise=kind, sigma=70), pictures(64)
    step = 0.1 * torch.randn(64, 16).sign()
    changed = x + step.view(64, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(patch_means(purifier, purifier(changed)), patch_means(purifier, changed))
    passed = patch_means(purifier, purifier(changed)) - patch_means(purifier, purifier(x))
    torch.testing.assert_close(passed, step, rtol=1e-4, atol=1e-5)


def test_with_noisy_statistics_it_carries_the_noise():
    sigma = 35
    purifier, x = centred("noisy", sigma=sigma), pictures(256)
    error = patch_means(purifier, purifier(x)) - patch_means(purifier, x)
    # The mean of 48 draws; 4,096 patches give its deviation within a few per cent.
    assert float(error.std()) == pytest.approx(sigma / 255 / 48**0.5, rel=0.1)


def test_with_predicted_statistics_it_does_not_go_past():
    purifier, x = centred("predicted", sigma=0), pictures(64)
    step = 0.1 * torch.randn(64, 16).sign()
    changed = x + step.view(64, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    passed = patch_means(purifier, purifier(changed)) - patch_means(purifier, purifier(x))
    assert float((passed * step).mean() / step.square().mean()) == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize(("statistics", "leaks"), [("input", True), ("noisy", False), ("predicted", False)])
def test_hidden_patches_come_back_through_their_statistics_alone(statistics, leaks):
    purifier, x = tiny(statistics, noise="mask", sigma=50), pictures()
    with rowwise():
        order = purifier.corrupt(x, 50.0).order
    x.requires_grad_()
    with rowwise():
        (grad,) = torch.autograd.grad((purifier(x) * torch.randn(x.shape)).sum(), x)
    by_patch = purifier.pixels(grad + purifier.mean).abs().sum(2).gather(1, order)
    assert (by_patch[:, :8] > 1e-3).all()
    assert (by_patch[:, 8:] > 1e-3).all() if leaks else (by_patch[:, 8:] == by_patch[0, 8]).all()


@pytest.mark.parametrize("kind", ["gaussian", "mask"])
@pytest.mark.parametrize("statistics", ["input", "noisy", "predicted"])
def test_the_gradient_is_exact_for_given_noise(kind, statistics):
    purifier = tiny(statistics, noise=kind, sigma=40).double()
    x = pictures().double().requires_grad_()
    weights = torch.randn(x.shape, dtype=torch.float64)

    def value(at):
        with rowwise():
            return (purifier(at) * weights).sum()

    (grad,) = torch.autograd.grad(value(x), x)
    direction = torch.randn(x.shape, dtype=torch.float64)
    with torch.no_grad():
        slope = (value(x + 1e-6 * direction) - value(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(slope, (grad * direction).sum(), rtol=1e-5, atol=1e-6)


def test_a_classifier_gets_the_encoder_with_the_normalisation_folded_in():
    purifier = tiny()
    assert float(purifier.mean.sum()) > 1  # ImageNet's
    spec = specs.parse("vit(image_size=16, patch_size=4, width=32, depth=2, heads=2, num_classes=10)")
    network = specs.build(spec, registry.defenses.get("vit")).classifier
    missing, unexpected = network.load_state_dict(purifier.encoder_state(), strict=False)
    assert not unexpected and all(key.startswith(("fc_norm.", "head.")) for key in missing)
    x = pictures()
    tokens = purifier.patch_embed((x - purifier.mean) / purifier.std)
    torch.testing.assert_close(network.patch_embed(x), tokens, rtol=1e-4, atol=1e-5)
    assert torch.equal(network.blocks[1].mlp.fc2.weight, purifier.blocks[1].mlp.fc2.weight)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("de3(sigma=-1)", "sigma=-1: expected a finite number, at least 0"),
        ("de3(sigma=1e999)", "sigma must be a finite number"),
        ('de3(sigma="much")', "cannot be built"),
        ('de3(noise="mask", sigma=100)', "sigma=100 hides every patch"),
        ('de3(noise="salt")', "noise='salt': expected one of gaussian, mask"),
        ('de3(statistics="none")', "expected one of input, noisy, predicted"),
        ('de3(statistics="predicted")', "trained with statistics_head=True"),
        ("de3(image_size=30)", "image_size=30: expected a multiple of patch_size=16"),
        ("de3(patch_size=0)", "patch_size=0: expected at least 1"),
        ("de3(heads=0)", "heads=0: expected at least 1"),
        ("de3(width=100)", "a width of 100 cannot be split into 12 heads"),
        ("de3(std=(1, 0, 1))", "every std above 0"),
        ("de3(radius=3)", "de3 takes no argument radius"),
    ],
)
def test_bad_settings_end_in_one_clear_line(spec, said):
    with pytest.raises(UsageError, match=said) as caught:
        build_purifier(specs.parse(spec))
    assert "\n" not in str(caught.value)


def test_another_image_size_than_the_classifiers_is_refused(tmp_path):
    spec = "de3(image_size=32, patch_size=16, width=12, depth=0, decoder_width=16, decoder_depth=0)"
    save_file(build_purifier(specs.parse(spec)).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="takes images of 32 px, not of 16 px"):
        load(f"{spec}+standard-digits", checkpoint=tmp_path / "a.safetensors")


def test_a_purifier_alone_needs_no_classifier():
    assert not any(parameter.requires_grad for parameter in load_purifier("de3-digits").parameters())
    with pytest.raises(UsageError, match="standard-digits is not a purifier"):
        load_purifier("standard-digits")


# De^3 leaves clean digits as legible as they were; the card's classifier alone reads 99 % of them.
def test_the_card_reads_digits_through_its_noise():
    loaded, digits = load("de3-digits"), load_dataset("digits", "test")
    assert loaded.defense.stochastic and loaded.card.classifier
    torch.manual_seed(0)
    assert (loaded.defense(digits.x[:200]).argmax(1) == digits.y[:200]).float().mean() >= 0.9
    torch.manual_seed(0)
    plain = load("de3-digits(sigma=0)").defense
    assert not plain.stochastic and torch.equal(plain(digits.x[:8]), plain(digits.x[:8]))


def test_the_denoiser_takes_most_of_the_noise_away():
    """70 / 255 = .27 of noise, of which less than a quarter is left."""
    x = load_dataset("digits", "test").x[:100]
    purifier = load_purifier("de3-digits(sigma=70)")
    torch.manual_seed(0)
    assert float((purifier(x) - x).square().mean().sqrt()) < 0.07


@pytest.mark.parametrize(
    ("statistics", "low", "high"), [("input", 0.98, 1.02), ("noisy", 0.6, 0.95), ("predicted", 0.3, 0.8)]
)
def test_how_much_of_a_patchs_mean_passes_the_trained_denoiser(statistics, low, high):
    """All of it by the official way; less where it must pass the noise or the network."""
    purifier = load_purifier(f'de3-digits(sigma=70, statistics="{statistics}")')
    x = 0.1 + 0.8 * load_dataset("digits", "test").x[:100]
    step = 0.05 * torch.randn(100, 16, generator=torch.Generator().manual_seed(0)).sign()
    changed = x + step.view(100, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    means = []
    for each in (x, changed):
        torch.manual_seed(1)
        means.append(patch_means(purifier, purifier(each)))
    slope = float(((means[1] - means[0]) * step).mean() / step.square().mean())
    assert low < slope < high
