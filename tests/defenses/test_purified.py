"""A purifier in front of any classifier: how it is named, loaded, noted and refused."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robench import registry
from robench.defenses import Defense, Purifier, find_card, load
from robench.errors import ResourceError, UsageError
from robench.random import normal_like


class Blur(Purifier):
    """Each pixel and its neighbours, mixed by a learnt kernel, after Gaussian noise."""

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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("blur", "is a purifier: name the defense behind it"),
        ("pgd-at-digits+standard-digits", "pgd-at-digits is no purifier"),
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


def test_weights_are_asked_for(card):
    with pytest.raises(ResourceError, match="comes without its weights"):
        load(str(card))


def test_a_purified_defense_is_still_a_defense(card, tmp_path):
    defense = load(str(card), checkpoint=tmp_path / "blur.safetensors").defense
    assert isinstance(defense, Defense) and not any(p.requires_grad for p in defense.parameters())
    assert defense.features(torch.rand(2, 3, 16, 16)).shape == (2, 17, 64)
