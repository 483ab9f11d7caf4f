"""A purifier in front of any classifier: how it is named, loaded, noted and refused."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from robench.core import registry
from robench.core.errors import ResourceError, UsageError
from robench.core.rng import normal_like
from robench.core.trust import trusting
from robench.defenses import Defense, Purifier, find_card, load
from robench.defenses._base import with_purifier
from robench.defenses._checkpoints import sha256_of
from robench.defenses.loaders import onnx
from tests.defenses import files


class Blur(Purifier):
    """Each pixel and its neighbors, mixed by a learnt kernel, after Gaussian noise."""

    stochastic = True

    def __init__(self, sigma: float = 0.0, image_size: int = 16):
        super().__init__()
        if sigma < 0:
            raise ValueError(f"{sigma=}: expected at least 0")
        self.sigma, self.image_size = sigma, image_size
        self.mix = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.mix(x + self.sigma / 255 * normal_like(x)).sigmoid()


@pytest.fixture(autouse=True)
def blur(monkeypatch):
    monkeypatch.setitem(registry.purifiers._builders, "blur", Blur)
    monkeypatch.setitem(registry.purifiers._holders, "blur", "tests.Blur")


@pytest.fixture
def card(tmp_path):
    torch.manual_seed(0)
    save_file(Blur().state_dict(), tmp_path / "blur.safetensors")
    (tmp_path / "own.toml").write_text(
        'builder = "blur(sigma=8)"\ndataset = "digits"\nclassifier = "standard-digits"\n'
    )
    return tmp_path / "own.toml"


def test_a_card_puts_its_purifier_before_the_classifier_it_names(card, tmp_path):
    loaded = load(str(card), checkpoint=tmp_path / "blur.safetensors")
    plain = load("standard-digits")
    x = torch.rand(3, 3, 16, 16)
    assert isinstance(loaded.defense.purifier, Blur) and loaded.defense.stochastic
    torch.manual_seed(1)
    got = loaded.defense(x)
    torch.manual_seed(1)
    torch.testing.assert_close(got, plain.defense(loaded.defense.purifier(x)))
    assert loaded.checkpoint_sha256 != plain.checkpoint_sha256


def test_another_classifier_is_named_after_a_plus(card, tmp_path):
    ours = load(f"{card}+pgd-at-digits", checkpoint=tmp_path / "blur.safetensors")
    assert ours.name.endswith("+pgd-at-digits")
    assert torch.equal(
        ours.defense.classifier.head.weight, load("pgd-at-digits").defense.classifier.head.weight
    )
    other = load(str(card), checkpoint=tmp_path / "blur.safetensors")
    assert ours.card_digest != other.card_digest and ours.checkpoint_sha256 != other.checkpoint_sha256


def test_a_builder_alone_stands_before_a_defense_too(tmp_path, card):
    loaded = load("blur(sigma=3)+standard-digits", checkpoint=tmp_path / "blur.safetensors")
    assert loaded.defense.purifier.sigma == 3


def test_a_cards_arguments_can_be_changed():
    found = find_card("mimir-digits(drop_path=0.5)")
    assert found.name == "mimir-digits(drop_path=0.5)" and "drop_path=0.5" in found.builder
    plain, changed = load("mimir-digits"), load("mimir-digits(drop_path=0.5)")
    assert plain.card_digest != changed.card_digest and plain.checkpoint_sha256 == changed.checkpoint_sha256
    assert load("mimir(drop_path=0.5)").card_digest == changed.card_digest


def test_a_purifier_takes_the_place_of_another_and_says_so():
    loaded = load("smoothed(sigma=0.1)+maep-digits")
    assert type(loaded.defense.purifier).__name__ == "Smoothed"
    assert any("replaces the purifier of maep-digits" in note for note in loaded.notes)
    assert not any("replaces" in note for note in load("smoothed(sigma=0.1)+standard-digits").notes)
    with pytest.raises(UsageError, match="has two purifiers"):
        load("smoothed(sigma=0.1)+maep-digits+standard-digits")


def test_a_randomised_classifier_stays_one_behind_a_purifier():
    network = load("standard-digits").defense.classifier
    noisy = Defense(network, num_classes=10, image_size=16, stochastic=True, differentiable=False)
    behind = with_purifier(Scaled(), noisy)
    assert behind.stochastic and not behind.differentiable
    bare = with_purifier(None, behind)
    assert bare.stochastic and not bare.differentiable
    blurred = with_purifier(Blur(), Defense(network, num_classes=10, image_size=16))
    assert blurred.stochastic and not with_purifier(None, blurred).stochastic


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("blur", "is a purifier: name the defense behind it"),
        ("pgd-at-digits+standard-digits", "pgd-at-digits is not a purifier"),
        ("blur(sigma=-1)+standard-digits", "expected at least 0"),
        ("blur(image_size=8)+standard-digits", "takes images of 8 px, not of 16 px"),
        ("blur+nobody", 'unknown defense "nobody"'),
        ("blur+", "a name is missing"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(name, said, tmp_path, card):
    with pytest.raises(UsageError, match=said) as caught:
        load(name, checkpoint=tmp_path / "blur.safetensors")
    assert "\n" not in str(caught.value)


class Scaled(Purifier):
    """A purifier of somebody else's that was made for other images: of another range, or of one channel."""

    def __init__(self, low: float = -1.0, high: float = 1.0, channels: int = 3, side: int = 16):
        super().__init__()
        self.low, self.high, self.side = low, high, side
        self.mix = nn.Conv2d(channels, 3, 1)

    def forward(self, x):
        return self.low + (self.high - self.low) * self.mix(x).sigmoid()[..., : self.side]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            "",
            r"gives pixels from -0.987 to 0.987, where \[0, 1\] is expected: if it was trained for another range",
        ),
        ("(low=0, high=255)", r"gives pixels from 1.71 to 253, where"),
        ("(low=0, high=1, channels=1)", r"does not take images of shape \(2, 3, 16, 16\)"),
        ("(low=0, high=1, side=8)", r"gives \(2, 3, 16, 8\) for images of shape \(2, 3, 16, 16\)"),
    ],
)
def test_one_made_for_other_images_is_refused_in_one_line(settings, said, tmp_path, monkeypatch):
    monkeypatch.setitem(registry.purifiers._builders, "scaled", Scaled)
    monkeypatch.setitem(registry.purifiers._holders, "scaled", "tests.Scaled")
    torch.manual_seed(0)
    channels = 1 if "channels" in settings else 3
    network = Scaled(channels=channels)
    # From black to white over the whole range.
    nn.init.constant_(network.mix.weight, 10 / channels)
    nn.init.constant_(network.mix.bias, -5.0)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=said) as caught:
        load(f"scaled{settings}+standard-digits", checkpoint=tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value) and "does not suit standard-digits" in str(caught.value)


