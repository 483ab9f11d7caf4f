"""NIM and MIM pre-training, and the classifier that De^3 trains on denoised images."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from robench.core import registry, specs
from robench.core.errors import ResourceError, UsageError
from robench.core.trust import trusting
from robench.defenses import build_purifier, load
from robench.defenses.de3 import DE3
from robench.training import train, trainer
from robench.training.methods import Budget, find_method
from robench.training.purifier_training import find_purifier_training
from robench.training.stages import Finetuning, finetuning_stage

DENOISER = (
    "de3(image_size=16, patch_size=4, width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1, "
    "decoder_heads=2, mean=(0, 0, 0), std=(1, 1, 1){})"
)
VIT = "vit(image_size=16, patch_size=4, width={}, depth=1, heads=2, num_classes=10)"
PURIFIER = """
builder = '{builder}'
dataset = "digits"
classifier = "standard-digits"
[recipe]
threads = 1
evaluation = "Linf:0.1"
[[recipe.purifying]]
method = "{method}"
epochs = 3
warmup = 0
batch_size = 256
lr = 3e-3
"""
CLASSIFIER = """
builder = "{builder}"
dataset = "digits"
[recipe]
threads = 1
evaluation = "Linf:0.1"
[recipe.finetuning]
method = '''{method}'''
epochs = 3
warmup = 1
batch_size = 64
lr = 1e-2
layer_decay = 1.0
steps = 0
average = 0.9
"""
NETWORKS = {"nim": DENOISER.format(""), "mim": DENOISER.format(', noise="mask", sigma=25')}


@pytest.mark.parametrize(
    ("law", "mean", "deviation", "skewness"),
    [
        ("nim", 75.0, 15.0, 0.4),  # Gamma(25, 3): k theta, sqrt(k) theta, 2 / sqrt(k)
        ('nim(sigma="gamma", shape=4.0, scale=2.0)', 8.0, 4.0, 1.0),
        ('nim(sigma="uniform")', 75.0, 150 / 12**0.5, 0.0),
        ('nim(sigma="uniform", low=10.0, high=20.0)', 15.0, 10 / 12**0.5, 0.0),
        ('nim(sigma="fixed", level=55.0)', 55.0, 0.0, 0.0),
    ],
)
def test_each_law_of_sigma(law, mean, deviation, skewness):
    torch.manual_seed(0)
    sigma = find_purifier_training(law).draw(100_000, torch.device("cpu"))
    assert sigma.shape == (100_000,) and float(sigma.min()) >= 0
    assert float(sigma.mean()) == pytest.approx(mean, rel=0.01)
    assert float(sigma.std()) == pytest.approx(deviation, rel=0.01)
    if deviation:
        skew = ((sigma - sigma.mean()) / sigma.std()).pow(3).mean()
        assert float(skew) == pytest.approx(skewness, abs=0.05)


def denoiser(name, **changes):
    torch.manual_seed(0)
    purifier = build_purifier(specs.parse(NETWORKS[name]))
    assert isinstance(purifier, DE3)
    return purifier


def half_flat(n=8):
    """Images whose first 8 patches of 16 have no contrast."""
    x = torch.rand(n, 3, 16, 16)
    x[:, :, :8] = 0.3
    return x


def test_the_loss_of_a_guess_of_zero_has_a_closed_form():
    """A normalized patch of 48 pixels has a mean square of 47 / 48, a flat one of 0; MIM counts hidden ones."""
    x, y = half_flat(), torch.zeros(8, dtype=torch.int64)
    for name in ("nim", "mim"):
        purifier, method = denoiser(name), find_purifier_training(name)
        for parameter in purifier.decoder_pred.parameters():
            torch.nn.init.zeros_(parameter)
        torch.manual_seed(3)
        loss = float(method.loss(purifier, x, y).detach())
        torch.manual_seed(3)
        hidden = torch.ones(8, 16)
        if name == "mim":
            seen = purifier.corrupt(x, 75.0)
            hidden = torch.zeros(8, 16).scatter(1, seen.order[:, seen.visible :], 1.0)
            assert hidden.sum(1).eq(12).all()
        assert loss == pytest.approx(47 / 48 * float(hidden[:, 8:].sum() / hidden.sum()), rel=1e-4)


def test_nim_noises_each_image_by_a_sigma_of_its_own(monkeypatch):
    shown = []
    corrupt = DE3.corrupt
    monkeypatch.setattr(DE3, "corrupt", lambda self, x, s: shown.append((x, s)) or corrupt(self, x, s))
    find_purifier_training("nim").loss(denoiser("nim"), half_flat(), torch.zeros(8))
    sigma = shown[0][1]
    assert sigma.shape == (8,) and len(sigma.unique()) == 8 and 30 < float(sigma.mean()) < 120


def test_the_statistics_head_is_trained_along():
    torch.manual_seed(0)
    text = NETWORKS["nim"].replace("image_size", "statistics_head=True, image_size")
    purifier = build_purifier(specs.parse(text))
    method = find_purifier_training('nim(sigma="fixed", level=0.0)')
    x, y = half_flat(), torch.zeros(8)
    for parameter in [*purifier.decoder_pred.parameters(), *purifier.decoder_statistics.parameters()]:
        torch.nn.init.zeros_(parameter)
    loss = method.loss(purifier, x, y)
    loss.backward()
    assert (purifier.decoder_statistics.weight.grad != 0).any()
    pixels = purifier.pixels(x)
    mean, deviation = pixels.mean(2), (pixels.var(2) + 1e-6).sqrt()
    guessed = torch.log(torch.tensor(2.0))  # softplus(0)
    expected = 47 / 48 / 2 + (mean.square() + (deviation - guessed).square()).mean() / 2
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", ["nim", "mim"])
def test_training_lowers_the_loss_and_goes_on_after_an_interruption(name, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "measure", lambda *_, **__: (1, 1))
    (tmp_path / "own.toml").write_text(PURIFIER.format(builder=NETWORKS[name], method=name))
    card, output = str(tmp_path / "own.toml"), tmp_path / "cut.safetensors"
    whole = train(card, output=tmp_path / "whole.safetensors", csv=tmp_path / "a.csv", progress=False)
    losses = [float(row.split(",")[2]) for row in (tmp_path / "a.csv").read_text().splitlines()[1:]]
    assert losses == sorted(losses, reverse=True) and losses[2] < 0.9 * losses[0]
    monkeypatch.setattr(trainer, "SAVE_EVERY_SECONDS", 0.0)
    save = trainer._Run.save

    def save_and_stop(self, stage):
        save(self, stage)
        if stage.done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trainer._Run, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(card, output=output, progress=False)
    assert train(card, output=output, progress=False).sha256 == whole.sha256
    assert load(card, checkpoint=output).defense.stochastic


@pytest.fixture(params=["nim", "mim"])
def purifier_card(request, tmp_path):
    """The path of a card whose purifier has weights, random ones."""
    purifier = denoiser(request.param)
    save_file(purifier.state_dict(), tmp_path / "p.safetensors")
    from robench.defenses._checkpoints import sha256_of

    text = PURIFIER.format(builder=NETWORKS[request.param], method=request.param)
    sha = sha256_of(tmp_path / "p.safetensors")
    text = f'checkpoint = "p.safetensors"\nsha256 = "{sha}"\n' + text
    (tmp_path / "p.toml").write_text(text)
    return tmp_path / "p.toml"


def classifier(width=16):
    torch.manual_seed(1)
    spec = specs.parse(VIT.format(width))
    return specs.build(spec, registry.defenses.get("vit")).classifier


def denoised(card, **settings):
    return find_method(str(specs.Spec("denoised", {"purifier": str(card), **settings})))


def test_the_loss_is_the_cross_entropy_of_denoised_images(purifier_card):
    method = denoised(purifier_card, sigma=60.0, start="new")
    pair = method.learners(classifier().double())
    pair.purifier.double()
    x, y = torch.rand(6, 3, 16, 16).double(), torch.arange(6)
    torch.manual_seed(5)
    loss = method.loss(pair, x, y, Budget(0, 0, 0, label_smoothing=0.1))
    torch.manual_seed(5)
    count = 1 if pair.purifier.noise == "mask" else 6
    clean = pair.purifier.denoise(x, torch.rand(count, dtype=torch.float64) * 60)
    expected = F.cross_entropy(pair.classifier(clean), y, label_smoothing=0.1)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    loss.backward()
    assert all(p.grad is None for p in pair.purifier.parameters())
    assert all(p.grad is not None for p in pair.classifier.parameters())


def test_it_starts_from_the_encoder_where_the_recipe_says_so(purifier_card):
    model = classifier()
    pair = denoised(purifier_card).learners(model)
    state, head = pair.purifier.state_dict(), model.head.weight
    for key, value in model.state_dict().items():
        if not key.startswith(("head.", "fc_norm.")):
            assert torch.equal(value, state[key])
    assert 1e-5 < float(head.detach().std()) < 3e-5 and not model.head.bias.any()
    new, before = classifier(), classifier().state_dict()
    denoised(purifier_card, start="new").learners(new)
    assert all(torch.equal(value, before[key]) for key, value in new.state_dict().items())


def test_a_classifier_of_another_shape_does_not_start_from_the_encoder(purifier_card):
    config = Finetuning(method=str(denoised_spec(purifier_card)), steps=0)
    with pytest.raises(UsageError, match='use the same sizes, or write start="new"'):
        finetuning_stage(classifier(8), classifier(8), config)


def denoised_spec(card):
    return specs.Spec("denoised", {"purifier": str(card)})


def test_the_average_starts_where_the_classifier_does(purifier_card):
    model, average = classifier(), classifier()
    config = Finetuning(method=str(denoised_spec(purifier_card)), steps=0, average=0.9)
    stage = finetuning_stage(model, average, config)
    for key, value in average.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
    assert len(stage.method.followed(stage.model, 0.5)) == len(list(average.parameters()))
    trained = {id(p) for group in stage.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()}


@trusting()
def test_a_pre_training_that_the_purifiers_encoder_would_replace_is_refused(purifier_card, tmp_path):
    text = CLASSIFIER.format(builder=VIT.format(16), method=denoised_spec(purifier_card))
    card, output = tmp_path / "own.toml", tmp_path / "a.safetensors"
    card.write_text(text + "\n[recipe.pretraining]\nepochs = 1\n")
    with pytest.raises(UsageError, match=r"sets the initial weights: leave out .* --pretrained"):
        train(str(card), output=output, progress=False)
    card.write_text(text)
    with pytest.raises(UsageError, match=r"sets the initial weights"):
        train(str(card), output=output, progress=False, pretrained=tmp_path / "p.safetensors")


@trusting()  # The card names the purifier's by its path.
def test_a_classifiers_training_goes_on_after_an_interruption(purifier_card, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "measure", lambda *_, **__: (1, 1))
    text = CLASSIFIER.format(builder=VIT.format(16), method=denoised_spec(purifier_card))
    (tmp_path / "own.toml").write_text(text)
    card, output = str(tmp_path / "own.toml"), tmp_path / "cut.safetensors"
    whole = train(card, output=tmp_path / "whole.safetensors", csv=tmp_path / "a.csv", progress=False)
    losses = [float(row.split(",")[2]) for row in (tmp_path / "a.csv").read_text().splitlines()[1:]]
    assert losses[2] < 0.95 * losses[0]
    assert set(load_file(whole.path)) == set(classifier().state_dict())
    monkeypatch.setattr(trainer, "SAVE_EVERY_SECONDS", 0.0)
    save = trainer._Run.save

    def save_and_stop(self, stage):
        save(self, stage)
        if stage.done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trainer._Run, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(card, output=output, progress=False)
    assert train(card, output=output, progress=False).sha256 == whole.sha256


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ('nim(sigma="beta")', "sigma='beta': expected gamma or fixed or uniform"),
        ("nim(sigma=75.0)", "sigma=75.0: expected gamma or fixed or uniform"),
        ("nim(shape=0.0)", "shape=0.0: expected above 0"),
        ("nim(low=9.0, high=3.0)", "expected low to be at most high"),
        ("mim(mask_ratio=1.0)", "mask_ratio=1.0: expected above 0 and below 1"),
        ("mim(mask_ratio=0.0)", "mask_ratio=0.0: expected above 0"),
    ],
)
def test_mistakes_in_pre_training(spec, said):
    with pytest.raises(UsageError, match=said):
        find_purifier_training(spec)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("denoised", r"denoised needs purifier: write denoised\(purifier=...\)"),
        ("denoised(purifier=3)", "purifier=3: expected a string"),
        ('denoised(purifier="de3-digits", sigma=-1.0)', "sigma=-1.0: expected a finite number, at least 0"),
        ('denoised(purifier="de3-digits", start="old")', "start='old': expected encoder or new"),
    ],
)
def test_mistakes_in_fine_tuning(spec, said):
    with pytest.raises(UsageError, match=said):
        find_method(spec)


@pytest.mark.parametrize(("name", "other"), [("nim", "mim"), ("mim", "nim")])
def test_each_method_needs_its_own_noise(name, other, tmp_path):
    (tmp_path / "own.toml").write_text(PURIFIER.format(builder=NETWORKS[other], method=name))
    with pytest.raises(UsageError, match=f"{name} does not suit de3: expected a purifier de3"):
        train(str(tmp_path / "own.toml"), output=tmp_path / "a.safetensors", progress=False)


def test_steps_of_an_attack_are_refused(tmp_path):
    text = CLASSIFIER.format(builder=VIT.format(16), method='denoised(purifier="de3-digits")')
    (tmp_path / "own.toml").write_text(text.replace("steps = 0", "steps = 3"))
    with pytest.raises(UsageError, match="with steps = 3: expected 0"):
        train(str(tmp_path / "own.toml"), output=tmp_path / "a.safetensors", progress=False)


def test_a_purifier_without_weights_is_asked_for(tmp_path):
    (tmp_path / "p.toml").write_text(PURIFIER.format(builder=NETWORKS["nim"], method="nim"))
    with pytest.raises(ResourceError, match="comes without its weights"):
        denoised(tmp_path / "p.toml").learners(classifier())
    with pytest.raises(UsageError, match="standard-digits is not a purifier"):
        denoised("standard-digits").learners(classifier())
