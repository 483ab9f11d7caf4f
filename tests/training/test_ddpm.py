"""Noise-prediction training of a diffusion purifier on the common trainer."""

import csv

import pytest
import torch
from torch import nn

from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.defenses import build_purifier, diffusion, load
from robench.training import train, trainer
from robench.training.purifier_training import find_purifier_training
from tests.defenses.test_purified import Blur

pytest.importorskip("diffusers", reason=f"diffusion purifiers need {diffusion.INSTALL}")

BUILDER = "diffpure(image_size=16, widths=[8, 16], layers=1, attention=[], groups=4, t=100, steps=2)"
CARD = f"""
builder = "{BUILDER}"
dataset = "digits"
classifier = "standard-digits"
[recipe]
threads = 1
evaluation = "Linf:0.1"
shift = 1
stored = "fp16"
[[recipe.purifying]]
method = "ddpm"
epochs = 3
warmup = 0
batch_size = 128
lr = 3e-3
weight_decay = 0.0
beta2 = 0.999
average = 0.9
"""


@pytest.fixture(autouse=True, scope="module")
def unmeasured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            trainer, "measure", lambda *_, **__: (1, 1)
        )  # PGD through a diffusion model takes its time
        yield


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    path = tmp_path_factory.mktemp("ddpm") / "own.toml"
    path.write_text(CARD)
    return path


@pytest.fixture(scope="module")
def whole(card):
    files = card.with_name("whole.safetensors"), card.with_name("whole.csv")
    return train(str(card), output=files[0], progress=False, csv=files[1])


def test_the_loss_falls_and_the_checkpoint_is_what_the_loader_wants(card, whole):
    with card.with_name("whole.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    # Who predicts no noise at all has 1.
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0] and losses[2] < 0.8
    defense = load(str(card), checkpoint=whole.path).defense
    assert defense.purifier.times == [100, 50, 0] and defense.stochastic


@pytest.mark.slow
def test_an_interrupted_training_ends_in_the_same_weights(card, whole, monkeypatch):
    monkeypatch.setattr(trainer, "SAVE_EVERY_SECONDS", 0.0)
    save = trainer._Run.save

    def interrupted(self, stage):
        save(self, stage)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(str(card), output=card.with_name("cut.safetensors"), progress=False)
    assert train(str(card), output=card.with_name("cut.safetensors"), progress=False).sha256 == whole.sha256


class Given(nn.Module):
    """Predicts by a function of x_t and alpha bar."""

    def __init__(self, predict, schedule):
        super().__init__()
        self.predict, self.schedule, self.times = predict, schedule, []

    def forward(self, x, timestep):
        self.times += timestep.tolist()
        kept = torch.tensor(self.schedule.kept)[timestep + 1].view(-1, 1, 1, 1)
        self.sample = self.predict(x, kept)
        return self


@pytest.mark.parametrize(
    ("predict", "expected"),
    [
        # The images are all gray, 0 in [-1, 1], so that x_t is the scaled noise and nothing else.
        (lambda x, kept: x / (1 - kept).sqrt(), 0.0),
        (lambda x, kept: torch.zeros_like(x), 1.0),
        (lambda x, kept: 3 * x / (1 - kept).sqrt(), 4.0),
    ],
)
def test_the_loss_is_equation_14(predict, expected):
    purifier = build_purifier(specs.parse(BUILDER))
    purifier.network = Given(predict, purifier.schedule)
    torch.manual_seed(0)
    x = torch.full((2000, 3, 4, 4), 0.5)
    loss = find_purifier_training("ddpm").loss(purifier, x, torch.zeros(2000))
    assert float(loss) == pytest.approx(expected, rel=0.03, abs=1e-9)
    # Uniform times over the whole schedule, as diffusers counts them.
    times = torch.tensor(purifier.network.times, dtype=torch.float64)
    assert times.min() >= 0 and times.max() <= 999 and times.min() < 10 and times.max() > 989
    assert abs(times.mean() - 499.5) < 5 * 1000 / 12**0.5 / 2000**0.5


def test_only_a_diffusion_model_can_be_trained_so(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.purifiers._builders, "blur", Blur)
    monkeypatch.setitem(registry.purifiers._holders, "blur", "tests.Blur")
    card = tmp_path / "own.toml"
    card.write_text(CARD.replace(BUILDER, "blur"))
    with pytest.raises(UsageError, match="ddpm does not suit blur: expected a diffpure purifier, got Blur"):
        train(str(card), output=card.with_name("a.safetensors"), progress=False)