@pytest.mark.parametrize("scheme", ["python", "torchscript", "timm", "torchvision", "onnx"])
def test_a_shipped_one_stands_before_everybodys(scheme, tmp_path, monkeypatch):
    """By the name that the command line takes; the weights of `timm` and `torchvision` are a file of the user's."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    if scheme == "python":
        files.write_module(tmp_path)
        name = "python:tiny_module.build(width=4, image_size=16)"
    elif scheme == "torchscript":
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
        files.write_torchscript(network.eval(), tmp_path / "a.pt", image_size=16)
        name = "torchscript:a.pt"
    elif scheme == "onnx":
        pytest.importorskip("onnx", reason=f"ONNX files need {onnx.INSTALL}")
        files.write_onnx(tmp_path / "a.onnx")
        name = "onnx:a.onnx(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))"
    else:
        builder, network = {
            "timm": (
                "timm:test_vit(num_classes=10, image_size=16)",
                lambda: timm.create_model("test_vit", num_classes=10, img_size=16),
            ),
            "torchvision": (
                "torchvision:squeezenet1_1(num_classes=10, image_size=32)",
                lambda: torchvision.models.squeezenet1_1(num_classes=10),
            ),
        }[scheme]
        save_file(network().state_dict(), tmp_path / "net.safetensors")
        digest = sha256_of(tmp_path / "net.safetensors")
        (tmp_path / "inner.toml").write_text(
            f"builder = '{builder}'\ndataset = 'digits'\ncheckpoint = 'net.safetensors'\nsha256 = '{digest}'\n"
        )
        name = "inner.toml"
    with trusting():
        inner = load(name).defense
        side = inner.image_size
        purified = load(f'maep-digits(size_mode="interpolate")+{name}').defense
    x = torch.rand(2, 3, side, side).requires_grad_()
    torch.testing.assert_close(purified(x), inner(purified.purifier(x)), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(purified(x).square().sum(), x)
    assert purified.image_size == side and gradient.isfinite().all() and gradient.any()


def test_weights_are_asked_for(card):
    with pytest.raises(ResourceError, match="comes without its weights"):
        load(str(card))


def test_a_purified_defense_is_still_a_defense(card, tmp_path):
    defense = load(str(card), checkpoint=tmp_path / "blur.safetensors").defense
    assert isinstance(defense, Defense) and not any(p.requires_grad for p in defense.parameters())
    assert defense.features(torch.rand(2, 3, 16, 16)).shape == (2, 17, 64)
