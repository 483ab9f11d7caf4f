"""A purifier's recipe on the common trainer: stages, images with more channels, resuming, what is refused."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from robench.core import registry
from robench.core.errors import UsageError
from robench.defenses import Purifier, load
from robench.training import train
from robench.training.purifier_training import PurifierTraining, purifier_trainings

CARD = """
builder = "shade"
dataset = "digits"
classifier = "standard-digits"
[recipe]
threads = 1
evaluation = "Linf:0.1"
shift = 1
samples = 256
measured = 64
[[recipe.purifying]]
method = "denoise(sigma=0.2)"
epochs = 2
warmup = 0
batch_size = 64
lr = 3e-3
[[recipe.purifying]]
method = "denoise(sigma=0.1)"
epochs = 2
warmup = 0
batch_size = 64
lr = 1e-3
average = 0.9
"""


class Shade(Purifier):
    """One convolution."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.mix(x).clamp(0, 1)


@dataclass(frozen=True)
class Denoise(PurifierTraining):
    """Clean images from noisy ones that are drawn once."""

    sigma: float = 0.1

    def images(self, learner, x, y):
        return torch.cat([x, x + self.sigma * torch.randn_like(x)], 1)

    def loss(self, learner, x, y):
        assert learner.training
        clean, noisy = x.split(3, 1)
        return (learner.mix(noisy) - clean).square().mean()


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for kind, name, builder in (
        (registry.purifiers, "shade", Shade),
        (purifier_trainings, "denoise", Denoise),
    ):
        monkeypatch.setitem(kind._builders, name, builder)
        monkeypatch.setitem(kind._holders, name, f"tests.{name}")


def write(folder, text=CARD):
    (folder / "own.toml").write_text(text)
    return str(folder / "own.toml")


def test_stages_follow_one_another_and_the_log_tells_them_apart(tmp_path):
    result = train(write(tmp_path), output=tmp_path / "a.safetensors", progress=False, csv=tmp_path / "a.csv")
    rows = (tmp_path / "a.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["purifier stage 1"] * 2 + ["purifier stage 2"] * 2
    losses = [float(row.split(",")[2]) for row in rows[1:]]
    assert losses[1] < losses[0] and losses[3] < losses[1]
    assert result.n == 64 and 0.05 < result.clean_accuracy <= 1
    defense = load(write(tmp_path), checkpoint=tmp_path / "a.safetensors").defense
    assert isinstance(defense.purifier, Shade)


@pytest.mark.parametrize("number", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_an_interrupted_training_ends_in_the_same_weights(tmp_path, monkeypatch, number):
    from robench.training import trainer

    card = write(tmp_path)
    whole = train(card, output=tmp_path / "whole.safetensors", progress=False)
    monkeypatch.setattr(trainer, "SAVE_EVERY_SECONDS", 0.0)
    save = trainer._Run.save

    def interrupted(self, stage):
        save(self, stage)
        if stage.name == f"purifier stage {number}":
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer._Run, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(card, output=tmp_path / "cut.safetensors", progress=False)
    monkeypatch.setattr(trainer._Run, "save", save)
    assert train(card, output=tmp_path / "cut.safetensors", progress=False).sha256 == whole.sha256


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"denoise(sigma=0.2)"', '"denoise(sigma=-1)"', r"recipe\.purifying, stage 1: .*at least 0"),
        ('"denoise(sigma=0.1)"', '"denois"', r"stage 2: unknown purifying .*denoise"),
        ("lr = 3e-3", "lr = 0", r"purifying, stage 1\.lr = 0: expected above 0"),
        (
            'builder = "shade"',
            'builder = "vit(image_size=16, patch_size=4, num_classes=10)"',
            "a classifier must have none",
        ),
        ("[[recipe.purifying]]", "[[recipe.purify]]", 'unknown field "purify"'),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, said):
    with pytest.raises(UsageError, match=said):
        train(write(tmp_path, CARD.replace(old, new)), output=tmp_path / "a.safetensors", progress=False)


def test_without_the_classifiers_weights_it_is_trained_and_not_measured(tmp_path, capsys):
    card = write(tmp_path, CARD.replace("standard-digits", "trades-digits"))
    result = train(card, output=tmp_path / "a.safetensors")
    assert result.n == 0 and "not evaluated" in str(result) and result.path.is_file()
    assert "not evaluated: trades-digits comes without trained weights" in capsys.readouterr().err
